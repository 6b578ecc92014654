"""CLIP_VISION: ComfyUI's own picture encoder, in any size, from any packaging."""

from __future__ import annotations

import logging
from dataclasses import asdict
from pathlib import Path
from typing import Any

import comfy.clip_vision
import comfy.model_management
from torch import Tensor, nn

from ...multitalk_core.errors import InputError
from ...multitalk_core.files.identify import FileKind, identify, require
from ...multitalk_core.files.sizes import check_shapes, clip_sizes, shape_of
from ...multitalk_core.inputs.photo import resize_for_clip
from ...wan_gguf_loader.files import WeightsFile, open_weights
from ...wan_gguf_loader.load import account_for

_FINAL_NORM = "vision_model.post_layernorm"
_PROJECTION = "visual_projection.weight"
_TURNED_PROJECTION = "visual_projection"
"""The same of open_clip and Wan, which multiply from the other side."""
_log = logging.getLogger(__name__)


def load_clip_vision(path: Path) -> Any:
    """Load a CLIP vision tower as ComfyUI's CLIP_VISION.

    Raises:
        WeightsError: If the file is something else.
        GGUFError: If it cannot be read.
    """
    with open_weights(path, part="clip_vision") as file:
        identity = identify(file.shapes, file.metadata)
        require(identity, FileKind.CLIP_VISION, source=path.name, place="Load CLIP Vision")
        sizes = clip_sizes(file.shapes, num_heads=file.num_heads, source=path.name)
        settings = {"model_type": "clip_vision_model", "hidden_act": "gelu", **asdict(sizes)}
        projection = _projection(file)
        if projection is not None:
            settings["projection_dim"] = len(projection)
        clip = comfy.clip_vision.ClipVisionModel(settings)
        if f"{_FINAL_NORM}.weight" not in file.tensors:
            _log.warning(
                "%s has no final norm. MultiTalk does not use it, but nodes that read the image "
                "embedding get another one.",
                path.name,
            )
            clip.model.vision_model.post_layernorm = nn.Identity()
        needed = {
            name: tuple(tensor.shape)
            for name, tensor in clip.get_sd().items()
            if name != _PROJECTION
        }
        check_shapes(file.shapes, needed, source=path.name, what="a CLIP vision encoder")
        account_for(file, needed)
        weights = {name: file.dequantize(name) for name in needed}
        clip.load_sd(weights if projection is None else weights | {_PROJECTION: projection})
    return clip


def _projection(file: WeightsFile) -> Tensor | None:
    """Read the matrix `(P, C)` of ComfyUI's image embedding, which Wan2.1 does not need."""
    for name in (_PROJECTION, _TURNED_PROJECTION):
        if name in file.tensors:
            shape_of(file.shapes, name, source=file.path.name)  # two dimensions
            matrix = file.dequantize(name)
            return matrix if name == _PROJECTION else matrix.T.contiguous()
    return None


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
