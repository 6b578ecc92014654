"""What nodes of ComfyUI do to a MODEL, done to ours and to ComfyUI's own Wan."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from scene import ADAPTER, BASE, CPU, Scene, comfyui_wan, distance

# isort: split
import comfy.conds
import comfy.context_windows
import comfy.ldm.modules.attention
import torch
import torch._dynamo
import torch.nn.functional as functional
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

Change = Callable[[Any], Any]


def changes() -> dict[str, Change]:
    """Give what is done to a MODEL, by name."""
    return {
        "nothing": lambda patcher: patcher,
        "shift": lambda patcher: ModelSamplingSD3().patch(patcher, 2.0)[0],
        "scale rope": lambda patcher: ScaleROPE.execute(
            patcher, scale_x=0.5, shift_x=1.0, scale_y=1.0, shift_y=0.0, scale_t=2.0, shift_t=3.0
        ).args[0],
        "skip layer guidance": lambda patcher: SkipLayerGuidanceDiT.execute(
            patcher, scale=2.0, start_percent=0.0, end_percent=1.0, double_layers="1"
        ).args[0],
        "attention override": override_attention,
        "attn1_patch": lambda patcher: patched(patcher, "attn1_patch", lambda a: a["x"] * 0.5),
        "attn1_patch q k": lambda patcher: patched(
            patcher, "attn1_patch", lambda a: a["x"] + (a["q"] * a["k"]).flatten(2)
        ),
        "attn2_patch": lambda patcher: patched(patcher, "attn2_patch", by_block),
        "double_block": lambda patcher: patched(patcher, "double_block", after_block),
        "block replace": replace_block,
        "unet function wrapper": wrap_unet,
        "easy cache": lambda patcher: EasyCacheNode.execute(patcher, 3.0, 0.0, 1.0, False).args[0],
        "lazy cache": lambda patcher: LazyCacheNode.execute(patcher, 3.0, 0.0, 1.0, False).args[0],
    }


def patched(patcher: Any, name: str, patch: Callable[[dict[str, Any]], Any]) -> Any:
    """Clone with a patch of this name."""
    clone = patcher.clone()
    clone.set_model_patch(patch, name)
    return clone


def by_block(args: dict[str, Any]) -> torch.Tensor:
    """A patch that reads what Wan tells its patches."""
    options = args["transformer_options"]
    share = (options["block_index"] + 1) / options["total_blocks"] / options["grid_sizes"][1]
    x: torch.Tensor = args["x"] * (1 + share)
    return x


def after_block(args: dict[str, Any]) -> dict[str, Any]:
    """A patch after a block that uses all it is given."""
    embedded = args["vec"].flatten(1).unsqueeze(1)
    pull = args["x"].mean() + embedded * (args["block_index"] + 1)
    return {"img": args["img"] + 0.1 * pull + args["img_offset"]}


def override_attention(patcher: Any) -> Any:
    """Clone whose attention looks less sharply."""

    def override(function: Any, q: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        return function(q * 0.5, *args, **kwargs)

    return with_attention(patcher, override)


def with_attention(patcher: Any, override: Callable[..., torch.Tensor]) -> Any:
    """Clone with an attention override."""
    clone = patcher.clone()
    clone.model_options["transformer_options"]["optimized_attention_override"] = override
    return clone


def torch_attention(_function: Any, *tensors: torch.Tensor, **_options: Any) -> torch.Tensor:
    """Attention by torch alone, which can be traced and runs on the meta device."""
    *qkv, heads = tensors[:4]
    q, k, v = (x.unflatten(2, (heads, -1)).transpose(1, 2) for x in qkv)
    return functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)


def replace_block(patcher: Any) -> Any:
    """Clone whose second block is run on other tokens and context."""
    clone = patcher.clone()

    def replace(args: dict[str, Any], extra: dict[str, Any]) -> Any:
        given = {**args, "img": args["img"] * 1.1, "txt": args["txt"] * 0.9}
        return extra["original_block"](given)

    clone.set_model_patch_replace(replace, "dit", "double_block", 1)
    return clone


def wrap_unet(patcher: Any) -> Any:
    """Clone whose model is called by a wrapper."""
    clone = patcher.clone()
    clone.set_model_unet_function_wrapper(
        lambda call, args: call(args["input"], args["timestep"], **args["c"]) * 0.9
    )
    return clone


def hooks(scene: Scene) -> dict[str, Any]:
    """Each change on our MODEL against the same on ComfyUI's, and how much it changes."""
    ours, theirs = model.load_base(BASE), comfyui_wan()
    steps = {"easy cache": 6, "lazy cache": 6}
    known = 'patches["double_block"]' in inspect.getsource(WanModel.forward_orig)
    plain = {count: scene.sample(ours, steps=count) for count in (3, 6)}
    result = {}
    for name, change in changes().items():
        count = steps.get(name, 3)
        mine = scene.sample(change(ours), steps=count)
        result[name] = {
            "against_comfyui": distance(mine, scene.sample(change(theirs), steps=count)),
            "effect": distance(mine, plain[count]),
            "known": known or name != "double_block",
        }
    return result


def custom_sampling(scene: Scene) -> dict[str, Any]:
    """SamplerCustomAdvanced with the settings of the scene's KSampler."""
    base = model.load_base(BASE)
    positive, negative, latent = scene.conditions
    result = SamplerCustomAdvanced.execute(
        RandomNoise.execute(0).args[0],
        CFGGuider.execute(base, positive, negative, 3.0).args[0],
        KSamplerSelect.execute("euler").args[0],
        BasicScheduler.execute(base, "simple", 3, 1.0).args[0],
        latent,
    ).args
    return {"equal": torch.equal(result[0]["samples"], scene.sample(base))}


def context_windows(_scene: Scene) -> dict[str, Any]:
    """Context windows of 9 frames over 17 against ComfyUI's Wan; the voices cut to a window."""
    scene = Scene(length=17)
    ours, theirs = model.load_base(BASE), comfyui_wan()
    known = inspect.signature(WanContextWindowsManualNode.execute).parameters

    def windowed(patcher: Any) -> Any:
        options = {"freenoise": False}
        if "retain_first_frame" in known:
            options["retain_first_frame"] = True
        return WanContextWindowsManualNode.execute(
            patcher, 9, 4, "standard_static", 1, False, "pyramid", **options
        ).args[0]

    mine = scene.sample(windowed(ours))
    window = comfy.context_windows.IndexListContextWindow([2, 3, 4], dim=2, total_frames=5)
    x = torch.zeros(1, 16, 5, 8, 10)
    # 5 audio tokens a frame and 5 frames: ComfyUI's own rule would cut the tokens.
    audio = torch.arange(25.0).view(1, 5, 5, 1)
    masks = torch.arange(15.0).view(1, 3, 5)
    cut = {
        name: ours.model.resize_cond_for_context_window(name, value, window, x, CPU)
        for name, value in {
            "audio": comfy.conds.CONDRegular(audio),
            "token_masks": comfy.conds.CONDConstant(masks),
        }.items()
    }
    return {
        "against_comfyui": distance(mine, scene.sample(windowed(theirs))),
        "effect": distance(mine, scene.sample(ours)),
        "audio_follows": torch.equal(cut["audio"].cond, audio[:, 2:]),
        "masks_stay": torch.equal(cut["token_masks"].cond, masks),
    }


def attention_choice(scene: Scene) -> dict[str, Any]:
    """Whose attention is called where nobody has chosen, and where somebody has."""
    ways, seen, comfyui = comfy.ldm.modules.attention, [], []

    def ours(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        seen.append(q.shape[1])
        return attend(q, k, v)

    base = model.load_base(BASE)
    net = model.transformer_of(base)
    usual, chosen, torchs = net.attention, ways.optimized_attention, ways.attention_pytorch

    def comfyuis(*args: Any, **kwargs: Any) -> torch.Tensor:
        comfyui.append(args[0].shape)
        return torchs(*args, **kwargs)

    ways.attention_pytorch = comfyuis
    net.attention = ours
    calls, outputs = {}, {}
    try:
        for name, way, patcher in (
            ("nobody", comfyuis, base),
            ("server", ways.attention_sub_quad, base),
            ("node", comfyuis, with_attention(base, torch_attention)),
        ):
            seen.clear()
            ways.optimized_attention = way
            outputs[name] = scene.sample(patcher)
            calls[name] = len(seen)
            if name == "nobody":
                calls["comfyui"] = len(comfyui)  # neither for text, photo and voices
    finally:
        ways.optimized_attention, ways.attention_pytorch = chosen, torchs
    return {
        "usual": usual is backends.torch_attention,
        "calls": calls,
        "blocks": len(net.blocks),
        "distance": max(distance(one, outputs["nobody"]) for one in outputs.values()),
    }


def compiled(scene: Scene) -> dict[str, Any]:
    """The whole network, and its blocks alone, traced as TorchCompileModel does."""
    # ComfyUI's attention for the CPU looks for free memory, where no tracer can follow.
    base = with_attention(model.load_base(BASE), torch_attention)
    plain = scene.sample(base)
    traced: list[int] = []

    def backend(graph: Any, _inputs: Any) -> Any:
        traced.append(1)
        return graph.forward

    result: dict[str, Any] = {}
    blocks = [f"diffusion_model.blocks.{i}" for i in range(len(base.model.diffusion_model.blocks))]
    for name, keys in {"whole": ["diffusion_model"], "blocks": blocks}.items():
        traced.clear()
        torch._dynamo.reset()
        clone = base.clone(disable_dynamic=True)
        set_torch_compile_wrapper(clone, backend=backend, keys=keys)
        result[name] = {"distance": distance(scene.sample(clone), plain), "graphs": len(traced)}
    result["restored"] = torch.equal(scene.sample(base), plain)
    return result


def foreign_conditions(scene: Scene) -> dict[str, Any]:
    """What a conditioning without picture tokens, or of another Wan model, is told."""
    base = model.load_base(BASE)
    positive, negative, latent = scene.conditions
    said = {}
    for name, change in {
        "no picture": {"clip_vision_output": None},
        "other model": {"time_dim_concat": torch.zeros(1, 16, 1, 8, 10)},
    }.items():
        changed = [
            [[tokens, {**told, **change}] for tokens, told in one] for one in (positive, negative)
        ]
        try:
            scene.sample(base, conditions=(*changed, latent))
        except InputError as error:
            said[name] = str(error)
    return said


def talking(scene: Scene) -> dict[str, Any]:
    """A MODEL with the adapter in KSampler, without voices."""
    base = model.load_base(BASE)
    both = model.load_adapter(base, ADAPTER)
    return {"equal": torch.equal(scene.sample(both), scene.sample(base))}


PARTS = {
    "hooks": hooks,
    "custom_sampling": custom_sampling,
    "context_windows": context_windows,
    "attention_choice": attention_choice,
    "compiled": compiled,
    "foreign_conditions": foreign_conditions,
    "talking": talking,
}
