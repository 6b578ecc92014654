"""Audio tokens: from windows of wav2vec2 features to the context of audio cross-attention.

Follows `AudioProjModel` and the windowing in `WanModel.forward`, MultiTalk
`wan/modules/multitalk_model.py`; paper arXiv:2505.22647. Latent frame 0 stands for one video
frame, every later one for four, so there are two input layers of different width.

Letters: S speakers, T video frames, F latent frames, L wav2vec2 layers, C their width.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as functional
from torch import Tensor, nn

from ..config import AUDIO_WINDOW, AudioConfig
from ..errors import InputError
from ..geometry import FRAME_STRIDE
from ..protocols import Ops

_NORM_EPS = 1e-5


def window_features(features: Tensor, *, start: int, stop: int, radius: int = 2) -> Tensor:
    """Gather the features around each video frame of a segment.

    Frames before the first and after the last repeat the edge frame.

    Args:
        features: wav2vec2 layers at the video rate, `(T, L, C)`.
        start: First video frame of the segment.
        stop: One past the last; may exceed `T`.
        radius: Frames on each side; 2 gives windows of 5 (80 ms either way at 25 fps).

    Returns:
        Windows, `(stop - start, 2 * radius + 1, L, C)`, same dtype and device.

    Raises:
        InputError: If `features` holds no frame.
    """
    if not features.shape[0]:
        raise InputError("The voice has no audio features. Give a recording of at least 0.4 s.")
    centres = torch.arange(start, stop, device=features.device)
    offsets = torch.arange(-radius, radius + 1, device=features.device)
    return features[(centres[:, None] + offsets).clamp(0, features.shape[0] - 1)]


@dataclass(frozen=True, slots=True, eq=False)
class AudioContext:
    """What audio cross-attention attends to.

    Attributes:
        tokens: Audio tokens, `(1 or B, F, S * num_tokens, token_dim)`, speaker 1 first.
        token_masks: Where each speaker is on the token grid of one frame, then the background,
            `(S + 1, tokens of a frame)` for all of the batch or `(B, S + 1, tokens of a frame)`
            for each, 0 or 1; used only if there are two speakers.
        strength: Multiplier of the attention's output; 0 is the base model. Inside the blocks a
            0-d CPU tensor, so that another value does not recompile.
    """

    tokens: Tensor
    token_masks: Tensor | None = None
    strength: Tensor | float = 1.0


class AudioProjection(nn.Module):
    """Projects the windows of a segment's video frames to audio tokens of its latent frames."""

    def __init__(
        self, config: AudioConfig, *, ops: Ops, device: torch.device | str | None = None
    ) -> None:
        super().__init__()
        self.config = config
        slot = config.layers * config.channels
        hidden = config.hidden_dim
        self.proj1 = ops.Linear(AUDIO_WINDOW * slot, hidden, device=device)
        self.proj1_vf = ops.Linear((AUDIO_WINDOW + FRAME_STRIDE - 1) * slot, hidden, device=device)
        self.proj2 = ops.Linear(hidden, hidden, device=device)
        self.proj3 = ops.Linear(hidden, config.num_tokens * config.token_dim, device=device)
        self.norm = (
            nn.LayerNorm(config.token_dim, eps=_NORM_EPS, device=device)
            if config.norm_tokens
            else None
        )

    def forward(self, windows: Tensor) -> Tensor:
        """Project windows `(S, T, 5, L, C)`, T = 4n + 1, to tokens `(S, F, num_tokens, token_dim)`.

        Raises:
            InputError: If T is not 4n + 1, or the adapter needs other L or C.
        """
        if windows.shape[1] % FRAME_STRIDE != 1:
            raise InputError(
                f"A segment has {windows.shape[1]} video frames; it needs a multiple of 4, plus 1. "
                "Change the segment length."
            )
        self.config.check_features(*windows.shape[-2:])
        first, later = first_frame(windows), later_frames(windows)
        hidden = torch.cat((self.proj1(first).relu(), self.proj1_vf(later).relu()), dim=1)
        tokens: Tensor = self.proj3(self.proj2(hidden).relu())
        tokens = torch.unflatten(tokens, -1, (self.config.num_tokens, self.config.token_dim))
        if self.norm is None:
            return tokens
        weight, bias = self.norm.weight.to(tokens.dtype), self.norm.bias.to(tokens.dtype)
        return functional.layer_norm(tokens, weight.shape, weight, bias, _NORM_EPS)


def join_speakers(tokens: Tensor) -> Tensor:
    """Concatenate the speakers' tokens of each frame, speaker 1 first.

    From `(S, F, num_tokens, token_dim)` to `(1, F, S * num_tokens, token_dim)`.
    """
    return tokens.transpose(0, 1).flatten(1, 2).unsqueeze(0)


def first_frame(windows: Tensor) -> Tensor:
    """Return the input of latent frame 0: the window of video frame 0, `(S, 1, 5 * L * C)`."""
    return windows[:, :1].flatten(2)


def later_frames(windows: Tensor) -> Tensor:
    """Return the input of every later latent frame, `(S, F - 1, 8 * L * C)`.

    Eight features of the four video frames a to d: a's window up to its centre, the centres of b
    and c, and d's window from its centre on.
    """
    num_groups = windows.shape[1] // FRAME_STRIDE
    groups = torch.unflatten(windows[:, 1:], 1, (num_groups, FRAME_STRIDE))
    centre = AUDIO_WINDOW // 2
    slots = (groups[:, :, 0, : centre + 1], groups[:, :, 1:-1, centre], groups[:, :, -1, centre:])
    return torch.cat(slots, dim=2).flatten(2)
