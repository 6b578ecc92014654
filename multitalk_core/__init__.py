"""MultiTalk on Wan2.1 in pure torch: photo and voices to a talking video.

Knows nothing of ComfyUI or of weight file formats.
"""

from __future__ import annotations

from .config import ApgConfig, AudioConfig, ModelConfig, SamplingConfig
from .engine import Engine, Finished, Step
from .errors import InputError, MultiTalkError, WeightsError
from .files.identify import FileKind, Identity, identify, require
from .files.sizes import audio_config, model_config
from .geometry import Box, GridSize, Size
from .inputs.scene import Picture, Scene, Text, compose
from .inputs.speech import Speech, listen
from .method.sampler import EulerSampler
from .method.state import SegmentState
from .model.dit import MultiTalkModel

__all__ = [
    "ApgConfig",
    "AudioConfig",
    "Box",
    "Engine",
    "EulerSampler",
    "FileKind",
    "Finished",
    "GridSize",
    "Identity",
    "InputError",
    "ModelConfig",
    "MultiTalkError",
    "MultiTalkModel",
    "Picture",
    "SamplingConfig",
    "Scene",
    "SegmentState",
    "Size",
    "Speech",
    "Step",
    "Text",
    "WeightsError",
    "audio_config",
    "compose",
    "identify",
    "listen",
    "model_config",
    "require",
]
