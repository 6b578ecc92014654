"""Names and shapes of tensors as converters leave them, brought back to the model's own.

Shape traps of files in the wild: llama.cpp's C tools carry four dimensions at most and drop leading
ones, so `patch_embedding.weight` arrives folded or not at all and `modulation` loses its
first dimension. Only these are undone; nothing else is ever reshaped. Its names of a UMT5 encoder's
tensors become those of `transformers`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from .errors import GGUFError

_ANY_PREFIXES = ("model.diffusion_model.", "diffusion_model.")
_COMMON_PREFIXES = ("model.", "net.")

_SHOWN = 10  # names in a message
_PATCH = "patch_embedding.weight"
_PATCH_BIAS = "patch_embedding.bias"

_LLAMA_MARK = "enc.blk."
_LLAMA_NAMES = (
    (r"^token_embd\.", "shared."),
    (r"^enc\.output_norm\.", "encoder.final_layer_norm."),
    (r"^enc\.blk\.(\d+)\.attn_norm\.", r"encoder.block.\1.layer.0.layer_norm."),
    (
        r"^enc\.blk\.(\d+)\.attn_rel_b\.",
        r"encoder.block.\1.layer.0.SelfAttention.relative_attention_bias.",
    ),
    (r"^enc\.blk\.(\d+)\.attn_([qkvo])\.", r"encoder.block.\1.layer.0.SelfAttention.\2."),
    (r"^enc\.blk\.(\d+)\.ffn_norm\.", r"encoder.block.\1.layer.1.layer_norm."),
    (r"^enc\.blk\.(\d+)\.ffn_gate\.", r"encoder.block.\1.layer.1.DenseReluDense.wi_0."),
    (r"^enc\.blk\.(\d+)\.ffn_up\.", r"encoder.block.\1.layer.1.DenseReluDense.wi_1."),
    (r"^enc\.blk\.(\d+)\.ffn_down\.", r"encoder.block.\1.layer.1.DenseReluDense.wo."),
)


def model_names(names: Iterable[str], *, path: Path | None = None) -> dict[str, str]:
    """Map the names of a file to the model's own.

    The wrapper's prefix is dropped, and llama.cpp's names of a T5 encoder are translated.
    `model.diffusion_model.` and `diffusion_model.` mark the diffusion model wherever they occur;
    `model.` and `net.` mean a wrapper only when every tensor carries them.

    Args:
        names: Names in the file.
        path: The file, for the error.

    Returns:
        The model's name of each name, in the same order.

    Raises:
        GGUFError: If two names become one.
    """
    names = tuple(names)
    prefix = next((p for p in _ANY_PREFIXES if any(n.startswith(p) for n in names)), "")
    if not prefix and names:
        prefix = next((p for p in _COMMON_PREFIXES if all(n.startswith(p) for n in names)), "")
    result = {name: name.removeprefix(prefix) or name for name in names}
    if any(name.startswith(_LLAMA_MARK) for name in names):
        result = {name: _translated(name) for name in names}
    owner: dict[str, str] = {}
    for name, short in result.items():
        if short in owner:
            raise GGUFError(
                f"tensors {owner[short]!r} and {name!r} are the same tensor {short!r}: the file "
                "holds the model twice. Keep one of the two.",
                path=path,
            )
        owner[short] = name
    return result


def _translated(name: str) -> str:
    """Give `transformers`' name of one of llama.cpp's; others stay as they are."""
    for pattern, replacement in _LLAMA_NAMES:
        name, count = re.subn(pattern, replacement, name)
        if count:
            break
    return name


def logical_shapes(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
    """Undo the shape traps of Wan tensors.

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
