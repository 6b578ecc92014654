"""Attention of the transformer: among video tokens, to text and photo, and to the voices.

Also the reference map: how much each video token looks at each speaker's region of the photo, from
which L-RoPE takes its labels. Follows `WanSelfAttention` and `WanI2VCrossAttention` in MultiTalk
`wan/modules/multitalk_model.py`, `SingleStreamMutiAttention` in `wan/modules/attention.py` and
`get_attn_map_with_target` in `wan/utils/multitalk_utils.py`.

Departures: the reference map averages all heads (upstream drops the last of an odd count), its
softmax is float32 in any precision, it is computed only when two speakers are present, and a region
without tokens wins no token (upstream: NaN everywhere).

Letters: B batch, S speakers, F latent frames, N tokens, M context tokens, A heads, D head width.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as functional
from torch import Tensor, nn

from .config import AudioConfig, ModelConfig
from .lrope import Rotation, audio_positions, label_rotation, rotate
from .protocols import Ops

IMAGE_TOKENS = 257
"""CLIP tokens of the photo: one class token and 16 x 16 patches; they stand before the text."""

_MAP_BYTES = 256 * 2**20


class SelfAttended(NamedTuple):
    """What self-attention gives: tokens `(B, N, dim)` and, if asked for, `(B, S + 1, N)`."""

    tokens: Tensor
    reference_map: Tensor | None


class Heads(NamedTuple):
    """Queries, keys and values, tokens then heads: `(B, N, A, D)` each."""

    q: Tensor
    k: Tensor
    v: Tensor


def attend(q_BNAD: Tensor, k_BMAD: Tensor, v_BMAD: Tensor) -> Tensor:  # noqa: N803
    """Scaled dot-product attention of every head; gives `(B, N, A, D)`."""
    q, k, v = (x.transpose(1, 2) for x in (q_BNAD, k_BMAD, v_BMAD))
    return functional.scaled_dot_product_attention(q, k, v).transpose(1, 2)


Attend = Callable[[Tensor, Tensor, Tensor], Tensor]


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Attends:
    """Who computes each attention of a block: plain torch, or a host in its place.

    Attributes:
        video: Among the video tokens.
        text: To the text.
        image: To the photo's CLIP tokens.
        audio: To the voices; the batch is `B * F`.
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
        return functional.rms_norm(x, self.weight.shape, self.weight.to(x.dtype), self.eps)


class SelfAttention(nn.Module):
    """Attention among all video tokens of a segment, turned by their place in the grid."""

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

    def forward(
        self,
        x: Tensor,
        *,
        rotation: Rotation,
        token_masks: Tensor | None = None,
        attend: Attend = attend,
    ) -> SelfAttended:
        """Attend among tokens `(B, N, dim)`; with `token_masks` also give the reference map."""
        q, k, v = self.project(x, rotation=rotation)
        labels = None if token_masks is None else reference_map(q, k, token_masks=token_masks)
        return SelfAttended(self.o(attend(q, k, v).flatten(2)), labels)

    def project(self, x: Tensor, *, rotation: Rotation) -> Heads:
        """Give the normalised and turned queries and keys, and the values."""
        split = (self.num_heads, -1)
        q = rotate(self.norm_q(self.q(x)).unflatten(-1, split), rotation)
        k = rotate(self.norm_k(self.k(x)).unflatten(-1, split), rotation)
        return Heads(q, k, self.v(x).unflatten(-1, split))


class CrossAttention(nn.Module):
    """Attention to the text and, by its own softmax, to the photo's CLIP tokens; summed."""

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
        self.k_img = ops.Linear(config.dim, config.dim, device=device)
        self.v_img = ops.Linear(config.dim, config.dim, device=device)
        self.norm_k_img = RMSNorm(config.dim, eps=config.eps, device=device)

    def forward(self, x: Tensor, context: Tensor, *, attends: Attends = PLAIN) -> Tensor:
        """Let tokens `(B, N, dim)` attend to `(B, 257 + text_len, dim)`, image tokens first."""
        split = (self.num_heads, -1)
        image, text = context[:, :IMAGE_TOKENS], context[:, IMAGE_TOKENS:]
        q = self.norm_q(self.q(x)).unflatten(-1, split)
        k = self.norm_k(self.k(text)).unflatten(-1, split)
        tokens = attends.text(q, k, self.v(text).unflatten(-1, split))
        k = self.norm_k_img(self.k_img(image)).unflatten(-1, split)
        tokens = tokens + attends.image(q, k, self.v_img(image).unflatten(-1, split))
        output: Tensor = self.o(tokens.flatten(2))
        return output


class AudioAttention(nn.Module):
    """Attention of each latent frame's tokens to that frame's audio tokens, with L-RoPE for two."""

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
        labels: Tensor | None = None,
        attend: Attend = attend,
    ) -> Tensor:
        """Attend to the voices.

        Args:
            x: Video tokens, `(B, N, dim)`, N = F x tokens of a frame.
            audio: Audio tokens, `(1 or B, F, M, token_dim)`, speaker 1 first.
            labels: Label position of every video token, `(B, N)`; `None` for one speaker, which
                turns nothing.
            attend: Who computes the attention.

        Returns:
            `(B, N, dim)`.
        """
        batch, frames = x.shape[0], audio.shape[1]
        q, k, v = self.project(x, audio, labels=labels)
        tokens = attend(
            q.reshape(batch * frames, -1, *q.shape[2:]),
            k.expand(batch, *k.shape[1:]).flatten(0, 1),
            v.expand(batch, *v.shape[1:]).flatten(0, 1),
        )
        output: Tensor = self.proj(tokens.reshape(x.shape))
        return output

    def project(self, x: Tensor, audio: Tensor, *, labels: Tensor | None) -> Heads:
        """Give queries `(B, N, A, D)`, and keys and values `(1 or B, F, M, A, D)`; labels turn."""
        split = (self.num_heads, -1)
        q = self.q_linear(x).unflatten(-1, split)
        k, v = (part.unflatten(-1, split) for part in self.kv_linear(audio).chunk(2, dim=-1))
        if labels is None:
            return Heads(q, k, v)
        places = audio_positions(audio.shape[2] // 2, device=x.device)
        k_turn = label_rotation(places, head_dim=q.shape[-1])
        q = rotate(q, label_rotation(labels, head_dim=q.shape[-1]))
        return Heads(q, rotate(k.flatten(0, 1), k_turn).view_as(k), v)


@torch.no_grad()
def reference_map(q_BNAD: Tensor, k_BNAD: Tensor, *, token_masks: Tensor) -> Tensor:  # noqa: N803
    """Tell how much each video token looks at each region of the photo (the first latent frame).

    The mean over a region's tokens, and over all heads, of the attention to the first frame. Worked
    through in stretches of queries: never more than a fixed number of bytes of scores at once.
    No gradient flows through it, as upstream.

    Args:
        q_BNAD: Queries of all tokens, turned by the grid.
        k_BNAD: Keys of all tokens, turned by the grid; only the first frame's are used.
        token_masks: Regions on the token grid of one frame, `(S + 1, tokens of a frame)` for all
            of the batch or `(B, S + 1, tokens of a frame)` for each, 0 or 1.

    Returns:
        `(B, S + 1, N)`, float32.
    """
    masks = token_masks.to(device=q_BNAD.device, dtype=torch.float32)
    weights = masks / masks.sum(dim=-1, keepdim=True).clamp(min=1.0)
    num_keys = masks.shape[-1]
    k_BADM = k_BNAD[:, :num_keys].permute(0, 2, 3, 1)  # noqa: N806
    batch, num_queries, num_heads, width = q_BNAD.shape
    stretch = max(1, _MAP_BYTES // (4 * batch * num_heads * num_keys))
    parts = []
    for start in range(0, num_queries, stretch):
        q_BAND = q_BNAD[:, start : start + stretch].transpose(1, 2) * width**-0.5  # noqa: N806
        attention = (q_BAND @ k_BADM).softmax(dim=-1, dtype=torch.float32)
        parts.append((attention.mean(dim=1) @ weights.mT).transpose(1, 2))
    return torch.cat(parts, dim=-1)
