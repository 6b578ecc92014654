"""Rotary position embeddings: of the video grid (3-D) and of the speakers' labels (L-RoPE, 1-D).

Self-attention rotates video tokens by their position in the grid, as in Wan2.1. With two speakers,
audio cross-attention rotates video and audio tokens by a label. A video token that attends mostly
to speaker 1 gets a label in [0, 4], and speaker 1's audio tokens get 2; for speaker 2 these are
[20, 24] and 22; the background gets 12. So each voice moves its own speaker.
Follows `rope_apply` in MultiTalk `wan/modules/multitalk_model.py`, `SingleStreamMutiAttention` in
`wan/modules/attention.py` and `wan/utils/multitalk_utils.py`; paper arXiv:2505.22647.

Letters: B batch, S speakers, F latent frames, N tokens, M audio tokens, A heads, D head width.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ..geometry import GridSize

LABEL_RANGE = 24.0
"""Labels lie in [0, 24]."""
LABEL_WIDTH = 4.0
"""Width of a speaker's range of labels: the first speaker's is lowest, the second's highest."""
MAX_SPEAKERS = 2
"""The most speakers that the adapters were trained with."""

_SPEAKER_RANGES = ((0.0, LABEL_WIDTH), (LABEL_RANGE - LABEL_WIDTH, LABEL_RANGE))
_BACKGROUND = LABEL_RANGE / 2
_THETA = 10000.0
_CHUNK_BYTES = 64 * 2**20


class Rotation(NamedTuple):
    """Cosines and sines of N positions, each `(N, D / 2)` or `(B, N, D / 2)`, float32."""

    cos: Tensor
    sin: Tensor


class Placement(NamedTuple):
    """Rotary positions of a token grid, along frames, rows and columns.

    Token i of an axis has the position `shift + i * scale`.
    """

    scale: tuple[float, float, float]
    shift: tuple[float, float, float]


UNMOVED = Placement(scale=(1.0, 1.0, 1.0), shift=(0.0, 0.0, 0.0))


def axis_frequencies(head_dim: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return the radians per token along frames, rows and columns, float64.

    Args:
        head_dim: Width of one head; rows and columns get `2 * (head_dim // 6)` of it each, frames
            the rest.
    """
    side = 2 * (head_dim // 6)
    frames, height, width = (_frequencies(axis) for axis in (head_dim - 2 * side, side, side))
    return frames, height, width


def grid_rotation(
    grid: GridSize, *, head_dim: int, device: torch.device, placement: Placement = UNMOVED
) -> Rotation:
    """Return the 3-D rotation of every token of a grid, in the order frame, row, column.

    The angles are computed in float64 on the CPU, because some devices have no float64.
    """
    tables: tuple[list[Tensor], list[Tensor]] = ([], [])
    for i_axis, (length, frequencies) in enumerate(
        zip(grid, axis_frequencies(head_dim), strict=True)
    ):
        places = torch.arange(length, dtype=torch.float64) * placement.scale[i_axis]
        angles = torch.outer(places + placement.shift[i_axis], frequencies)
        view = [1, 1, 1, -1]
        view[i_axis] = length
        for table, values in zip(tables, (angles.cos(), angles.sin()), strict=True):
            values = values.to(torch.float32).to(device, non_blocking=True)
            table.append(values.view(view).expand(*grid, -1))
    cos, sin = (torch.cat(table, dim=-1).flatten(0, 2) for table in tables)
    return Rotation(cos, sin)


def label_rotation(positions: Tensor, *, head_dim: int) -> Rotation:
    """Return the 1-D rotation of label positions `(..., N)`, over the full head width."""
    frequencies = _frequencies(head_dim).to(torch.float32).to(positions.device, non_blocking=True)
    angles = positions.float().unsqueeze(-1) * frequencies
    return Rotation(angles.cos(), angles.sin())


def rotate(x_BNAD: Tensor, rotation: Rotation) -> Tensor:  # noqa: N803
    """Rotate the interleaved pairs `(x0, x1)` of every head by their token's angle.

    Computed in float32, some tokens at a time, so that a long sequence in half precision never
    needs memory for all of it in float32.

    Args:
        x_BNAD: Queries or keys, `(B, N, A, D)`.
        rotation: Of N positions, for the whole batch or for each entry.

    Returns:
        The same shape and dtype.
    """
    num_tokens = max(1, _CHUNK_BYTES // (4 * max(1, x_BNAD[:, :1].numel())))
    turned = []
    for start in range(0, x_BNAD.shape[1], num_tokens):
        part = slice(start, start + num_tokens)
        cos, sin = (table[..., part, None, :] for table in rotation)
        even, odd = x_BNAD[:, part, :, 0::2], x_BNAD[:, part, :, 1::2]
        pairs = torch.stack((even * cos - odd * sin, even * sin + odd * cos), dim=-1)
        turned.append(pairs.flatten(-2).to(x_BNAD.dtype))
    return torch.cat(turned, dim=1)


def label_positions(reference_map: Tensor) -> Tensor:
    """Return each video token's label: that of the region it attends to most.

    Each speaker's row is scaled to that speaker's range by its minimum and maximum over all tokens
    of the segment. The region is chosen by the values before scaling.

    Args:
        reference_map: Attention to each region, `(..., 3, N)`: speaker 1, speaker 2, background.

    Returns:
        Positions, `(..., N)`, float32.
    """
    rows = reference_map.float()
    choices = [
        scale_to_range(rows[..., i_speaker, :], low=low, high=high)
        for i_speaker, (low, high) in enumerate(_SPEAKER_RANGES)
    ]
    choices.append(torch.full_like(choices[0], _BACKGROUND))
    winner = rows.argmax(dim=-2, keepdim=True)
    return torch.stack(choices, dim=-2).gather(-2, winner).squeeze(-2)


def audio_positions(tokens_per_speaker: int, *, device: torch.device) -> Tensor:
    """Return the labels of one frame's audio tokens: the middle of each speaker's range.

    Returns:
        Positions, `(S * tokens_per_speaker,)`, float32, speaker 1 first.
    """
    middles = [
        torch.full((tokens_per_speaker,), (low + high) / 2, device=device)
        for low, high in _SPEAKER_RANGES
    ]
    return torch.cat(middles)


def scale_to_range(values: Tensor, *, low: float, high: float) -> Tensor:
    """Scale values `(..., N)` to [low, high] by their own minimum and maximum."""
    least, most = values.aminmax(dim=-1, keepdim=True)
    # as upstream multitalk_utils.py `normalize_and_scale`: equal values all become `low`
    return (values - least) / (most - least + 1e-8) * (high - low) + low


def _frequencies(width: int) -> Tensor:
    exponents = torch.arange(0, width, 2, dtype=torch.float64) / width
    return torch.pow(torch.tensor(_THETA, dtype=torch.float64), exponents).reciprocal()
