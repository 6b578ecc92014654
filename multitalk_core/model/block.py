"""One block of the transformer: self-attention, attention to text and photo, audio, feed-forward.

The time step modulates and gates self-attention and feed-forward. All entries of a batch go through
one of these before the next starts. Follows `WanAttentionBlock` in MultiTalk
`wan/modules/multitalk_model.py`.

Letters: B batch, N tokens, F latent frames, M audio tokens of a frame.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as functional
from torch import Tensor, nn

from ..config import ModelConfig
from ..protocols import Feed, Ops, Packed
from .attention import AudioAttention, CrossAttention, Norm, SelfAttention
from .audio_tokens import AudioContext
from .elementwise import gelu, gelu_, normalize
from .hooks import NO_HOOKS, Hooks
from .lrope import Rotation, label_positions
from .residual import Stream

Device = torch.device | str | None


class Part(NamedTuple):
    """Entries of the batch that are computed at once, with their audio.

    Attributes:
        entries: Range of the batch.
        audio: Their audio context; its masks are `None` unless there are two speakers.
    """

    entries: slice
    audio: AudioContext | None


class LayerNorm(nn.LayerNorm):
    """Layer norm of `(B, N, D)` in float32; the result has the input's dtype.

    Attributes:
        feed: If given, the result may be packed.
    """

    def __init__(
        self,
        dim: int,
        *,
        eps: float,
        elementwise_affine: bool = True,
        device: Device = None,
        feed: Feed | None = None,
    ) -> None:
        super().__init__(dim, eps=eps, elementwise_affine=elementwise_affine, device=device)
        self.feed = feed

    def forward(self, input: Tensor) -> Tensor | Packed:  # type: ignore[override]
        """Normalise the last axis."""
        if self.weight is None:
            return functional.layer_norm(input, self.normalized_shape, eps=self.eps)
        return normalize(input, gain=self.weight, shift=self.bias, eps=self.eps, feed=self.feed)


class GELU(nn.Module):
    """GELU by its tanh approximation.

    Attributes:
        feed: If given, the result may be packed.
        in_place: Whether the input is overwritten.
    """

    def __init__(self, feed: Feed | None = None, *, in_place: bool) -> None:
        super().__init__()
        self.feed = feed
        self.in_place = in_place

    def forward(self, input: Tensor) -> Tensor | Packed:
        """Apply it to each element."""
        return (gelu_ if self.in_place else gelu)(input, feed=self.feed)


class FeedForward(nn.ModuleList):
    """A linear layer to the inner width, an activation, and a linear layer back."""

    def forward(self, x: Tensor, *, norm: Norm) -> Tensor:
        """Transform tokens `(B, N, dim)`; `norm` is applied to them first."""
        first, activation, last = self
        inner = first(norm(x))
        inner = activation(inner)
        output: Tensor = last(inner)
        return output


class Block(nn.Module):
    """One transformer block.

    Attributes:
        differentiable: Whether it can be trained. If so, it overwrites nothing and keeps no
            rounding residual.
    """

    def __init__(
        self, config: ModelConfig, *, ops: Ops, device: Device = None, differentiable: bool = False
    ) -> None:
        super().__init__()
        dim, eps = config.dim, config.eps
        self.differentiable = differentiable
        self._cache_decoded, self._feed = ops.cache_decoded, ops.feed
        self.self_attn = SelfAttention(config, ops=ops, device=device)
        self.norm3 = LayerNorm(dim, eps=eps, device=device, feed=ops.feed)
        self.cross_attn = CrossAttention(config, ops=ops, device=device)
        self.ffn = FeedForward(
            (
                ops.Linear(dim, config.ffn_dim, device=device),
                GELU(ops.feed, in_place=not differentiable),
                ops.Linear(config.ffn_dim, dim, device=device),
            )
        )
        self.modulation = nn.Parameter(torch.randn(1, 6, dim, device=device) / dim**0.5)
        self.eps = eps
        if config.audio is not None:
            self.audio_cross_attn = AudioAttention(config, config.audio, ops=ops, device=device)
            self.norm_x: nn.Module = nn.Identity()
            if config.audio.norm_visual:
                self.norm_x = LayerNorm(dim, eps=eps, device=device, feed=ops.feed)

    def forward(
        self,
        x: Tensor,
        time: Tensor,
        context: Tensor,
        rotation: Rotation,
        *,
        parts: Sequence[Part],
        hooks: Hooks = NO_HOOKS,
        residual: Tensor | None = None,
    ) -> Tensor:
        """Transform the video tokens.

        Args:
            x: Video tokens, `(B, N, dim)`; overwritten unless the block is differentiable.
            time: Projected time step, `(B, 6, dim)`, float32.
            context: Image and text tokens, `(B, 257 + text_len, dim)`.
            rotation: Of every video token.
            parts: The batch divided into parts, with their audio; one part if differentiable.
            hooks: Functions of a host, called inside the block.
            residual: Rounding residual of bfloat16 tokens, see `residual.py`; overwritten.

        Returns:
            `(B, N, dim)`, same dtype.
        """
        shift1, scale1, gate1, shift2, scale2, gate2 = (
            (self.modulation.float() + time).unsqueeze(2).unbind(1)
        )
        reference_maps: list[Tensor | None] = []
        stream = Stream(x, residual)
        with self._cached(self.self_attn, parts):
            for entries, audio in parts:
                attended = self.self_attn(
                    stream.tokens[entries],
                    norm=self._modulation(scale1[entries], shift1[entries]),
                    rotation=rotation,
                    token_masks=None if audio is None else audio.token_masks,
                    attend=hooks.attends.video,
                )
                reference_maps.append(attended.reference_map)
                stream = self._add(stream, entries, attended.tokens, gate=gate1[entries])
                del attended  # frees memory that the next part needs
        with self._cached(self.cross_attn, parts):
            for entries, _ in parts:
                y = self.cross_attn(
                    stream.tokens[entries], context[entries], norm=self.norm3, attends=hooks.attends
                )
                stream = self._add(stream, entries, y)
                del y
        if hooks.after_context is not None:
            stream = Stream(hooks.after_context(stream.tokens), residual)
        if any(audio is not None for _, audio in parts):
            stream = self._add_audio(stream, parts, reference_maps, hooks)
        with self._cached(self.ffn, parts):
            for entries, _ in parts:
                norm = self._modulation(scale2[entries], shift2[entries])
                y = self.ffn(stream.tokens[entries], norm=norm)
                stream = self._add(stream, entries, y, gate=gate2[entries])
                del y
        return stream.tokens

    def _add_audio(
        self,
        stream: Stream,
        parts: Sequence[Part],
        reference_maps: Sequence[Tensor | None],
        hooks: Hooks,
    ) -> Stream:
        with self._cached(self.audio_cross_attn, parts):
            for (entries, audio), reference_map in zip(parts, reference_maps, strict=True):
                if audio is None:
                    continue
                y = self.audio_cross_attn(
                    stream.tokens[entries],
                    audio.tokens,
                    norm=self.norm_x,
                    labels=None if reference_map is None else label_positions(reference_map),
                    attend=hooks.attends.audio,
                )
                stream = self._add(stream, entries, y, gate=audio.strength)
                del y
        return stream

    def _add(
        self, stream: Stream, entries: slice, y: Tensor, *, gate: Tensor | float = 1.0
    ) -> Stream:
        """Add `y * gate` to some entries, in place unless the block is differentiable."""
        if self.differentiable:
            return Stream((stream.tokens + y * gate).to(stream.tokens.dtype))
        stream.entries(entries).add_(y, gate=gate)
        return stream

    def _modulation(self, scale: Tensor, shift: Tensor) -> Norm:
        return functools.partial(
            normalize, gain=1 + scale, shift=shift, eps=self.eps, feed=self._feed
        )

    def _cached(
        self, layers: nn.Module, parts: Sequence[Part]
    ) -> contextlib.AbstractContextManager[None]:
        return self._cache_decoded(layers) if len(parts) > 1 else contextlib.nullcontext()
