"""One block of the transformer, on all entries of a batch, part by part.

Self-attention, attention to text and photo, attention to the voices, feed-forward; the first and
the last are modulated and gated by the time step, the other two only added. Follows
`WanAttentionBlock` in MultiTalk `wan/modules/multitalk_model.py`.

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
from .elementwise import add, gelu, normalize
from .hooks import NO_HOOKS, Hooks
from .lrope import Rotation, label_positions

Device = torch.device | str | None


class Part(NamedTuple):
    """Entries of the batch that are worked on at once, with what they hear.

    Attributes:
        entries: Which they are.
        audio: Audio tokens, `(1 or entries, F, M, token_dim)`, or `None`.
        token_masks: Regions of two speakers, `(3 or entries x 3, tokens of a frame)`, else `None`.
    """

    entries: slice
    audio: Tensor | None
    token_masks: Tensor | None


class LayerNorm(nn.LayerNorm):
    """Layer norm of `(B, N, D)` in float32, weights of any dtype; the result has the input's.

    Attributes:
        feed: If given, the result may be in packed form.
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
    """The tanh approximation, in place where no gradient is recorded.

    Attributes:
        feed: If given, the result may be in packed form.
    """

    def __init__(self, feed: Feed | None = None) -> None:
        super().__init__()
        self.feed = feed

    def forward(self, input: Tensor) -> Tensor | Packed:
        """Apply it to each number."""
        return gelu(input, feed=self.feed)


class FeedForward(nn.ModuleList):
    """A linear layer to the inner width, an activation, and a linear layer back."""

    def forward(self, x: Tensor, *, norm: Norm) -> Tensor:
        """Work on tokens `(B, N, dim)`, to which `norm` is applied first."""
        first, activation, last = self
        inner = first(norm(x))
        inner = activation(inner)
        output: Tensor = last(inner)
        return output


class Block(nn.Module):
    """One transformer block."""

    def __init__(self, config: ModelConfig, *, ops: Ops, device: Device = None) -> None:
        super().__init__()
        dim, eps = config.dim, config.eps
        self._hold, self._feed = ops.hold, ops.feed
        self.self_attn = SelfAttention(config, ops=ops, device=device)
        self.norm3 = LayerNorm(dim, eps=eps, device=device, feed=ops.feed)
        self.cross_attn = CrossAttention(config, ops=ops, device=device)
        self.ffn = FeedForward(
            (
                ops.Linear(dim, config.ffn_dim, device=device),
                GELU(ops.feed),
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
        audio_strength: Tensor | float = 1.0,
        hooks: Hooks = NO_HOOKS,
        rest: Tensor | None = None,
    ) -> Tensor:
        """Refine the tokens.

        Args:
            x: Video tokens, `(B, N, dim)`; overwritten where no gradient is recorded.
            time: Projected time step, `(B, 6, dim)`, float32.
            context: Image and text tokens, `(B, 257 + text_len, dim)`.
            rotation: Of every video token.
            parts: The batch in parts; one alone where gradients are recorded.
            audio_strength: Multiplier of what the voices add. A 0-d CPU tensor, so that changing it
                does not recompile.
            hooks: Functions of a host, called inside the block.
            rest: The rounding residual of bfloat16 tokens, see `elementwise.cut`; overwritten.

        Returns:
            `(B, N, dim)`, same dtype.
        """
        shift1, scale1, gate1, shift2, scale2, gate2 = (
            (self.modulation.float() + time).unsqueeze(2).unbind(1)
        )
        looks: list[Tensor | None] = []
        with self._held(self.self_attn, parts):
            for entries, _, token_masks in parts:
                seen = self.self_attn(
                    x[entries],
                    norm=self._modulation(scale1[entries], shift1[entries]),
                    rotation=rotation,
                    token_masks=token_masks,
                    attend=hooks.attends.video,
                )
                looks.append(seen.reference_map)
                x = _add_part(x, entries, seen.tokens, gate=gate1[entries], rest=rest)
                del seen  # frees memory that the next part needs
        with self._held(self.cross_attn, parts):
            for entries, _, _ in parts:
                y = self.cross_attn(
                    x[entries],
                    context[entries],
                    norm=self.norm3,
                    attends=hooks.attends,
                )
                x = _add_part(x, entries, y, rest=rest)
                del y
        if hooks.after_context is not None:
            x = hooks.after_context(x)
        if parts[0].audio is not None:
            x = self._hear(x, parts, looks, audio_strength, hooks, rest)
        with self._held(self.ffn, parts):
            for entries, _, _ in parts:
                y = self.ffn(x[entries], norm=self._modulation(scale2[entries], shift2[entries]))
                x = _add_part(x, entries, y, gate=gate2[entries], rest=rest)
                del y
        return x

    def _hear(
        self,
        x: Tensor,
        parts: Sequence[Part],
        looks: Sequence[Tensor | None],
        strength: Tensor | float,
        hooks: Hooks,
        rest: Tensor | None,
    ) -> Tensor:
        with self._held(self.audio_cross_attn, parts):
            for (entries, audio, _), seen in zip(parts, looks, strict=True):
                y = self.audio_cross_attn(
                    x[entries],
                    audio,
                    norm=self.norm_x,
                    labels=None if seen is None else label_positions(seen),
                    attend=hooks.attends.audio,
                )
                x = _add_part(x, entries, y, gate=strength, rest=rest)
                del y
        return x

    def _modulation(self, scale: Tensor, shift: Tensor) -> Norm:
        return functools.partial(
            normalize, gain=1 + scale, shift=shift, eps=self.eps, feed=self._feed
        )

    def _held(
        self, layers: nn.Module, parts: Sequence[Part]
    ) -> contextlib.AbstractContextManager[None]:
        return self._hold(layers) if len(parts) > 1 else contextlib.nullcontext()


def _add_part(
    x: Tensor,
    entries: slice,
    y: Tensor,
    *,
    gate: Tensor | float = 1.0,
    rest: Tensor | None,
) -> Tensor:
    """Add to some entries of the batch; where gradients are recorded these are all."""
    if torch.is_grad_enabled():
        return add(x, y, gate=gate)
    add(x[entries], y, gate=gate, rest=None if rest is None else rest[entries])
    return x
