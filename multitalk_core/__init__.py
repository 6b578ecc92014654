"""MultiTalk on Wan2.1 in pure torch: photo and voices to a talking video.

Knows nothing of ComfyUI or of weight file formats.
"""

from __future__ import annotations

from .config import ApgConfig, AudioConfig, ModelConfig, SamplingConfig
from .dit import MultiTalkModel
from .errors import InputError, MultiTalkError, WeightsError
from .geometry import Box, GridSize, Size
from .pipeline import Speech, Step, generate
from .weights import FileKind, Identity, audio_config, identify, model_config, require

__all__ = [
    "ApgConfig",
    "AudioConfig",
    "Box",
    "FileKind",
    "GridSize",
    "Identity",
    "InputError",
    "ModelConfig",
    "MultiTalkError",
    "MultiTalkModel",
    "SamplingConfig",
    "Size",
    "Speech",
    "Step",
    "WeightsError",
    "audio_config",
    "generate",
    "identify",
    "model_config",
    "require",
]
