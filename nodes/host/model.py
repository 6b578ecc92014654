"""MODEL: the Wan2.1 base and the MultiTalk adapter as a native ComfyUI model."""

from __future__ import annotations

import dataclasses
import logging
import math
from pathlib import Path
from types import MappingProxyType
from typing import Any

import comfy.context_windows
import comfy.model_base
import comfy.model_management
import comfy.supported_models
import torch
from torch import nn

from ...multitalk_core.config import ModelConfig
from ...multitalk_core.errors import InputError
from ...multitalk_core.files.identify import FileKind, identify, require
from ...multitalk_core.files.sizes import audio_config, model_config
from ...multitalk_core.model.backends import video_attention
from ...multitalk_core.model.dit import entries_at_once
from ...wan_gguf_loader.files import WeightsFile, open_weights
from ...wan_gguf_loader.int8 import multiplies_int8
from ...wan_gguf_loader.load import load_weights
from ...wan_gguf_loader.ops import Precision
from .dit import HostMultiTalk
from .internals import init_wan
from .layers import HostLinear, adopt
from .patcher import Resting, make_patcher, move_to_model, resting

NET = "diffusion_model"
_DTYPES = [torch.bfloat16, torch.float16, torch.float32]
"""Compute dtypes, best first: bfloat16 does not overflow, and its rounding residual is kept."""

_log = logging.getLogger(__name__)


class MultiTalkWAN(comfy.model_base.WAN21):
    """ComfyUI's model class of Wan2.1 image-to-video, with this pack's transformer."""

    def __init__(self, net: HostMultiTalk) -> None:
        config = comfy.supported_models.WAN21_I2V(
            {"image_model": "wan2.1", "model_type": "i2v", "in_dim": 36, "dim": net.config.dim}
        )
        config.set_inference_dtype(net.dtype, net.dtype)
        init_wan(self, config, net)

    def resize_cond_for_context_window(
        self, cond_key: str, cond_value: Any, window: Any, x_in: Any, device: Any, **options: Any
    ) -> Any:
        """Cut the audio tokens to a context window; ComfyUI cuts the other conditions."""
        if cond_key == "audio":
            cut = comfy.context_windows.slice_cond(cond_value, window, x_in, device, temporal_dim=1)
            return cut or cond_value
        if cond_key == "token_masks":
            return cond_value
        return super().resize_cond_for_context_window(
            cond_key, cond_value, window, x_in, device, **options
        )

    def memory_required(self, input_shape: Any, cond_shapes: Any = MappingProxyType({})) -> float:
        """Estimate the bytes of a forward, which works on a batch in parts (`model/dit.py`)."""
        batch, *rest = input_shape
        num_tokens = max(1, math.prod(rest[1:]) // 4)
        at_once = min(batch, entries_at_once(num_tokens))
        work: float = super().memory_required([at_once, *rest], cond_shapes=cond_shapes)
        itemsize = comfy.model_management.dtype_size(self.get_dtype_inference())
        waiting: int = (batch - at_once) * num_tokens * self.diffusion_model.dim * itemsize
        return work + 2 * waiting

    def twin(self, tensors: Resting) -> MultiTalkWAN:
        """Make a second model around the same tensors, which `tensors` reads."""
        mine = self.diffusion_model
        net = _like(mine, mine.config, adapter=mine.adapter)
        adopt(net)
        _share(net, mine, tensors)
        return MultiTalkWAN(net)


def load_base(path: Path, *, precision: Precision = "exact") -> Any:
    """Load a Wan2.1 image-to-video file, GGUF or safetensors, as a MODEL.

    If the file already contains the adapter, so does the MODEL.

    Args:
        path: The file.
        precision: Precision of the matrix products in the large layers, also the adapter's.

    Raises:
        InputError: If ComfyUI's device or dtype does not support the precision.
        WeightsError: If the file is not a Wan2.1 image-to-video model.
        GGUFError: If the file cannot be read.
    """
    dtype = compute_dtype()
    _require_precision(precision, dtype)
    with open_weights(path) as file:
        require(
            identify(file.shapes, file.metadata),
            (FileKind.BASE_I2V, FileKind.MERGED),
            source=path.name,
            place="Load Wan2.1 (GGUF)",
        )
        config = model_config(file.shapes, num_heads=file.num_heads, source=path.name)
        device = comfy.model_management.get_torch_device()
        net = HostMultiTalk(
            config,
            dtype=dtype,
            precision=precision,
            attention=video_attention("auto", device=device, dtype=dtype).attend,
            adapter=path.name,
        )
        load_weights(net, [file], dtype=dtype)
    adopt(net)
    _log.info("%s: %d blocks of width %d", path.name, config.num_layers, config.dim)
    return make_patcher(MultiTalkWAN(net))


def load_adapter(model: Any, path: Path) -> Any:
    """Return a MODEL with the MultiTalk adapter added; it shares the given MODEL's tensors.

    Raises:
        InputError: If another loader made the MODEL, or it has an adapter already.
        WeightsError: If the file is not an adapter or does not fit the base.
        GGUFError: If the file cannot be read.
    """
    base = transformer_of(model)
    if base.config.audio is not None:
        raise InputError(
            "This MODEL has a MultiTalk adapter already. Connect the MODEL of Load Wan2.1 (GGUF)."
        )
    with open_weights(path) as file:
        require(
            identify(file.shapes, file.metadata),
            (FileKind.ADAPTER,),
            source=path.name,
            place="Load MultiTalk Adapter",
        )
        audio = audio_config(file.shapes, base=base.config, source=path.name)
        config = dataclasses.replace(base.config, audio=audio)
        net = _like(base, config, adapter=path.name)
        _load_audio_branch(net, file, base=base)
    adopt(net)
    _share(net, base, resting(model.model, model.backup))
    return move_to_model(model, MultiTalkWAN(net))


def transformer_of(model: Any) -> HostMultiTalk:
    """Return the transformer of a MODEL that this pack loaded.

    Raises:
        InputError: If another loader made the MODEL.
    """
    net = getattr(model.model, NET, None)
    if isinstance(net, HostMultiTalk):
        return net
    raise InputError(
        f"This MODEL is ComfyUI's {type(model.model).__name__}; this node needs one of this pack. "
        "Load the base with Load Wan2.1 (GGUF); it takes safetensors files too."
    )


def compute_dtype() -> torch.dtype:
    """Return the compute dtype that ComfyUI chooses for the transformer, preferably bfloat16.

    The server's flags (`--fp16-unet`, `--bf16-unet`, `--fp32-unet` ...) override the preference.
    An fp8 flag names no compute dtype, so ComfyUI chooses a wider one; weights keep the dtype of
    their file.
    """
    device = comfy.model_management.get_torch_device()
    stored: torch.dtype = comfy.model_management.unet_dtype(device, supported_dtypes=_DTYPES)
    cast = comfy.model_management.unet_manual_cast(stored, device, _DTYPES)
    return stored if cast is None else cast


def _like(net: HostMultiTalk, config: ModelConfig, *, adapter: str) -> HostMultiTalk:
    """Make an empty transformer with the dtype, precision and attention of `net`."""
    return HostMultiTalk(
        config, dtype=net.dtype, precision=net.precision, attention=net.attention, adapter=adapter
    )


def _require_precision(precision: Precision, dtype: torch.dtype) -> None:
    device = comfy.model_management.get_torch_device()
    if precision == "int8" and (dtype == torch.float32 or not multiplies_int8(device)):
        raise InputError(
            f"The precision int8 does not work here: ComfyUI computes on {device} in "
            f"{str(dtype).removeprefix('torch.')}, and int8 needs bfloat16 or float16 on a card of "
            "Turing or newer. Choose the precision exact."
        )


def _load_audio_branch(net: HostMultiTalk, file: WeightsFile, *, base: HostMultiTalk) -> None:
    """Load the layers that the adapter adds, as a module with the same parameter names."""
    branch = nn.Module()
    branch.audio_proj = net.audio_proj
    branch.blocks = nn.ModuleList()
    for block, plain in zip(net.blocks, base.blocks, strict=True):
        added = nn.Module()
        known = {name for name, _ in plain.named_children()}
        for name, child in block.named_children():
            if name not in known:
                added.add_module(name, child)
        branch.blocks.append(added)
    load_weights(branch, [file], dtype=net.dtype)


def _share(net: HostMultiTalk, source: HostMultiTalk, tensors: Resting) -> None:
    """Give `net` Parameters of its own that share the memory of those of `source`."""
    for path, theirs in source.named_modules():
        target = net.get_submodule(path)
        for leaf, _ in theirs.named_parameters(recurse=False):
            tensor = tensors(".".join(part for part in (NET, path, leaf) if part))
            target.register_parameter(leaf, nn.Parameter(tensor, requires_grad=False))
        if isinstance(theirs, HostLinear) and isinstance(target, HostLinear):
            target.take_type(theirs)
