"""Our MODEL in ComfyUI's samplers: as ComfyUI's own Wan, whatever its nodes do to it.

Samples are compared by relative norm in float32.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import comfy.conds
import comfy.context_windows
import comfy.ldm.modules.attention as ways
import comfy.model_management
import pytest
import torch
import torch._dynamo
from comfy.ldm.wan.model import WanModel
from comfy_api.torch_helpers import set_torch_compile_wrapper
from comfy_extras.nodes_context_windows import WanContextWindowsManualNode
from comfy_extras.nodes_custom_sampler import (
    BasicScheduler,
    CFGGuider,
    KSamplerSelect,
    RandomNoise,
    SamplerCustomAdvanced,
)
from comfy_extras.nodes_easycache import EasyCacheNode, LazyCacheNode
from comfy_extras.nodes_model_advanced import ModelSamplingSD3
from comfy_extras.nodes_rope import ScaleROPE
from comfy_extras.nodes_slg import SkipLayerGuidanceDiT

from comfyui_multitalk.multitalk_core.errors import InputError
from comfyui_multitalk.multitalk_core.model import backends
from comfyui_multitalk.multitalk_core.model.attention import attend
from comfyui_multitalk.nodes.host import model
from comfyui_multitalk.nodes.host.layers import HostOps, adopt
from comfyui_multitalk.tests.host.inside.scene import (
    ADAPTER,
    BASE,
    CPU,
    Scene,
    distance,
    torch_attention,
    weight_of,
    with_attention,
)
from comfyui_multitalk.wan_gguf_loader.ops import GGUFOps

Change = Callable[[Any], Any]


def by_block(args: dict[str, Any]) -> torch.Tensor:
    """Patch by what Wan tells its patches."""
    options = args["transformer_options"]
    share = (options["block_index"] + 1) / options["total_blocks"] / options["grid_sizes"][1]
    x: torch.Tensor = args["x"] * (1 + share)
    return x


def after_block(args: dict[str, Any]) -> dict[str, Any]:
    """Patch after a block, by all that is given."""
    embedded = args["vec"].flatten(1).unsqueeze(1)
    pull = args["x"].mean() + embedded * (args["block_index"] + 1)
    return {"img": args["img"] + 0.1 * pull + args["img_offset"]}


def less_sharply(function: Any, q: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
    """Attend less sharply."""
    return function(q * 0.5, *args, **kwargs)


def patched(name: str, patch: Callable[[dict[str, Any]], Any]) -> Change:
    """Give the change that sets a patch of this name."""

    def change(patcher: Any) -> Any:
        clone = patcher.clone()
        clone.set_model_patch(patch, name)
        return clone

    return change


def replace_block(patcher: Any) -> Any:
    """Run the second block on other tokens and context."""
    clone = patcher.clone()

    def replace(args: dict[str, Any], extra: dict[str, Any]) -> Any:
        given = {**args, "img": args["img"] * 1.1, "txt": args["txt"] * 0.9}
        return extra["original_block"](given)

    clone.set_model_patch_replace(replace, "dit", "double_block", 1)
    return clone


def wrap_unet(patcher: Any) -> Any:
    """Call the model by a wrapper."""
    clone = patcher.clone()
    clone.set_model_unet_function_wrapper(
        lambda call, args: call(args["input"], args["timestep"], **args["c"]) * 0.9
    )
    return clone


CHANGES: dict[str, Change] = {
    "shift": lambda patcher: ModelSamplingSD3().patch(patcher, 2.0)[0],
    "scale rope": lambda patcher: ScaleROPE.execute(
        patcher, scale_x=0.5, shift_x=1.0, scale_y=1.0, shift_y=0.0, scale_t=2.0, shift_t=3.0
    ).args[0],
    "skip layer guidance": lambda patcher: SkipLayerGuidanceDiT.execute(
        patcher, scale=2.0, start_percent=0.0, end_percent=1.0, double_layers="1"
    ).args[0],
    "attention override": lambda patcher: with_attention(patcher, less_sharply),
    "attn1_patch": patched("attn1_patch", lambda args: args["x"] * 0.5),
    "attn1_patch q k": patched(
        "attn1_patch", lambda args: args["x"] + (args["q"] * args["k"]).flatten(2)
    ),
    "attn2_patch": patched("attn2_patch", by_block),
    "double_block": patched("double_block", after_block),
    "block replace": replace_block,
    "unet function wrapper": wrap_unet,
    "easy cache": lambda patcher: EasyCacheNode.execute(patcher, 3.0, 0.0, 1.0, False).args[0],
    "lazy cache": lambda patcher: LazyCacheNode.execute(patcher, 3.0, 0.0, 1.0, False).args[0],
}


def test_model_in_ksampler_matches_comfyuis_own_wan(
    scene: Scene, plain: torch.Tensor, theirs: Any
) -> None:
    assert distance(plain, scene.sample(theirs)) < 1e-4


@pytest.mark.parametrize("name", CHANGES)
def test_change_of_the_model_acts_as_on_comfyuis_wan(
    scene: Scene, base: Any, theirs: Any, name: str
) -> None:
    if name == "double_block" and f'patches["{name}"]' not in inspect.getsource(
        WanModel.forward_orig
    ):
        pytest.skip(f"The Wan model of this ComfyUI calls no {name}; get ComfyUI 0.33 or later")
    steps = 6 if "cache" in name else 3
    changed = scene.sample(CHANGES[name](base), steps=steps)
    assert distance(changed, scene.sample(base, steps=steps)) > 1e-3
    assert distance(changed, scene.sample(CHANGES[name](theirs), steps=steps)) < 1e-4


def test_sampler_custom_advanced_gives_what_ksampler_gives(
    scene: Scene, base: Any, plain: torch.Tensor
) -> None:
    positive, negative, latent = scene.conditions
    out, _ = SamplerCustomAdvanced.execute(
        RandomNoise.execute(0).args[0],
        CFGGuider.execute(base, positive, negative, 3.0).args[0],
        KSamplerSelect.execute("euler").args[0],
        BasicScheduler.execute(base, "simple", 3, 1.0).args[0],
        latent,
    ).args
    assert torch.equal(out["samples"], plain)


def test_model_holds_packed_bytes(base: Any) -> None:
    assert weight_of(base).dtype is torch.uint8


def test_model_with_adapter_samples_without_voices_as_the_base(
    scene: Scene, adapted: Any, plain: torch.Tensor
) -> None:
    assert torch.equal(scene.sample(adapted), plain)


def test_adapter_shares_the_bases_memory(base: Any, adapted: Any) -> None:
    assert weight_of(base).data_ptr() == weight_of(adapted).data_ptr()


def test_model_of_another_loader_is_refused_with_the_fix(theirs: Any) -> None:
    with pytest.raises(InputError, match=r"Load the base with Load Wan2\.1 \(GGUF\)"):
        model.transformer_of(theirs)


def windowed(patcher: Any) -> Any:
    """Sample in context windows of 9 frames."""
    known = inspect.signature(WanContextWindowsManualNode.execute).parameters
    options = {"freenoise": False}
    if "retain_first_frame" in known:
        options["retain_first_frame"] = True
    return WanContextWindowsManualNode.execute(
        patcher, 9, 4, "standard_static", 1, False, "pyramid", **options
    ).args[0]


def test_context_windows_act_as_on_comfyuis_wan(base: Any, theirs: Any) -> None:
    scene = Scene(length=17)
    ours = scene.sample(windowed(base))
    assert distance(ours, scene.sample(base)) > 1e-3
    assert distance(ours, scene.sample(windowed(theirs))) < 1e-4


def test_voices_follow_a_context_window_and_masks_stay(base: Any) -> None:
    window = comfy.context_windows.IndexListContextWindow([2, 3, 4], dim=2, total_frames=5)
    x = torch.zeros(1, 16, 5, 8, 10)
    # 5 audio tokens a frame and 5 frames: ComfyUI's own rule would cut the tokens.
    audio = torch.arange(25.0).view(1, 5, 5, 1)
    masks = torch.arange(15.0).view(1, 3, 5)
    cut = base.model.resize_cond_for_context_window
    heard = cut("audio", comfy.conds.CONDRegular(audio), window, x, CPU)
    shown = cut("token_masks", comfy.conds.CONDConstant(masks), window, x, CPU)
    assert torch.equal(heard.cond, audio[:, 2:])
    assert torch.equal(shown.cond, masks)


@pytest.mark.parametrize("part", ["whole", "blocks"])
def test_torch_compile_takes_the_model_in_one_graph_and_leaves_it_as_it_was(
    scene: Scene, base: Any, part: str
) -> None:
    # ComfyUI's attention for the CPU looks for free memory, where no tracer can follow.
    traceable = with_attention(base, torch_attention)
    expected = scene.sample(traceable)
    traced = []

    def backend(graph: Any, _inputs: Any) -> Any:
        traced.append(graph)
        return graph.forward

    torch._dynamo.reset()
    clone = traceable.clone(disable_dynamic=True)
    blocks = range(len(base.model.diffusion_model.blocks))
    keys = {
        "whole": ["diffusion_model"],
        "blocks": [f"diffusion_model.blocks.{i}" for i in blocks],
    }
    set_torch_compile_wrapper(clone, backend=backend, keys=keys[part])
    assert distance(scene.sample(clone), expected) < 1e-5
    assert len(traced) == 1  # the blocks are traced once for all
    assert torch.equal(scene.sample(traceable), expected)


def test_attention_is_ours_only_where_nobody_has_chosen(
    scene: Scene, monkeypatch: pytest.MonkeyPatch, plain: torch.Tensor
) -> None:
    base = model.load_base(BASE)
    net = model.transformer_of(base)
    assert net.attention is backends.torch_attention  # the usual one without a card
    ours, comfyuis = [], []
    torchs = ways.attention_pytorch

    def our_attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        ours.append(q.shape[1])
        return attend(q, k, v)

    def comfyuis_attention(*args: Any, **kwargs: Any) -> torch.Tensor:
        comfyuis.append(args[0].shape)
        return torchs(*args, **kwargs)

    net.attention = our_attention
    monkeypatch.setattr(ways, "attention_pytorch", comfyuis_attention)
    monkeypatch.setattr(ways, "optimized_attention", comfyuis_attention)
    by_nobody = scene.sample(base)
    assert len(ours) >= len(net.blocks)
    assert not comfyuis  # nor for text, photo and voices
    ours.clear()
    by_node = scene.sample(with_attention(base, torch_attention))
    monkeypatch.setattr(ways, "optimized_attention", ways.attention_sub_quad)
    by_server = scene.sample(base)
    assert not ours
    for samples in (by_node, by_server):
        assert distance(samples, by_nobody) < 1e-5


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"clip_vision_output": None}, ["Encode the photo with CLIP Vision Encode"]),
        (
            {"time_dim_concat": torch.zeros(1, 16, 1, 8, 10)},
            ["time_dim_concat", "WanImageToVideo"],
        ),
    ],
    ids=["no picture", "other model"],
)
def test_conditioning_that_does_not_fit_is_refused_with_the_fix(
    scene: Scene, base: Any, change: dict[str, Any], said: list[str]
) -> None:
    *prompts, latent = scene.conditions
    changed = [[[tokens, {**told, **change}] for tokens, told in one] for one in prompts]
    with pytest.raises(InputError) as refused:
        scene.sample(base, conditions=(*changed, latent))
    assert all(part in str(refused.value) for part in said)


def test_interrupt_stops_between_two_blocks(scene: Scene) -> None:
    base = model.load_base(BASE)
    blocks = base.model.diffusion_model.blocks
    ended = []

    def cancel(*_: Any) -> None:
        ended.append(1)
        comfy.model_management.interrupt_current_processing()

    for block in blocks:
        block.register_forward_hook(cancel)
    with pytest.raises(comfy.model_management.InterruptProcessingException):
        scene.forward_loaded(base)
    assert len(ended) == 1 < len(blocks)


def test_int8_layers_are_those_of_the_command() -> None:
    tokens = torch.randn(1, 1024, 64, generator=torch.Generator().manual_seed(0)).bfloat16()
    weight, bias = torch.randn(48, 64), torch.randn(48)
    outputs = {}
    for make in (HostOps, GGUFOps):
        for precision in ("int8", "exact"):
            layer = make(precision=precision).Linear(64, 48)
            layer.store_weight(weight, "F32")
            layer.bias = bias
            if make is HostOps:
                adopt(torch.nn.Sequential(layer))
            outputs[make, precision] = layer(tokens)
    assert torch.equal(outputs[HostOps, "int8"], outputs[GGUFOps, "int8"])
    assert 0.001 < distance(outputs[HostOps, "int8"], outputs[HostOps, "exact"]) < 0.02


def test_int8_of_the_base_is_that_of_the_adapter_too() -> None:
    base = model.load_base(BASE)
    model.transformer_of(base).precision = "int8"
    net = model.transformer_of(model.load_adapter(base, ADAPTER))
    assert net.blocks[0].audio_cross_attn.proj.precision == "int8"


def test_int8_layers_are_given_tensors_which_bypass_loras_read() -> None:
    assert HostOps(precision="int8").feed is None


def test_int8_is_refused_where_comfyui_computes_in_float32() -> None:
    with pytest.raises(InputError, match="Choose the precision exact"):
        model.load_base(BASE, precision="int8")
