"""Fill a model with the tensors of weights files, one at a time.

The model was built on the "meta" device, so the only memory taken is that of its weights: packed
bytes stay packed in `GGUFLinear` layers; all other tensors are decoded when they are loaded.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterator, Mapping, Sequence

import torch
from torch import Tensor, nn

from .dequant import PACKED_TYPES
from .errors import GGUFError
from .files import WeightsFile
from .names import first_names, reconcile_shape
from .ops import GGUFLinear
from .rows import ROW_TYPES
from .types import TYPES_BY_NAME

_log = logging.getLogger(__name__)


def load_weights(
    model: nn.Module, files: Sequence[WeightsFile], *, dtype: torch.dtype | None = None
) -> None:
    """Load a model from one or more files that together hold all of it.

    Args:
        model: Built on the "meta" device. Its `GGUFLinear` layers keep their weights as stored;
            every other tensor is decoded to the dtype the model declares (float32 for norms,
            modulation and biases).
        files: Where each tensor is in exactly one.
        dtype: Plain weights of `GGUFLinear` layers that are wider than this are rounded to it.

    Raises:
        GGUFError: If a tensor is missing, is in two files, has another shape, or belongs to a
            layer of the model and would not be read. The model is then part loaded and of no use.
    """
    expected = model.state_dict()
    places = _locate(expected, files)
    for file in files:
        account_for(file, expected)
    for name in expected:
        file = places[name]
        path, _, leaf = name.rpartition(".")
        owner = model.get_submodule(path)
        if isinstance(owner, GGUFLinear) and leaf == "weight":
            _load_linear(owner, file, name, dtype=dtype)
        else:
            _load_plain(owner, leaf, file, name)


def account_for(file: WeightsFile, read: Collection[str]) -> None:
    """Make sure that what a file says of the layers that are loaded is read, and name the rest.

    A scale or a shift that nobody applies would make a wrong video without a word.

    Args:
        file: The file.
        read: Names of the tensors that are read from it or from a file beside it.

    Raises:
        GGUFError: If another tensor belongs to a layer or a tensor among `read`.
    """
    layers = {name.removesuffix(".weight") for name in read}
    beside = file.variant.spelling.naming.beside
    unread = [
        name for name in file.tensors if name not in read and not (beside and beside.search(name))
    ]
    needed = [name for name in unread if any(path in layers for path in _ancestors(name))]
    if needed:
        raise GGUFError(
            f"{len(needed)} tensors of layers that are loaded are of no known use: "
            f"{first_names(needed)}. The weights would be wrong without them. Get another file of "
            "this model.",
            path=file.path,
        )
    if unread:
        _log.warning(
            "%s: %d tensors have no place in this model and are left out (%s)",
            file.path.name, len(unread), first_names(unread),
        )  # fmt: skip


def _ancestors(name: str) -> Iterator[str]:
    parts = name.split(".")
    return (".".join(parts[:count]) for count in range(1, len(parts)))


def _locate(expected: Mapping[str, Tensor], files: Sequence[WeightsFile]) -> dict[str, WeightsFile]:
    """Find the one file of every expected name."""
    places: dict[str, WeightsFile] = {}
    for file in files:
        for name in file.tensors:
            if name in expected and name in places:
                raise GGUFError(
                    f"tensor {name!r} is in {places[name].path.name} too. "
                    "Load each part of the model from one file.",
                    path=file.path,
                )
            if name in expected:
                places[name] = file
    missing = [name for name in expected if name not in places]
    if missing:
        sources = ", ".join(file.path.name for file in files)
        raise GGUFError(
            f"{len(missing)} of the {len(expected)} tensors of the model are not in {sources}: "
            f"{first_names(missing)}. Load every file the model needs.",
        )
    return places


def _load_linear(
    layer: GGUFLinear, file: WeightsFile, name: str, *, dtype: torch.dtype | None
) -> None:
    info = file.weight_info(name)
    shape = (layer.out_features, layer.in_features)
    reconcile_shape(info.shape, shape, name=name, path=file.path)
    if info.type not in PACKED_TYPES:
        weight = file.read(name).view(shape)
        if dtype is not None and weight.dtype.itemsize > dtype.itemsize:
            weight = weight.to(dtype)
        layer.store_weight(weight, info.type)
    elif info.type in ROW_TYPES:
        layer.store_weight(file.read(name), info.type)
    elif layer.in_features % TYPES_BY_NAME[info.type].block:  # its blocks run across rows
        layer.store_weight(file.dequantize(name, dtype=dtype or torch.float32).view(shape), "F32")
    else:
        layer.store_weight(file.read(name).view(layer.out_features, -1), info.type)


def _load_plain(owner: nn.Module, leaf: str, file: WeightsFile, name: str) -> None:
    target: Tensor = getattr(owner, leaf)
    shape = tuple(target.shape)
    reconcile_shape(file.tensors[name].shape, shape, name=name, path=file.path)
    value = file.dequantize(name, dtype=target.dtype).view(shape)
    is_parameter = isinstance(target, nn.Parameter)
    setattr(owner, leaf, nn.Parameter(value, requires_grad=False) if is_parameter else value)
