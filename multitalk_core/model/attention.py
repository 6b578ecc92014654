"""Attention layers of the transformer: self-attention, to text and photo, and to audio.

Also the reference map: how much each video token attends to each speaker's region of the photo;
L-RoPE makes its labels from it. Follows `WanSelfAttention` and `WanI2VCrossAttention` in MultiTalk
`wan/modules/multitalk_model.py`, `SingleStreamMutiAttention` in `wan/modules/attention.py` and
`get_attn_map_with_target` in `wan/utils/multitalk_utils.py`.

Each attention applies the norm passed by the block, so that the normed tokens, 0.3 GB at 14B, are
freed before the attention. The norm may return the packed form of the layers' `Feed`.

Departures, all of the reference map: it averages all heads (upstream drops the last of an odd
count), its softmax is always float32, it is computed only for two speakers and without storing the
scores, and no token is assigned to a region without tokens (upstream: NaN everywhere).

Letters: B batch, S speakers, F latent frames, N tokens, M context tokens, A heads, D head width.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as functional
from torch import Tensor, nn

from ..config import AudioConfig, ModelConfig
from ..protocols import Ops, Packed
from .elementwise import rms_norm, rms_norm_rotated, turn
from .lrope import Rotation, audio_positions, label_rotation, rotate

IMAGE_TOKENS = 257
"""CLIP tokens of the photo: one class token and 16 x 16 patches; they come before the text."""


class SelfAttended(NamedTuple):
    """Tokens `(B, N, dim)` and, with two speakers, the reference map `(B, S + 1, N)`."""

    tokens: Tensor
    reference_map: Tensor | None


class Heads(NamedTuple):
    """Queries, keys and values, tokens then heads: `(B, N, A, D)` each."""

    q: Tensor
    k: Tensor
    v: Tensor


def attend(q_BNAD: Tensor, k_BMAD: Tensor, v_BMAD: Tensor) -> Tensor:  # noqa: N803
    """Scaled dot-product attention of every head; returns `(B, N, A, D)`."""
    q, k, v = (x.transpose(1, 2) for x in (q_BNAD, k_BMAD, v_BMAD))
    return functional.scaled_dot_product_attention(q, k, v).transpose(1, 2)


Attend = Callable[[Tensor, Tensor, Tensor], Tensor]
Norm = Callable[[Tensor], Tensor | Packed]


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Attends:
    """The attention backends of a block; plain torch unless given.

    Attributes:
        video: Among the video tokens.
        text: To the text.
        image: To the photo's CLIP tokens.
        audio: To the audio tokens; the batch is `B * F`.
    """

    video: Attend = attend
    text: Attend = attend
    image: Attend = attend
    audio: Attend = attend


PLAIN = Attends()


class RMSNorm(nn.Module):
    """Root-mean-square norm over the full width, before the split into heads; float32 inside."""

    def __init__(self, dim: int, *, eps: float, device: torch.device | str | None = None) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(dim, device=device))

    def forward(self, x: Tensor) -> Tensor:
        """Normalise `(..., dim)`; same shape and dtype."""
        return rms_norm(x, weight=self.weight, eps=self.eps)

    def rotated(self, x: Tensor, *, num_heads: int, rotation: Rotation) -> Tensor:
        """Normalise `(B, N, dim)`, divide it into heads and rotate them: `(B, N, A, D)`."""
        return rms_norm_rotated(
            x, weight=self.weight, eps=self.eps, num_heads=num_heads, rotation=rotation
        )


class _Projections(nn.Module):
    """The layers that self-attention and cross-attention have in common."""

    def __init__(
        self, config: ModelConfig, *, ops: Ops, device: torch.device | str | None = None
    ) -> None:
        super().__init__()
        self.num_heads = config.num_heads
        self.q = ops.Linear(config.dim, config.dim, device=device)
        self.k = ops.Linear(config.dim, config.dim, device=device)
        self.v = ops.Linear(config.dim, config.dim, device=device)
        self.o = ops.Linear(config.dim, config.dim, device=device)
        self.norm_q = RMSNorm(config.dim, eps=config.eps, device=device)
        self.norm_k = RMSNorm(config.dim, eps=config.eps, device=device)


class SelfAttention(_Projections):
    """Attention among all video tokens of a segment, rotated by their position in the grid."""

    def forward(
        self,
        x: Tensor,
        *,
        norm: Norm,
        rotation: Rotation,
        token_masks: Tensor | None = None,
        attend: Attend = attend,
    ) -> SelfAttended:
        """Attend among tokens `(B, N, dim)`; with `token_masks` also return the reference map."""
        q, k, v = self.project(norm(x), rotation=rotation)
        labels = None if token_masks is None else reference_map(q, k, token_masks=token_masks)
        tokens = attend(q, k, v).flatten(2)
        del q, k, v  # a gigabyte at 14B, before the output needs room
        return SelfAttended(self.o(tokens), labels)

    def project(self, x: Tensor | Packed, *, rotation: Rotation) -> Heads:
        """Return queries and keys, normalised and rotated, and values of tokens after `norm`."""
        q = self.norm_q.rotated(self.q(x), num_heads=self.num_heads, rotation=rotation)
        k = self.norm_k.rotated(self.k(x), num_heads=self.num_heads, rotation=rotation)
        return Heads(q, k, self.v(x).unflatten(-1, (self.num_heads, -1)))


class CrossAttention(_Projections):
    """Attention to the text plus attention to the photo's CLIP tokens."""

    def __init__(
        self, config: ModelConfig, *, ops: Ops, device: torch.device | str | None = None
    ) -> None:
        super().__init__(config, ops=ops, device=device)
        self.k_img = ops.Linear(config.dim, config.dim, device=device)
        self.v_img = ops.Linear(config.dim, config.dim, device=device)
        self.norm_k_img = RMSNorm(config.dim, eps=config.eps, device=device)

    def forward(
        self, x: Tensor, context: Tensor, *, norm: Norm, attends: Attends = PLAIN
    ) -> Tensor:
        """Attend from video tokens `(B, N, dim)` to `(B, 257 + text_len, dim)`, image first."""
        q = self.norm_q(self.q(norm(x))).unflatten(-1, (self.num_heads, -1))
        k, v = self._keys(context[:, IMAGE_TOKENS:], of_image=False)
        of_text = attends.text(q, k, v).flatten(2)
        k, v = self._keys(context[:, :IMAGE_TOKENS], of_image=True)
        of_image = attends.image(q, k, v).flatten(2)
        del q, k, v
        tokens = of_text + of_image  # not in place: a host may keep its attention's output
        del of_text, of_image
        output: Tensor = self.o(tokens)
        return output

    def _keys(self, context: Tensor, *, of_image: bool) -> tuple[Tensor, Tensor]:
        """Return keys and values of text or image tokens, `(B, M, A, D)` each."""
        split = (self.num_heads, -1)
        if of_image:
            k, v = self.norm_k_img(self.k_img(context)), self.v_img(context)
        else:
            k, v = self.norm_k(self.k(context)), self.v(context)
        return k.unflatten(-1, split), v.unflatten(-1, split)


class AudioAttention(nn.Module):
    """Attention of each latent frame's tokens to its audio tokens; L-RoPE with two speakers."""

    def __init__(
        self,
        config: ModelConfig,
        audio: AudioConfig,
        *,
        ops: Ops,
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__()
        self.num_heads = config.num_heads
        self.q_linear = ops.Linear(config.dim, config.dim, device=device)
        self.kv_linear = ops.Linear(audio.token_dim, 2 * config.dim, device=device)
        self.proj = ops.Linear(config.dim, config.dim, device=device)

    def forward(
        self,
        x: Tensor,
        audio: Tensor,
        *,
        norm: Norm,
        labels: Tensor | None = None,
        attend: Attend = attend,
    ) -> Tensor:
        """Attend from video tokens `(B, N, dim)` to audio tokens `(1 or B, F, M, token_dim)`.

        `labels` is the label of every video token, `(B, N)`; `None`, for one speaker, rotates
        nothing.
        """
        batch, frames = x.shape[0], audio.shape[1]
        q, k, v = self.project(norm(x), audio, labels=labels)
        tokens = attend(
            q.reshape(batch * frames, -1, *q.shape[2:]),
            k.expand(batch, *k.shape[1:]).flatten(0, 1),
            v.expand(batch, *v.shape[1:]).flatten(0, 1),
        )
        del q, k, v
        output: Tensor = self.proj(tokens.reshape(x.shape))
        return output

    def project(self, x: Tensor | Packed, audio: Tensor, *, labels: Tensor | None) -> Heads:
        """Return queries `(B, N, A, D)`, and keys and values `(1 or B, F, M, A, D)`."""
        q = self.q_linear(x).unflatten(-1, (self.num_heads, -1))
        k, v = self._keys(audio, rotated=labels is not None)
        if labels is not None:
            q = turn(q, label_rotation(labels, head_dim=q.shape[-1]))
        return Heads(q, k, v)

    def _keys(self, audio: Tensor, *, rotated: bool) -> tuple[Tensor, Tensor]:
        split = (self.num_heads, -1)
        k, v = (part.unflatten(-1, split) for part in self.kv_linear(audio).chunk(2, dim=-1))
        if rotated:
            positions = audio_positions(audio.shape[2] // 2, device=audio.device)
            rotation = label_rotation(positions, head_dim=k.shape[-1])
            k = rotate(k.flatten(0, 1), rotation).view_as(k)
        return k, v


@torch.no_grad()
def reference_map(q_BNAD: Tensor, k_BNAD: Tensor, *, token_masks: Tensor) -> Tensor:  # noqa: N803
    """Return how much each video token attends to each region of the first latent frame.

    The attention to a region's tokens, averaged over them and over all heads. It is computed as an
    attention whose values are the masks. No gradient flows through it, as upstream.

    Args:
        q_BNAD: Queries of all tokens, rotated.
        k_BNAD: Keys of all tokens, rotated; only the first frame's are used.
        token_masks: As in `AudioContext`.

    Returns:
        `(B, S + 1, N)`, float32.
    """
    batch, _, num_heads, width = q_BNAD.shape
    masks = token_masks.to(q_BNAD.device).expand(batch, -1, -1)
    num_regions, num_keys = masks.shape[1:]
    # Fast kernels need values as wide as queries and keys.
    values = functional.pad(masks.mT.to(q_BNAD.dtype), (0, max(width - num_regions, 0)))
    attended = attend(
        q_BNAD, k_BNAD[:, :num_keys], values.unsqueeze(2).expand(-1, -1, num_heads, -1)
    )
    sizes = masks.sum(dim=-1, dtype=torch.float32).clamp(min=1.0)
    return attended[..., :num_regions].mean(dim=2, dtype=torch.float32).mT / sizes.unsqueeze(2)
