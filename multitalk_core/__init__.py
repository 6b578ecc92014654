"""MultiTalk on Wan2.1 in pure torch: photo and voices to a talking video.

Knows nothing of ComfyUI or of weight file formats.
"""

from __future__ import annotations

from .config import ApgConfig, AudioConfig, ModelConfig, SamplingConfig
from .engine import Speech, Step, generate
from .errors import InputError, MultiTalkError, WeightsError
from .files.identify import FileKind, Identity, identify, require
from .files.sizes import audio_config, model_config
from .geometry import Box, GridSize, Size
from .model.dit import MultiTalkModel

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
