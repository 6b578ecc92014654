"""GGUF and safetensors weights files to torch; knows nothing of MultiTalk or ComfyUI."""

from __future__ import annotations

from .dequant import PACKED_TYPES, dequantize
from .errors import GGUFError
from .files import TensorInfo, WeightsFile, open_weights
from .load import load_weights
from .lora import apply_lora, read_lora
from .ops import GGUFLinear, GGUFOps

__all__ = [
    "PACKED_TYPES",
    "GGUFError",
    "GGUFLinear",
    "GGUFOps",
    "TensorInfo",
    "WeightsFile",
    "apply_lora",
    "dequantize",
    "load_weights",
    "open_weights",
    "read_lora",
]
