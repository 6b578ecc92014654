"""ComfyUI's transformer options as the transformer's hooks.

What nodes put into a Wan model reaches ours in the same places and under the same names, as
comfy/ldm/wan/model.py calls them:

- `optimized_attention_override`, and the attention the server was started with;
- `patches`: `attn1_patch` after self-attention, `attn2_patch` after text and photo,
  `double_block` after a block;
- `patches_replace["dit"][("double_block", i)]` in place of block i;
- `rope_options`; and `block_index`, `block_type`, `total_blocks`, `grid_sizes` for all of them.
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
    """Give the hooks of one forward pass.

    Args:
        transformer_options: ComfyUI's; stays as it is. Patches see one copy throughout the pass,
            by which some of them speak to each other.
        x: The model's input, `(B, 36, F, h, w)`, h and w even.
        num_blocks: Of the transformer.
        attention: Backend of the video tokens' attention, unless a node or a flag names another.
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
        # Short keys gain nothing by low precision and may come out as NaN, as in ComfyUI's Wan.
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
    """Tell whether a node or the server's flags name an attention other than torch's.

    ComfyUI's torch attention puts the flash kernel first, which on Hopper has 0.6 of the rate of
    torch's own choice there, cuDNN.
    """
    ways = comfy.ldm.modules.attention
    if options.get("optimized_attention_override") is not None or torch.version.hip is not None:
        return True
    return ways.optimized_attention is not ways.attention_pytorch


def _uncompiled(attention: Attend) -> Attend:
    """Give an attention in whose place torch's compiler sees torch's, as it cannot look inside."""

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
    """Keeps ComfyUI from running blocks ahead of the card, where a Cancel would not reach them.

    A block is begun when the card has done the self-attention of the block before, which leaves it
    work enough for the meantime. Without this a second of work would be in the card's queue.
    """

    def __init__(self, device: torch.device) -> None:
        self._on_card = device.type == "cuda"
        self._half_way: torch.cuda.Event | None = None

    def marked(self, attention: Attend) -> Attend:
        """Give an attention that is followed by a mark."""

        def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            tokens = attention(q, k, v)
            if self._on_card and not torch.compiler.is_compiling():
                self._half_way = torch.cuda.current_stream(q.device).record_event()
            return tokens

        return attend if self._on_card else attention

    def wait(self) -> None:
        """Wait for the last mark."""
        if self._half_way is not None:
            self._half_way.synchronize()


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
            # The next block overwrites its tokens, and a patch may keep what it is given.
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
