"""CLIP_VISION: ComfyUI's own picture encoder, in any size, from safetensors or GGUF."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import comfy.clip_vision
import comfy.model_management
from torch import Tensor

from ...multitalk_core.errors import InputError
from ...multitalk_core.files.identify import FileKind, identify, require
from ...multitalk_core.files.sizes import check_shapes, clip_sizes, shape_of
from ...multitalk_core.inputs.photo import resize_for_clip
from ...wan_gguf_loader.files import open_weights

_PROJECTION = "visual_projection.weight"


def load_clip_vision(path: Path) -> Any:
    """Load a CLIP vision tower as ComfyUI's CLIP_VISION.

    Raises:
        WeightsError: If the file is something else.
        GGUFError: If it cannot be read.
    """
    with open_weights(path) as file:
        identity = identify(file.shapes)
        require(identity, FileKind.CLIP_VISION, source=path.name, place="Load CLIP Vision")
        sizes = clip_sizes(file.shapes, num_heads=file.num_heads, source=path.name)
        settings = {"model_type": "clip_vision_model", "hidden_act": "gelu", **asdict(sizes)}
        if _PROJECTION in file.tensors:
            settings["projection_dim"] = shape_of(file.shapes, _PROJECTION, source=path.name)[0]
        clip = comfy.clip_vision.ClipVisionModel(settings)
        needed = {name: tuple(tensor.shape) for name, tensor in clip.get_sd().items()}
        check_shapes(file.shapes, needed, source=path.name, what="a CLIP vision encoder")
        clip.load_sd({name: file.dequantize(name) for name in needed})
    return clip


def encode_picture(clip: Any, image: Tensor) -> Tensor:
    """Turn a picture `(1, 3, H, W)` in [-1, 1] into tokens `(1, 257, C)`, hidden state -2.

    Resized as upstream does, without the crop of ComfyUI's own preprocessing.

    Raises:
        InputError: If the encoder is no CLIP of 224 pixels.
    """
    model = clip.model
    if getattr(clip, "image_size", None) != 224 or not hasattr(model, "vision_model"):
        raise InputError(
            f"This CLIP_VISION is a {getattr(clip, 'model_type', 'model')} of "
            f"{getattr(clip, 'image_size', '?')} pixels; Wan2.1 needs CLIP ViT-H at 224. "
            "Load clip_vision_h.safetensors with Load CLIP Vision."
        )
    comfy.model_management.load_model_gpu(clip.patcher)
    pixels = resize_for_clip(image).to(clip.load_device)
    tokens: Tensor = model(pixel_values=pixels.float(), intermediate_output=-2)[1]
    return tokens.float()
