"""LoRAs of ComfyUI on packed weights: figures against bf16, hooks, clones, what is refused."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

from scene import ADAPTER, BASE, KEY, SCRATCH, TINY, Scene, comfyui_wan, distance

# isort: split
import comfy.hooks
import comfy.lora
import comfy.sd
import comfy.utils
import torch
from comfy.weight_adapter.lora import LoRAAdapter
from comfy_extras.nodes_model_merging import ModelMergeSimple, ModelSave
from safetensors.torch import save_file

from comfyui_multitalk.dev.tiny import wan
from comfyui_multitalk.multitalk_core.errors import InputError
from comfyui_multitalk.nodes.host import lora, model
from comfyui_multitalk.tools.convert import convert

SEED = 11


def load_lora(name: str = "lora_tiny") -> dict[str, torch.Tensor]:
    """Read the tiny set's LoRA; `second` is another one, drawn now."""
    if name == "second":
        base, _ = wan.base_and_adapter(seed=SEED)
        return wan.lora(base, seed=SEED + 1)
    file: dict[str, torch.Tensor] = comfy.utils.load_torch_file(str(TINY / f"{name}.safetensors"))
    return file


def with_lora(patcher: Any, strength: float = 1.0, name: str = "lora_tiny") -> Any:
    """Give a clone with a LoRA, as LoraLoaderModelOnly does."""
    return comfy.sd.load_lora_for_models(patcher, None, load_lora(name), strength, 0.0)[0]


def quantised_bases() -> dict[str, Path]:
    """Write one base as bf16, Q8_0 and Q4_K."""
    weights, _ = wan.base_and_adapter(seed=SEED)
    plain = SCRATCH / "figures.safetensors"
    heads = {"num_heads": str(wan.CONFIG.num_heads)}
    save_file({k: v.bfloat16().contiguous() for k, v in weights.items()}, plain, heads)
    bases = {"bf16": plain}
    for type in ("Q8_0", "Q4_K"):
        bases[type] = SCRATCH / f"figures-{type}.gguf"
        convert(plain, bases[type], type=type, num_heads=wan.CONFIG.num_heads)
    return bases


def figures(scene: Scene) -> dict[str, Any]:
    """The effect of a LoRA on quantised weights against its effect on bf16."""
    outputs, weights = {}, {}
    bases = quantised_bases()
    for type, path in bases.items():
        base = model.load_base(path)
        weights[type] = weight_change(base)
        outputs[type] = scene.sample(base), scene.sample(with_lora(base))
    plain, changed = outputs.pop("bf16")
    result = {}
    for type, (without, with_it) in outputs.items():
        error = (with_it - without) - (changed - plain)
        result[type] = {
            "effect": distance(changed, plain),
            "quantisation_error": distance(without, plain),
            "effect_error": float(error.norm() / plain.norm()),
            "cosine": float(
                torch.cosine_similarity(
                    (with_it - without).flatten(), (changed - plain).flatten(), dim=0
                )
            ),
            "weight_change": distance(weights[type], exact_change()),
            "packed": comfy.utils.get_attr(model.load_base(bases[type]).model, KEY).dtype
            is torch.uint8,
        }
    return result


def weight_change(base: Any) -> torch.Tensor:
    """Give what a LoRA adds to the first layer as it multiplies: its answer to the identity."""
    layer = base.model.diffusion_model.blocks[0].self_attn.q
    unit = torch.eye(layer.in_features)
    answers = []
    for patcher in (base, with_lora(base)):
        comfy.model_management.load_models_gpu([patcher])
        answers.append(layer(unit))
    return answers[1] - answers[0]


def exact_change() -> torch.Tensor:
    """Give what the LoRA file says of the same layer, transposed as its answer to the identity."""
    up, down = (
        load_lora()[f"diffusion_model.blocks.0.self_attn.q.lora_{part}.weight"].float()
        for part in "BA"
    )
    return (up @ down).T


def several(scene: Scene) -> dict[str, Any]:
    """Two LoRAs, strength zero, removal, and the way through adapter and bypass."""
    base = model.load_base(BASE)
    before = {name: value.clone() for name, value in base.model.state_dict().items()}
    plain, one = scene.sample(base), scene.sample(with_lora(base))
    both = with_lora(with_lora(base), -0.6, "second")
    theirs = with_lora(with_lora(comfyui_wan()), -0.6, "second")
    mine = scene.sample(both)
    zero = scene.sample(with_lora(with_lora(base, 0.0), 0.0, "second"))
    bypass, _ = comfy.sd.load_bypass_lora_for_models(base, None, load_lora(), 1.0, 0.0)
    bypassed = scene.sample(bypass)
    again = scene.sample(with_lora(base))
    return {
        "second_adds": distance(mine, one),
        "against_comfyui": distance(mine, scene.sample(theirs)),
        "zero": torch.equal(zero, plain),
        "bypass": distance(bypassed, one),
        "again": torch.equal(again, one),
        "restored": torch.equal(scene.sample(base), plain),
        "talking_restored": torch.equal(scene.sample(model.load_adapter(base, ADAPTER)), plain),
        "bytes_unchanged": all(
            torch.equal(before[n], v) for n, v in base.model.state_dict().items()
        ),
    }


def hooked(conditioning: Any, *, strength: float = 1.0, name: str = "lora_tiny") -> Any:
    """Give a conditioning the hook of Create Hook LoRA."""
    hooks = comfy.hooks.create_hook_lora(load_lora(name), strength, 0.0)
    return comfy.hooks.set_conds_props(
        conds=[conditioning], strength=1.0, set_cond_area="default", hooks=hooks
    )[0]


def hooks(scene: Scene) -> dict[str, Any]:
    """LoRA hooks on conditionings: against the LoRA itself and against ComfyUI's own Wan."""
    base, theirs = model.load_base(BASE), comfyui_wan()
    plain, static = scene.sample(base), scene.sample(with_lora(base))
    positive, negative, latent = scene.conditions
    conditions: dict[str, Any] = {
        "positive": (hooked(positive), negative, latent),
        "each its own": (hooked(positive), hooked(negative, name="second"), latent),
    }
    shared = comfy.hooks.create_hook_lora(load_lora(), 1.0, 0.0)
    same = tuple(
        comfy.hooks.set_conds_props(
            conds=[one], strength=1.0, set_cond_area="default", hooks=shared
        )[0]
        for one in (positive, negative)
    )
    result: dict[str, Any] = {
        "both": distance(scene.sample(base, conditions=(*same, latent)), static),
        "on_top": distance(
            scene.sample(with_lora(base, 0.5), conditions=(*same, latent)),
            scene.sample(with_lora(base, 1.5)),
        ),
    }
    for name, one in conditions.items():
        mine = scene.sample(base, conditions=one)
        result[name] = {
            "effect": distance(mine, plain),
            "against_comfyui": distance(mine, scene.sample(theirs, conditions=one)),
        }
    result["restored"] = torch.equal(scene.sample(base), plain)
    return result


def plain_parts(scene: Scene) -> dict[str, Any]:
    """Differences of norms, biases and modulation, which are no packed weights."""
    generator = torch.Generator().manual_seed(2)
    base, edited = model.load_base(BASE), model.load_base(BASE)
    before = scene.sample(base)
    patches = {}
    for name in ("modulation", "norm3.weight", "self_attn.q.bias", "cross_attn.norm_k.weight"):
        key = f"diffusion_model.blocks.0.{name}"
        weight = comfy.utils.get_attr(edited.model, key)
        change = 0.3 * torch.randn(weight.shape, generator=generator)
        patches[key] = ("diff", (change,))
        comfy.utils.set_attr_param(edited.model, key, weight.float() + change)
    changed = base.clone()
    added = changed.add_patches(patches)
    return {
        "added": len(added),
        "effect": distance(scene.sample(changed), before),
        "against_edited": distance(scene.sample(changed), scene.sample(edited)),
        "restored": torch.equal(scene.sample(base), before),
    }


def clones(scene: Scene) -> dict[str, Any]:
    """Clones of a MODEL with a LoRA, those that are models of their own too."""
    patched = with_lora(model.load_base(BASE))
    expected = scene.sample(patched)
    variants: dict[str, Callable[[], Any]] = {
        "plain": patched.clone,
        "not dynamic": lambda: patched.clone(disable_dynamic=True),
    }
    if "force_deepcopy" in inspect.signature(type(patched).__mro__[2].clone).parameters:
        variants["deep"] = lambda: patched.clone(force_deepcopy=True)
    result: dict[str, Any] = {}
    for name, make in variants.items():
        clone = make()
        mine, theirs = (comfy.utils.get_attr(one.model, KEY) for one in (clone, patched))
        result[name] = {
            "equal": torch.equal(scene.sample(clone), expected),
            "same_memory": mine.data_ptr() == theirs.data_ptr(),
            "own_model": clone.model is not patched.model,
            "size": clone.model_size() == patched.model_size(),
        }
    return result


def refused(scene: Scene) -> dict[str, Any]:
    """What quantised weights cannot take part in, and what is said."""
    base = model.load_base(BASE)
    positive, negative, latent = scene.conditions
    weights = comfy.hooks.get_patch_weights_from_model(base)
    as_lora = comfy.hooks.create_hook_model_as_lora(weights, None, 1.0, 0.0)
    with_model = comfy.hooks.set_conds_props(
        conds=[positive], strength=1.0, set_cond_area="default", hooks=as_lora
    )[0]
    attempts: dict[str, Callable[[], Any]] = {
        "merge": lambda: ModelMergeSimple().merge(base, base, 0.5),
        "save": lambda: ModelSave().save(base, "model"),
        "model as lora": lambda: scene.sample(base, conditions=(with_model, negative, latent)),
    }
    said: dict[str, Any] = {}
    for name, attempt in attempts.items():
        try:
            attempt()
        except InputError as error:
            said[name] = str(error)
    said["written"] = [str(p) for p in (SCRATCH / "output").rglob("*") if p.is_file()]
    return said


def arithmetic(_scene: Scene) -> dict[str, Any]:
    """Plain LoRAs by one product, and all else by ComfyUI, against ComfyUI patch by patch."""
    generator = torch.Generator().manual_seed(SEED)

    def adapter(rank: int, *, alpha: float | None = None, **others: Any) -> LoRAAdapter:
        up, down = (torch.randn(n, generator=generator) for n in ((24, rank), (rank, 16)))
        rest = (others.get("mid"), others.get("dora"), others.get("reshape"))
        return LoRAAdapter(set(), (up.half(), down.half(), alpha, *rest))

    def patch(one: Any, *, strength: float = 0.5, **others: Any) -> tuple[Any, ...]:
        given = {"strength_model": 1.0, "offset": None, "function": None} | others
        return (strength, one, given["strength_model"], given["offset"], given["function"])

    plain = [patch(adapter(4)), patch(adapter(2, alpha=1.0), strength=-2.0)]
    cases = {
        "plain": plain,
        "difference": [*plain, patch((torch.randn(24, 16, generator=generator),))],
        "dora": [*plain, patch(adapter(3, dora=torch.rand(24, 1, generator=generator)))],
        "part": [*plain, patch(adapter(3), offset=(0, 0, 24))],
        "function": [*plain, patch(adapter(3), function=torch.neg)],
        "model": [*plain, patch(adapter(3), strength_model=0.5)],
    }
    weight = torch.randn(24, 16, generator=generator)
    result = {}
    for name, patches in cases.items():
        expected = comfy.lora.calculate_weight(patches, weight.clone(), "key")
        changed = lora.LayerLora("key", patches).change(weight.clone(), keep=name == "plain")
        alone = lora._plain_factors(patches, weight) is not None
        result[name] = {"distance": distance(changed, expected), "one_product": alone}
    wrong = [
        patch(LoRAAdapter(set(), (torch.ones(9, 2), torch.ones(2, 16), None, None, None, None)))
    ]
    result["misfit"] = {
        "distance": distance(
            lora.LayerLora("key", wrong).change(weight.clone(), keep=False), weight
        ),
        "one_product": lora._plain_factors(wrong, weight) is not None,
    }
    return result


PARTS = {
    "lora_arithmetic": arithmetic,
    "figures": figures,
    "several": several,
    "lora_hooks": hooks,
    "plain_parts": plain_parts,
    "clones": clones,
    "refused": refused,
}
