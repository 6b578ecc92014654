"""Shapes of tensors as converters leave them, brought back to the model's own.

Shape traps of files in the wild: llama.cpp's C tools carry four dimensions at most and drop leading
ones, so `patch_embedding.weight` arrives folded or not at all and `modulation` loses its
first dimension. Only these are undone; nothing else is ever reshaped.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from .errors import GGUFError

_SHOWN = 10  # names in a message
_PATCH = "patch_embedding.weight"
_PATCH_BIAS = "patch_embedding.bias"
_CLIP_RANKS = {
    "vision_model.embeddings.class_embedding": 1,
    "vision_model.embeddings.position_embedding.weight": 2,
}


def logical_shapes(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
    """Undo the shape traps of Wan's tensors.

    Args:
        shapes: The model's names and the stored shapes, torch order.

    Returns:
        The shapes upstream's checkpoint has; names that are not affected keep theirs.
    """
    result = dict(shapes)
    for name, shape in shapes.items():
        is_table = name == "modulation" or name.endswith((".modulation", "img_emb.emb_pos"))
        if is_table and len(shape) == 2:
            result[name] = (1, *shape)
        if (rank := _CLIP_RANKS.get(name)) and shape[:-rank] == (1,) * (3 - rank):
            result[name] = shape[-rank:]
    bias, patch = shapes.get(_PATCH_BIAS, ()), shapes.get(_PATCH, ())
    if len(patch) == 4 and len(bias) == 1 and bias[0]:
        dim = bias[0]
        if patch[0] == dim:  # (D, C, 2, 2): the kernel's single frame was dropped
            result[_PATCH] = (*patch[:2], 1, *patch[2:])
        elif patch[0] % dim == 0:  # (D * C, 1, 2, 2)
            result[_PATCH] = (dim, patch[0] // dim, *patch[1:])
    return result


def check_complete(names: Iterable[str], *, path: Path) -> None:
    """Refuse a Wan file that lost its five-dimensional tensor on the way through llama.cpp.

    Raises:
        GGUFError: If `patch_embedding.bias` is there but `patch_embedding.weight` is not.
    """
    names = frozenset(names)
    if _PATCH_BIAS in names and _PATCH not in names:
        raise GGUFError(
            f"{_PATCH!r} is missing: the file was quantised with llama.cpp's tools, which cannot "
            "store its five dimensions, and the 5-D fix (fix_5d_tensors.py) was never applied. Get "
            "a finished GGUF file of the model.",
            path=path,
        )


def reconcile_shape(
    have: tuple[int, ...],
    want: tuple[int, ...],
    *,
    name: str,
    path: Path | None = None,
) -> tuple[int, ...]:
    """Check that a stored tensor is the wanted one up to dimensions of 1 or the folded convolution.

    Args:
        have: Shape in the file.
        want: Shape of the model's parameter.
        name: The tensor, for the error.
        path: The file, for the error.

    Returns:
        `want`; viewing the tensor with it keeps every element in its place.

    Raises:
        GGUFError: If the shapes differ in any other way.
    """
    same = [n for n in have if n != 1] == [n for n in want if n != 1]
    folded = len(want) == 5 and have == (want[0] * want[1], *want[2:])
    if same or folded:
        return want
    raise GGUFError(
        f"tensor {name!r} has shape {list(have)} ({math.prod(have)} elements) but the model needs "
        f"{list(want)} ({math.prod(want)}): the file belongs to a model of another size or kind.",
        path=path,
    )


def first_names(names: Sequence[str]) -> str:
    """List the first names for a message, and count the others."""
    others = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + others
