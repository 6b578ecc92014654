"""CLIP: ComfyUI's own UMT5 text encoder, in any size, from any packaging.

ComfyUI's loader reads only the full size in its own names, and no GGUF. The classes are ComfyUI's
own (`T5`, `SDClipModel`, `WanT5Tokenizer`); their sizes come from the shapes in the file. Packed
weights, scaled FP8 and INT8 included, stay packed in memory.
"""

from __future__ import annotations

import dataclasses
import functools
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import comfy.model_management
import comfy.ops
import comfy.sd
import comfy.sd1_clip
import comfy.text_encoders.t5
import comfy.text_encoders.wan
import folder_paths
import torch

from ...multitalk_core.errors import WeightsError
from ...multitalk_core.files.identify import FileKind, identify, require
from ...multitalk_core.files.sizes import Umt5Sizes, umt5_sizes
from ...wan_gguf_loader.files import open_weights
from ...wan_gguf_loader.load import load_weights
from ...wan_gguf_loader.tokenizer import tokenizer_model
from ...wan_gguf_loader.types import PLAIN_DTYPES
from .layers import HostLinear, adopt

_NAME = "umt5xxl"  # ComfyUI's key of the token lists
_BUCKETS = 32  # of the relative positions, fixed in ComfyUI's class


class _PackedOps(comfy.ops.manual_cast):
    """ComfyUI's casting layers, with linear ones that hold packed bytes."""

    Linear = HostLinear


def load_text_encoder(path: Path) -> Any:
    """Load a UMT5 encoder as ComfyUI's CLIP.

    Raises:
        WeightsError: If the file is something else.
        GGUFError: If it cannot be read, or there is no tokenizer.
    """
    with open_weights(path, part="text_encoder") as file:
        require(
            identify(file.shapes, file.metadata), FileKind.UMT5, source=path.name, place="Load UMT5"
        )
        sizes = umt5_sizes(file.shapes, source=path.name)
        if sizes.relative_attention_num_buckets != _BUCKETS:
            raise WeightsError(
                f"{path.name} has {sizes.relative_attention_num_buckets} position buckets; "
                f"ComfyUI's UMT5 has {_BUCKETS}. Get umt5_xxl_fp16.safetensors."
            )
        dtype = PLAIN_DTYPES.get(file.weight_info("shared.weight").type, torch.bfloat16)
        clip = _clip(
            sizes,
            tokenizer=tokenizer_model(file),
            dtype=dtype if dtype.itemsize > 1 else torch.bfloat16,
        )
        transformer = getattr(clip.cond_stage_model, _NAME).transformer
        for name, parameter in transformer.named_parameters():
            if "norm" in name:
                parameter.data = parameter.data.float()
        load_weights(transformer, [file])
    adopt(transformer)
    # The patcher asks for the dtype of each tensor: that of the file, not of the empty model.
    comfy.model_management.archive_model_dtypes(clip.cond_stage_model)
    return clip


def _settings(sizes: Umt5Sizes) -> dict[str, Any]:
    return {
        "model_type": "umt5",
        "dense_act_fn": "gelu_pytorch_tanh",
        "is_gated_act": True,
        **dataclasses.asdict(sizes),
    }


def _clip(sizes: Umt5Sizes, *, tokenizer: bytes, dtype: torch.dtype) -> Any:
    """Build ComfyUI's CLIP on "meta"; `dtype` is that of the word embedding."""
    encoder = functools.partial(
        comfy.sd1_clip.SDClipModel,
        layer="last",
        textmodel_json_config=_settings(sizes),
        special_tokens={"end": 1, "pad": 0},
        model_class=comfy.text_encoders.t5.T5,
        enable_attention_masks=True,
        zero_out_masked=True,
    )
    target = SimpleNamespace(
        clip=functools.partial(comfy.sd1_clip.SD1ClipModel, name=_NAME, clip_model=encoder),
        tokenizer=comfy.text_encoders.wan.WanT5Tokenizer,
        params={},
    )
    return comfy.sd.CLIP(
        target,
        embedding_directory=folder_paths.get_folder_paths("embeddings"),
        tokenizer_data={"spiece_model": tokenizer},
        model_options={
            "custom_operations": _PackedOps,
            "initial_device": torch.device("meta"),
            "dtype": dtype,
        },
    )
