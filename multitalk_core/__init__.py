"""MultiTalk on Wan2.1 in pure torch: photo and voices to a talking video.

Knows nothing of ComfyUI or of weight file formats.
"""

from __future__ import annotations

from .config import ApgConfig, AudioConfig, ModelConfig, SamplingConfig
from .dit import MultiTalkModel
from .errors import InputError, MultiTalkError, WeightsError
from .geometry import Box, GridSize, Size

__all__ = [
    "ApgConfig",
    "AudioConfig",
    "Box",
    "GridSize",
    "InputError",
    "ModelConfig",
    "MultiTalkError",
    "MultiTalkModel",
    "SamplingConfig",
    "Size",
    "WeightsError",
]
