"""Compare the transformer with recorded runs of `WanModel` (`dit_*` files).

Hooks collect every intermediate value under its recorded name. Two departures get their own rows:
upstream's reference map drops the last head of an odd number, and becomes NaN for a region without
tokens, which then wins every token. For the other rows a hook replaces our map by upstream's.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as functional
from torch import Tensor, nn

from ...multitalk_core.config import AudioConfig, ModelConfig
from ...multitalk_core.model.attention import (
    AudioAttention,
    SelfAttended,
    SelfAttention,
    reference_map,
)
from ...multitalk_core.model.audio_tokens import AudioContext, first_frame
from ...multitalk_core.model.block import Block
from ...multitalk_core.model.dit import MultiTalkModel
from ...multitalk_core.model.elementwise import normalize
from ...multitalk_core.model.lrope import audio_positions
from .golden import GoldenFile, Row, largest_error, require_rows, row

TOLERANCE = 3e-5
"""For values of the recorded size (RMS up to 2); grows with larger ones."""
MAP_TOLERANCE = 1e-7
"""For map values up to 1/10; grows with larger ones."""
POSITION_TOLERANCE = 2e-5

ODD_HEAD = "differs by decision: all heads are averaged, upstream drops the odd one"
EMPTY_REGION = "differs by decision: a region without tokens wins none, upstream gives NaN"

Values = dict[str, Tensor]


def compare(path: Path) -> list[Row]:
    """Run the transformer on the file's inputs and compare everything it recorded."""
    file = GoldenFile(path)
    model = load_model(file)
    ours = record(model, file, upstream=True)
    rows = [_row(name, ours[name], theirs) for name, theirs in file.tensors.items() if name in ours]
    empty = not token_masks(file.get("in.ref_target_masks")).any(dim=1).all()
    if empty or model.config.num_heads % 2:
        own = record(model, file, upstream=False)
        way, note = ("empty region", EMPTY_REGION) if empty else ("all heads", ODD_HEAD)
        rows += [
            departure(f"{name} ({way})", own[name], theirs, note=note)
            for name, theirs in file.tensors.items()
            if name in own and (name == "out.x" or name.endswith("x_ref_attn_map"))
        ]
    return require_rows(rows, file)


def load_model(file: GoldenFile) -> MultiTalkModel:
    """Build the transformer of a recorded run (a `dit_*` or a sampler file) with its weights."""
    sizes = file.config["model"]
    weights = file.weights()
    layers, channels = next(t for n, t in file.tensors.items() if n.startswith("in.audio")).shape[
        -2:
    ]
    config = ModelConfig(
        **{
            name: sizes[name]
            for name in ("dim", "ffn_dim", "num_heads", "num_layers", "text_dim", "text_len")
        },
        in_channels=sizes["in_dim"],
        out_channels=sizes["out_dim"],
        freq_dim=sizes["freq_dim"],
        eps=sizes["eps"],
        image_dim=weights["img_emb.proj.0.weight"].shape[0],
        audio=AudioConfig(
            layers=layers,
            channels=channels,
            hidden_dim=sizes["intermediate_dim"],
            num_tokens=sizes["context_tokens"],
            token_dim=sizes["output_dim"],
            norm_tokens=sizes["norm_output_audio"],
            norm_visual=sizes["norm_input_visual"],
        ),
    )
    model = MultiTalkModel(config, device="meta")
    model.load_state_dict(weights, assign=True)
    return model.eval()


@torch.no_grad()
def record(
    model: MultiTalkModel,
    file: GoldenFile,
    *,
    upstream: bool,
    dtype: torch.dtype = torch.float32,
) -> Values:
    """Run the transformer on the file's inputs and collect its values by recorded names.

    The reference map is upstream's or our own.
    """
    masks = token_masks(file.get("in.ref_target_masks"))
    values: Values = {"mid.token_ref_target_masks": masks}
    hooks = []
    for name, module in model.named_modules():
        keep = partial(_keep, values=values, name=f"mid.{name}")
        hooks.append(module.register_forward_hook(keep, with_kwargs=True))
        if isinstance(module, Block):
            first = partial(_first_norm, values=values, name=f"mid.{name}.norm1_out")
            hooks.append(module.register_forward_pre_hook(first))
        if isinstance(module, SelfAttention):
            look = partial(
                _look,
                values=values,
                name=f"mid.{name}",
                masks=masks,
                make_map=upstream_map if upstream else reference_map,
            )
            hooks.append(module.register_forward_hook(look, with_kwargs=True))
        if isinstance(module, AudioAttention):
            label = partial(_label, values=values, name=f"mid.{name}")
            hooks.append(module.register_forward_hook(label, with_kwargs=True))
    windows, latents = file.get("in.audio").to(dtype), file.get("in.x").unsqueeze(0).to(dtype)
    velocity = model(
        latents,
        file.get("in.t"),
        condition=file.get("in.y"),
        text=file.get("in.context").unsqueeze(0),
        image=file.get("in.clip_fea"),
        audio=AudioContext(model.project_audio(windows), masks),
    )
    for hook in hooks:
        hook.remove()
    values["out.x"] = velocity
    grid = (latents.shape[2], latents.shape[3] // 2, latents.shape[4] // 2)
    patches = values["mid.patch_embedding"].transpose(1, 2)
    values["mid.patch_embedding"] = torch.unflatten(patches, 2, grid)
    values["mid.img_emb_first16"] = values["mid.img_emb"][:, :16]
    values["mid.audio_proj_in_first"] = first_frame(windows).view_as(windows[:, :1])
    return values


def token_masks(masks: Tensor) -> Tensor:
    """Sample `(S + 1, h, w)` on latents at the top left latent of every token, flattened."""
    height, width = (side // 2 for side in masks.shape[1:])
    small = functional.interpolate(masks[None], size=(height, width), mode="nearest")[0]
    return (small > 0).float().flatten(1)


def upstream_map(q: Tensor, k: Tensor, *, token_masks: Tensor) -> Tensor:
    """Give upstream's reference map: of an even number of heads, NaN for a region without tokens.

    With a single head it drops that one, which leaves NaN everywhere.
    """
    even = q.shape[2] // 2 * 2
    used = slice(max(1, even))
    looks = reference_map(q[:, :, used], k[:, :, used], token_masks=token_masks)
    lost = ~token_masks.bool().any(dim=-1, keepdim=True) | (even == 0)
    return looks.masked_fill(lost.to(looks.device), float("nan"))


def known_row(group: str, ours: Tensor, theirs: Tensor, *, tolerance: float) -> Row:
    """Compare where upstream's values are numbers; there is nothing to compare if all are NaN."""
    known = ~theirs.isnan()
    if known.all() or ours.shape != theirs.shape:
        return row(group, ours, theirs, tolerance=tolerance)
    if not known.any():
        return Row(group, float("inf"), float("inf"), EMPTY_REGION)
    return row(group, ours[known], theirs[known], tolerance=tolerance, note=EMPTY_REGION)


def departure(group: str, ours: Tensor, theirs: Tensor, *, note: str) -> Row:
    """Say how much a deliberate departure changes upstream's result, where that is not NaN."""
    known = ~theirs.isnan()
    error = largest_error(ours[known], theirs[known]) if known.any() else float("inf")
    return Row(group, error, float("inf"), note)


def map_tolerance(theirs: Tensor) -> float:
    """Give the tolerance of a reference map."""
    return max(MAP_TOLERANCE, 10 * MAP_TOLERANCE * float(theirs.nan_to_num().abs().max()))


def _row(name: str, ours: Tensor, theirs: Tensor) -> Row:
    if name.endswith("x_ref_attn_map"):
        tolerance = map_tolerance(theirs)
    elif name.endswith("_pos"):
        tolerance = POSITION_TOLERANCE
    elif name.endswith("target_masks"):
        tolerance = 0.0
    else:
        size = float(theirs.double().nan_to_num().pow(2).mean().sqrt())
        tolerance = TOLERANCE * max(1.0, size / 2)
    return known_row(name, ours, theirs, tolerance=tolerance)


def _keep(
    module: nn.Module,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    output: Any,
    *,
    values: Values,
    name: str,
) -> None:
    if isinstance(output, SelfAttended):
        output = output.tokens
    if args and isinstance(args[0], Tensor):
        norm = kwargs.get("norm", torch.clone)  # the parts of a block norm their input themselves
        values[f"{name}_in"] = norm(args[0])
    for suffix in ("", ".out", "_out"):
        values[f"{name}{suffix}"] = output.clone()  # the tokens are overwritten by what follows


def _first_norm(block: Block, args: tuple[Tensor, ...], *, values: Values, name: str) -> None:
    """Record a block's first norm before its modulation; the model computes both at once."""
    x = args[0]
    values[name] = normalize(
        x, gain=torch.ones(x.shape[-1]), shift=torch.zeros(x.shape[-1]), eps=block.eps
    )


def _look(
    module: SelfAttention,
    args: tuple[Tensor],
    kwargs: dict[str, Any],
    output: SelfAttended,
    *,
    values: Values,
    name: str,
    masks: Tensor,
    make_map: Callable[..., Tensor],
) -> SelfAttended:
    """Record the rotated heads and the reference map, and use the given map if there is one."""
    block = name.removesuffix(".self_attn")
    normed = kwargs["norm"](*args)
    heads = module.project(normed, rotation=kwargs["rotation"])
    module.norm_q(module.q(normed)), module.norm_k(module.k(normed))  # recorded, before they turn
    for letter, turned in (("q", heads.q), ("k", heads.k)):
        values[f"{block}.rope3d.{letter}_out"] = turned
        values[f"{block}.rope3d.{letter}_in"] = values[f"{name}.norm_{letter}"].view_as(turned)
    looks = make_map(heads.q, heads.k, token_masks=masks)
    values[f"{block}.x_ref_attn_map"] = looks[0]
    return SelfAttended(output.tokens, None if output.reference_map is None else looks)


def _label(
    module: AudioAttention,
    args: tuple[Tensor, Tensor],
    kwargs: dict[str, Any],
    output: Tensor,
    *,
    values: Values,
    name: str,
) -> None:
    labels = kwargs["labels"]
    if labels is None:
        return
    block = name.removesuffix(".audio_cross_attn")
    frames, num_tokens = args[1].shape[1:3]
    positions = audio_positions(num_tokens // 2, device=labels.device)
    values[f"{block}.lrope.q_pos"] = labels[0]
    values[f"{block}.lrope.k_pos"] = positions.repeat(frames)
    for end, given in (("in", None), ("out", labels)):
        q, k, _ = module.project(kwargs["norm"](args[0]), args[1], labels=given)
        values[f"{block}.lrope.q_{end}"] = q.transpose(1, 2)
        values[f"{block}.lrope.k_{end}"] = k.flatten(1, 2).transpose(1, 2)
