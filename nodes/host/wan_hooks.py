"""Translates ComfyUI's transformer options into the transformer's hooks.

Nodes that patch ComfyUI's Wan model patch this pack's model at the same points, under the names of
comfy/ldm/wan/model.py:

- `optimized_attention_override`, and the attention backend that the server's flags choose;
- `patches`: `attn1_patch` after self-attention, `attn2_patch` after cross-attention to text and
  photo, `double_block` after a block;
- `patches_replace["dit"][("double_block", i)]` in place of block i;
- `rope_options`.

All patches can read `block_index`, `block_type`, `total_blocks` and `grid_sizes` in the options.
"""

from __future__ import annotations

from typing import Any

import comfy.ldm.modules.attention
import comfy.model_management
import torch
from torch import Tensor

from ...multitalk_core.model.attention import PLAIN, Attend, Attends
from ...multitalk_core.model.backends import torch_attention
from ...multitalk_core.model.hooks import BlockCall, Hooks
from ...multitalk_core.model.lrope import UNMOVED, Placement


def wan_hooks(
    transformer_options: dict[str, Any], *, x: Tensor, num_blocks: int, attention: Attend
) -> Hooks:
    """Make the hooks of one forward pass on `x` `(B, 36, F, h, w)`, h and w even.

    ComfyUI's options are not changed. All patches of the pass get the same copy, through which some
    of them exchange values. `attention` is the default backend of the video tokens.
    """
    frames, height, width = x.shape[2:]
    options = {
        **transformer_options,
        "grid_sizes": torch.Size((frames, height // 2, width // 2)),
        "total_blocks": num_blocks,
        "block_type": "double",
    }
    patches = options.get("patches", {})
    if _is_chosen(options):
        video = text = _attention(options)
        # As ComfyUI's Wan: low precision gains nothing with few keys, and can give NaN.
        precise = _attention(options, low_precision_attention=False)
    else:
        video, text = _uncompiled(attention), _uncompiled(torch_attention)
        precise = text
    pace = _Pace(x.device)
    return Hooks(
        attends=Attends(
            video=pace.marked(_patched(video, patches.get("attn1_patch", ()), options)),
            text=text,
            image=precise,
            audio=precise,
        ),
        after_context=_after_context(patches.get("attn2_patch", ()), options),
        around_block=_around_block(options, x, pace),
        placement=_placement(options.get("rope_options")),
    )


def _attention(options: dict[str, Any], **settings: bool) -> Attend:
    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        heads = q.shape[2]
        tokens: Tensor = comfy.ldm.modules.attention.optimized_attention(
            q.flatten(2), k.flatten(2), v.flatten(2), heads, transformer_options=options, **settings
        )
        return torch.unflatten(tokens, 2, (heads, -1))

    return attend


def _is_chosen(options: dict[str, Any]) -> bool:
    """Return whether to use ComfyUI's attention backend: a node or a flag chose one, or ROCm.

    ComfyUI's default is not used: it makes torch prefer the flash kernel, which on Hopper has 0.6
    of the rate of cuDNN.
    """
    ways = comfy.ldm.modules.attention
    if options.get("optimized_attention_override") is not None or torch.version.hip is not None:
        return True
    return ways.optimized_attention is not ways.attention_pytorch


def _uncompiled(attention: Attend) -> Attend:
    """Use torch's attention while torch compiles, which cannot trace the backend."""

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return (PLAIN.video if torch.compiler.is_compiling() else attention)(q, k, v)

    return attend


def _patched(attention: Attend, patches: Any, options: dict[str, Any]) -> Attend:
    if not patches:
        return attention

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        tokens = attention(q, k, v).flatten(2)
        for patch in patches:
            tokens = patch({"x": tokens, "q": q, "k": k, "transformer_options": options})
        return torch.unflatten(tokens, 2, (q.shape[2], -1))

    return attend


def _after_context(patches: Any, options: dict[str, Any]) -> Any:
    if not patches:
        return None

    def change(x: Tensor) -> Tensor:
        for patch in patches:
            x = patch({"x": x, "transformer_options": options})
        return x

    return change


class _Pace:
    """Limits the work queued on the GPU, so that Cancel takes effect within a block.

    Each block waits until the GPU has finished the self-attention of the block before; the queued
    cross-attention and feed-forward keep it busy meanwhile. Otherwise a second of work is queued.
    """

    def __init__(self, device: torch.device) -> None:
        self._on_gpu = device.type == "cuda"
        self._attended: torch.cuda.Event | None = None

    def marked(self, attention: Attend) -> Attend:
        """Return the attention with a CUDA event recorded after each call."""

        def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            tokens = attention(q, k, v)
            if self._on_gpu and not torch.compiler.is_compiling():
                self._attended = torch.cuda.current_stream(q.device).record_event()
            return tokens

        return attend if self._on_gpu else attention

    def wait(self) -> None:
        """Wait for the last event."""
        if self._attended is not None:
            self._attended.synchronize()


def _around_block(options: dict[str, Any], latents: Tensor, pace: _Pace) -> Any:
    replacements = options.get("patches_replace", {}).get("dit", {})
    patches = options.get("patches", {}).get("double_block", ())

    def run(call: BlockCall) -> Tensor:
        if not torch.compiler.is_compiling():
            pace.wait()
            comfy.model_management.throw_exception_if_processing_interrupted()
        options["block_index"] = call.index
        replace = replacements.get(("double_block", call.index))
        x = call() if replace is None else _replaced(replace, call, options)
        for patch in patches:
            # The next block overwrites its tokens, but a patch may keep a reference to them.
            given = {"img": x.clone(), "x": latents, "vec": call.time, "block_index": call.index}
            x = patch({**given, "img_offset": 0, "transformer_options": options})["img"]
        return x

    return run


def _replaced(replace: Any, call: BlockCall, options: dict[str, Any]) -> Tensor:
    def original(args: dict[str, Any]) -> dict[str, Any]:
        return {"img": call.run(args["img"].clone(), args["vec"], args["txt"], args["pe"])}

    given = {"img": call.x, "txt": call.context, "vec": call.steps, "pe": call.rotation}
    result: dict[str, Any] = replace(
        {**given, "transformer_options": options}, {"original_block": original}
    )
    tokens: Tensor = result["img"]
    return tokens


def _placement(rope_options: dict[str, float] | None) -> Placement:
    if rope_options is None:
        return UNMOVED
    scale_t, scale_y, scale_x = (rope_options.get(f"scale_{axis}", 1.0) for axis in "tyx")
    shift_t, shift_y, shift_x = (rope_options.get(f"shift_{axis}", 0.0) for axis in "tyx")
    return Placement((scale_t, scale_y, scale_x), (shift_t, shift_y, shift_x))
