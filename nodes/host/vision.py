"""CLIP_VISION: ComfyUI's own picture encoder, in any size, from safetensors or GGUF."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import comfy.clip_vision
import comfy.model_management
import torch
from torch import Tensor

from ...multitalk_core.errors import InputError, WeightsError
from ...multitalk_core.files.identify import FileKind, identify, require
from ...multitalk_core.inputs.photo import resize_for_clip
from ...wan_gguf_loader.files import open_weights

_PREFIX = "vision_model."
_HEAD_DIMS = {1280: 80, 1408: 88, 1664: 104}  # ViT-H, ViT-g, ViT-bigG; 64 for the smaller ones


def load_clip_vision(path: Path) -> Any:
    """Load a CLIP vision tower as ComfyUI's CLIP_VISION.

    Raises:
        WeightsError: If the file is something else.
        GGUFError: If it cannot be read.
    """
    with open_weights(path) as file:
        require(
            identify(file.shapes),
            (FileKind.CLIP_VISION,),
            source=path.name,
            place="Load CLIP Vision",
        )
        weights = {
            name: file.dequantize(name) if file.tensors[name].shape else file.read(name)
            for name in file.tensors
            if name.startswith((_PREFIX, "visual_projection."))
        }
        clip = comfy.clip_vision.ClipVisionModel(_sizes(weights, num_heads=file.num_heads))
    missing, _ = clip.load_sd(weights)
    if missing:
        raise WeightsError(
            f"{path.name} lacks {len(missing)} tensors of a CLIP vision encoder, such as "
            f"{missing[0]}. Download it again."
        )
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


def _sizes(weights: Mapping[str, Tensor], *, num_heads: int | None) -> dict[str, Any]:
    """Read ComfyUI's CLIP vision settings off the shapes."""
    width, channels, patch, _ = weights[f"{_PREFIX}embeddings.patch_embedding.weight"].shape
    tokens = weights[f"{_PREFIX}embeddings.position_embedding.weight"].shape[0]
    layers = {
        name.split(".")[3] for name in weights if name.startswith(f"{_PREFIX}encoder.layers.")
    }
    sizes = {
        "model_type": "clip_vision_model",
        "hidden_act": "gelu",
        "hidden_size": width,
        "intermediate_size": weights[f"{_PREFIX}encoder.layers.0.mlp.fc1.weight"].shape[0],
        "num_attention_heads": num_heads or max(1, width // _HEAD_DIMS.get(width, 64)),
        "num_hidden_layers": len(layers),
        "num_channels": channels,
        "patch_size": patch,
        "image_size": patch * round((tokens - 1) ** 0.5),
    }
    projection = weights.get("visual_projection.weight")
    if isinstance(projection, torch.Tensor):
        sizes["projection_dim"] = projection.shape[0]
    return sizes
