"""LoRAs of ComfyUI on quantised weights: the effect they have on bf16, and no trace of them.

Samples are compared by relative norm in float32.
"""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import comfy.hooks
import comfy.lora
import comfy.model_management
import comfy.model_patcher
import comfy.sd
import comfy.utils
import folder_paths
import pytest
import torch
from comfy.weight_adapter.lora import LoRAAdapter
from comfy_extras.nodes_model_merging import ModelMergeSimple, ModelSave
from safetensors.torch import save_file

from comfyui_multitalk.dev.tiny import wan
from comfyui_multitalk.multitalk_core.errors import InputError
from comfyui_multitalk.nodes.host import lora, model
from comfyui_multitalk.tests.host.inside.scene import (
    ADAPTER,
    BASE,
    CPU,
    SEED,
    Scene,
    distance,
    load_lora,
    weight_of,
    with_lora,
)
from comfyui_multitalk.tools.convert import convert
from comfyui_multitalk.wan_gguf_loader.files import open_weights

Weights = dict[str, torch.Tensor]


@pytest.fixture(scope="module")
def changed(scene: Scene, base: Any, plain: torch.Tensor) -> torch.Tensor:
    """Give what KSampler makes with the LoRA."""
    return scene.sample(with_lora(base))


def copied(patcher: Any) -> Weights:
    """Copy the weights of a MODEL."""
    return {name: value.clone() for name, value in patcher.model.state_dict().items()}


def same(patcher: Any, weights: Weights) -> bool:
    """Tell whether a MODEL has these weights."""
    return all(torch.equal(weights[n], v) for n, v in patcher.model.state_dict().items())


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Write one base as bf16, Q8_0 and Q4_K."""
    folder = tmp_path_factory.mktemp("bases")
    weights, _ = wan.base_and_adapter(seed=SEED)
    files = {"bf16": folder / "base.safetensors"}
    heads = {"num_heads": str(wan.CONFIG.num_heads)}
    save_file({k: v.bfloat16().contiguous() for k, v in weights.items()}, files["bf16"], heads)
    for type in ("Q8_0", "Q4_K"):
        files[type] = folder / f"{type}.gguf"
        convert(files["bf16"], files[type], type=type, num_heads=wan.CONFIG.num_heads)
    return files


@pytest.mark.parametrize("type", ["Q8_0", "Q4_K"])
def test_lora_effect_on_quantised_weights_is_that_on_bf16(
    scene: Scene, bases: dict[str, Path], type: str
) -> None:
    reference, quantised = (model.load_base(bases[name]) for name in ("bf16", type))
    assert weight_of(quantised).dtype is torch.uint8
    exact, without = scene.sample(reference), scene.sample(quantised)
    wanted = scene.sample(with_lora(reference)) - exact
    effect = scene.sample(with_lora(quantised)) - without
    assert wanted.norm() > 0.1 * exact.norm()
    assert (effect - wanted).norm() < 0.5 * (without - exact).norm()
    cosine = torch.cosine_similarity(effect.flatten(), wanted.flatten(), dim=0)
    assert cosine > {"Q8_0": 0.9999, "Q4_K": 0.99}[type]


@pytest.mark.parametrize("type", ["Q8_0", "Q4_K"])
def test_lora_is_added_to_the_decoded_weight_without_rounding(
    bases: dict[str, Path], type: str
) -> None:
    base = model.load_base(bases[type])
    layer = base.model.diffusion_model.blocks[0].self_attn.q
    answers = []
    for patcher in (base, with_lora(base)):
        comfy.model_management.load_models_gpu([patcher])
        answers.append(layer(torch.eye(layer.in_features)))
    up, down = (
        load_lora()[f"diffusion_model.blocks.0.self_attn.q.lora_{part}.weight"].float()
        for part in "BA"
    )
    assert distance(answers[1] - answers[0], (up @ down).T) < 1e-5


def test_lora_on_packed_weights_equals_lora_on_decoded_ones(
    scene: Scene, base: Any, theirs: Any, plain: torch.Tensor, changed: torch.Tensor
) -> None:
    assert len(with_lora(base).patches) > 0
    assert distance(changed, plain) > 0.01
    assert distance(changed, scene.sample(with_lora(theirs))) < 1e-4


def test_loras_add_up_as_on_comfyuis_wan(
    scene: Scene, base: Any, theirs: Any, changed: torch.Tensor
) -> None:
    ours, comfyuis = (
        scene.sample(with_lora(with_lora(one), -0.6, "second")) for one in (base, theirs)
    )
    assert distance(ours, changed) > 0.01
    assert distance(ours, comfyuis) < 1e-4


def test_loras_of_strength_zero_change_no_bit(scene: Scene, base: Any, plain: torch.Tensor) -> None:
    one = with_lora(base, 0.0)
    assert torch.equal(scene.sample(one), plain)
    assert torch.equal(scene.sample(with_lora(one, 0.0, "second")), plain)


def test_removed_lora_leaves_no_bit_and_comes_back_the_same(
    scene: Scene, adapted: Any, plain: torch.Tensor
) -> None:
    base = model.load_base(BASE)
    before = copied(base)
    changed = scene.sample(with_lora(base))
    assert same(base, before)
    assert torch.equal(scene.sample(base), plain)
    assert torch.equal(scene.sample(model.load_adapter(base, ADAPTER)), plain)
    assert torch.equal(scene.sample(with_lora(base)), changed)
    assert same(base, before)


def test_lora_comes_along_to_the_adapters_model(
    scene: Scene, base: Any, changed: torch.Tensor
) -> None:
    assert distance(scene.sample(model.load_adapter(with_lora(base), ADAPTER)), changed) < 1e-6


def test_bypass_lora_gives_the_same(scene: Scene, base: Any, changed: torch.Tensor) -> None:
    bypass, _ = comfy.sd.load_bypass_lora_for_models(base, None, load_lora(), 1.0, 0.0)
    assert distance(scene.sample(bypass), changed) < 1e-4


def test_safetensors_base_and_its_lora_match_comfyuis_own_wan(
    scene: Scene, theirs: Any, plain: torch.Tensor, tmp_path: Path
) -> None:
    with open_weights(BASE) as file:
        weights = {name: file.dequantize(name) for name in file.tensors}
        heads = {"num_heads": str(file.num_heads)}
    save_file(weights, tmp_path / "base.safetensors", heads)
    decoded = model.load_base(tmp_path / "base.safetensors")
    before = copied(decoded)
    without = scene.sample(decoded)
    assert distance(without, plain) < 1e-4  # the same weights, packed
    changed = scene.sample(with_lora(decoded))
    assert distance(changed, scene.sample(with_lora(theirs))) < 1e-4
    assert torch.equal(scene.sample(decoded), without)
    assert same(decoded, before)


def test_lora_acts_the_same_when_memory_is_low(scene: Scene) -> None:
    patched = with_lora(model.load_base(BASE))
    comfy.model_management.unload_all_models()
    patched.partially_load(CPU, extra_memory=600_000)
    assert patched.model.model_lowvram  # else it was loaded whole
    partly = scene.forward(patched)
    patched.partially_unload(CPU, memory_to_free=1e12)
    freed = scene.forward(patched)
    patched.detach()
    whole = scene.forward_loaded(patched)
    assert distance(partly, whole) < 1e-6
    assert distance(freed, whole) < 1e-6


def hooked(conditioning: Any, hooks: Any) -> Any:
    """Give a conditioning with hooks."""
    return comfy.hooks.set_conds_props(
        conds=[conditioning], strength=1.0, set_cond_area="default", hooks=hooks
    )[0]


def lora_hook(name: str = "tiny") -> Any:
    """Give what Create Hook LoRA makes."""
    return comfy.hooks.create_hook_lora(load_lora(name), 1.0, 0.0)


def test_lora_hook_on_both_conditionings_is_the_lora(
    scene: Scene, base: Any, changed: torch.Tensor
) -> None:
    hook = lora_hook()
    positive, negative, latent = scene.conditions
    both = (hooked(positive, hook), hooked(negative, hook), latent)
    assert distance(scene.sample(base, conditions=both), changed) < 1e-6
    on_top = scene.sample(with_lora(base, 0.5), conditions=both)
    assert distance(on_top, scene.sample(with_lora(base, 1.5))) < 1e-5


@pytest.mark.parametrize("name", ["positive", "each its own"])
def test_lora_hook_acts_on_its_own_conditioning_and_is_gone_after_sampling(
    scene: Scene, base: Any, theirs: Any, plain: torch.Tensor, name: str
) -> None:
    positive, negative, latent = scene.conditions
    if name == "each its own":
        negative = hooked(negative, lora_hook("second"))
    conditions = (hooked(positive, lora_hook()), negative, latent)
    ours = scene.sample(base, conditions=conditions)
    assert distance(ours, plain) > 0.01
    assert distance(ours, scene.sample(theirs, conditions=conditions)) < 1e-4
    assert torch.equal(scene.sample(base), plain)


def test_changes_of_norms_biases_and_modulation_arrive_and_go(
    scene: Scene, plain: torch.Tensor
) -> None:
    generator = torch.Generator().manual_seed(2)
    base, edited = model.load_base(BASE), model.load_base(BASE)
    patches = {}
    for name in ("modulation", "norm3.weight", "self_attn.q.bias", "cross_attn.norm_k.weight"):
        key = f"diffusion_model.blocks.0.{name}"
        weight = comfy.utils.get_attr(edited.model, key)
        change = 0.3 * torch.randn(weight.shape, generator=generator)
        patches[key] = ("diff", (change,))
        comfy.utils.set_attr_param(edited.model, key, weight.float() + change)
    patched = base.clone()
    assert len(patched.add_patches(patches)) == 4
    ours = scene.sample(patched)
    assert distance(ours, plain) > 0.01
    assert distance(ours, scene.sample(edited)) < 1e-6
    assert torch.equal(scene.sample(base), plain)


@pytest.mark.parametrize("kind", ["plain", "not dynamic", "deep"])
def test_clone_carries_the_lora_and_shares_the_bytes(
    scene: Scene, base: Any, changed: torch.Tensor, kind: str
) -> None:
    patched = with_lora(base)
    known = inspect.signature(comfy.model_patcher.ModelPatcher.clone).parameters
    if kind == "deep" and "force_deepcopy" not in known:
        pytest.skip("This ComfyUI makes no deep copies of a MODEL; get ComfyUI 0.33 or later")
    options = {"plain": {}, "not dynamic": {"disable_dynamic": True}}
    clone = patched.clone(**options.get(kind, {"force_deepcopy": True}))
    assert torch.equal(scene.sample(clone), changed)
    assert weight_of(clone).data_ptr() == weight_of(patched).data_ptr()
    assert clone.model_size() == patched.model_size()
    assert (clone.model is not patched.model) == (kind == "deep")


def test_quantised_model_cannot_be_merged_or_saved(base: Any) -> None:
    with pytest.raises(InputError, match=r"A quantised MODEL cannot be merged into another\."):
        ModelMergeSimple().merge(base, base, 0.5)
    with pytest.raises(InputError, match=r"A quantised MODEL cannot be saved\."):
        ModelSave().save(base, "model")
    output = Path(folder_paths.get_output_directory())
    assert not [path for path in output.rglob("*") if path.is_file()]


def test_model_as_lora_cannot_change_a_quantised_model(scene: Scene, base: Any) -> None:
    weights = comfy.hooks.get_patch_weights_from_model(base)
    hook = comfy.hooks.create_hook_model_as_lora(weights, None, 1.0, 0.0)
    positive, negative, latent = scene.conditions
    said = r"Create Hook Model as LoRA cannot change a quantised MODEL\."
    with pytest.raises(InputError, match=said):
        scene.sample(base, conditions=(hooked(positive, hook), negative, latent))


def drawn(*shape: int, seed: int) -> torch.Tensor:
    """Draw normal numbers."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def adapter(rank: int, *, alpha: float | None = None, dora: Any = None) -> LoRAAdapter:
    """Draw a LoRA of a weight of 24 x 16 numbers."""
    up, down = drawn(24, rank, seed=rank), drawn(rank, 16, seed=rank + 10)
    return LoRAAdapter(set(), (up.half(), down.half(), alpha, None, dora, None))


def patch(
    change: Any, *, strength: float = 0.5, model: float = 1.0, offset: Any = None, then: Any = None
) -> tuple[Any, ...]:
    """Give a patch as ComfyUI keeps them."""
    return (strength, change, model, offset, then)


PLAIN = [patch(adapter(4)), patch(adapter(2, alpha=1.0), strength=-2.0)]
PATCHES: dict[str, list[tuple[Any, ...]]] = {
    "plain": PLAIN,
    "difference": [*PLAIN, patch((drawn(24, 16, seed=1),))],
    "dora": [*PLAIN, patch(adapter(3, dora=drawn(24, 1, seed=2).abs()))],
    "part": [*PLAIN, patch(adapter(3), offset=(0, 0, 24))],
    "function": [*PLAIN, patch(adapter(3), then=torch.neg)],
    "model": [*PLAIN, patch(adapter(3), model=0.5)],
}


@pytest.mark.parametrize("kind", PATCHES)
def test_lora_arithmetic_is_comfyuis(kind: str) -> None:
    """Plain LoRAs are one product; ComfyUI computes all others."""
    patches, weight = PATCHES[kind], drawn(24, 16, seed=3)
    expected = comfy.lora.calculate_weight(patches, weight.clone(), "key")
    ours = lora.LayerLora("key", patches).change(weight.clone(), keep=kind == "plain")
    assert distance(ours, expected) < 1e-6
    assert (lora._plain_factors(patches, weight) is not None) == (kind == "plain")


def test_lora_of_another_shape_adds_nothing() -> None:
    shapes = (torch.ones(9, 2), torch.ones(2, 16))
    patches, weight = [patch(LoRAAdapter(set(), (*shapes, *[None] * 4)))], drawn(24, 16, seed=3)
    ours = lora.LayerLora("key", patches).change(weight.clone(), keep=False)
    assert distance(ours, weight) < 1e-6
    assert lora._plain_factors(patches, weight) is None
