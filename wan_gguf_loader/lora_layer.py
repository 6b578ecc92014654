"""One layer of a LoRA file: its tensors, read and checked, as changes of the model's tensors."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from .changes import Change, Kind
from .dequant import PACKED_TYPES
from .errors import GGUFError
from .files import TensorInfo, WeightsFile
from .lora_settings import LoraSettings

_LEAVES = ("weight", "bias", "modulation")
_KEPT = ("F32", "F16", "BF16")
_PEFT_MAGNITUDE = "lora_magnitude_vector"


@dataclass(slots=True)
class LoraLayer:
    """The tensors of a file for one layer.

    Attributes:
        path: The model's module, or tensor.
        stem: The layer's name in the file.
        roles: Role (`lora_keys.LayerKey`) to name in the file.
    """

    path: str
    stem: str
    roles: dict[str, str] = field(default_factory=dict)


class LayerReader:
    """Reads one layer of a file."""

    def __init__(
        self,
        file: WeightsFile,
        layer: LoraLayer,
        shapes: Mapping[str, tuple[int, ...]],
        settings: LoraSettings,
    ) -> None:
        """Prepare to read.

        Args:
            file: The file.
            layer: The names of its tensors.
            shapes: Of the model's tensors, by name.
            settings: The file's.
        """
        self._file, self._layer, self._shapes, self._settings = file, layer, shapes, settings
        self._left = dict(layer.roles)

    def changes(self) -> Iterator[Change]:
        """Read the tensors as changes.

        Raises:
            GGUFError: If a tensor is missing, is damaged, or does not fit the model.
        """
        differences = {role: self._left.pop(role) for role in _LEAVES if role in self._left}
        if self._left:
            yield self._adapter()
        for leaf, key in differences.items():
            change = Change(name=self._name(leaf), kind="difference", factors=(self._read(key),))
            self._check(change.factors[0].shape, self._shape(leaf), key)
            yield change

    def _adapter(self) -> Change:
        """Read the factors of the weight's change."""
        alpha = self._left.pop("alpha", None)
        magnitude = self._left.pop("magnitude", None)
        key = next(iter(self._left.values()), alpha or magnitude or "")
        shape = self._shape("weight")
        try:
            kind, factors, rank = self._factors()
            found = Change(name="", kind=kind, factors=factors).product("meta").shape
        except RuntimeError:  # of the products
            kind, factors, rank, found = "LoRA", (), None, torch.Size()
        self._check(found, (shape[0], torch.Size(shape[1:]).numel()) if shape else (), key)
        if self._left:
            raise self._error(
                f"{' and '.join(self._left.values())} belong to another kind of LoRA than {key!r} "
                "of the same layer. Use a LoRA with one of the two."
            )
        scale = 1.0
        if rank is not None:
            names = (self._layer.stem, self._layer.path)
            own = None if alpha is None else self._number(alpha)
            scale = self._settings.scale(names, rank=rank, alpha=own)
        return Change(
            name=self._name("weight"),
            kind=kind,
            factors=factors,
            scale=scale,
            magnitude=None if magnitude is None else self._magnitude(magnitude, shape),
        )

    def _factors(self) -> tuple[Kind, tuple[Tensor, ...], int | None]:
        """Read kind, factors and rank."""
        if any(role.startswith("hada") for role in self._left):
            return self._loha()
        if any(role.startswith("lokr") for role in self._left):
            return self._lokr()
        up, down = self._matrix("up"), self._matrix("down")
        return "LoRA", (up, down), down.shape[0]

    def _loha(self) -> tuple[Kind, tuple[Tensor, ...], int]:
        factors = [self._matrix(f"hada_{name}") for name in ("w1_a", "w1_b", "w2_a", "w2_b")]
        rank = factors[1].shape[0]
        if "hada_t1" not in self._left:
            return "LoHa", tuple(factors), rank
        first = _tucker(self._core("hada_t1"), *factors[:2])
        return "difference", (first * _tucker(self._core("hada_t2"), *factors[2:]),), rank

    def _lokr(self) -> tuple[Kind, tuple[Tensor, ...], int | None]:
        """Read the two matrices of a Kronecker product; the rank is that of the last pair."""
        pairs: list[tuple[Tensor, ...]] = []
        rank = None
        for name in ("lokr_w1", "lokr_w2"):
            if f"{name}_a" not in self._left:
                pairs.append((self._matrix(name),))
                continue
            pair = self._matrix(f"{name}_a"), self._matrix(f"{name}_b")
            rank = pair[1].shape[0]
            core = name.replace("w", "t")
            pairs.append((_tucker(self._core(core), *pair),) if core in self._left else pair)
        first, second = pairs
        whole = first[0].float() @ first[1].float() if first[1:] else first[0]
        return "LoKr", (whole, *second), rank

    def _matrix(self, role: str) -> Tensor:
        """Read a factor as a matrix; those of a convolution have more dimensions."""
        return self._core(role).flatten(1)

    def _core(self, role: str) -> Tensor:
        key = self._left.pop(role, None)
        if key is None:
            there = ", ".join(sorted(self._layer.roles.values()))
            raise self._error(
                f"layer {self._layer.path!r} has only {there}; a LoRA layer needs both of its "
                f"factors, and {role} is missing."
            )
        tensor = self._read(key)
        if tensor.ndim < 2 or 0 in tensor.shape:
            raise self._misshapen(key, "a LoRA factor needs 2 dimensions or more, none of them 0")
        return tensor

    def _magnitude(self, key: str, shape: tuple[int, ...]) -> Tensor:
        """Read the norms of DoRA: of the weight's rows, or `(1, in, ...)` of its columns."""
        norms = self._read(key)
        rows, columns = (*shape, 1)[:2]
        ones = [1] * (len(shape) - 2)
        by_rows = _PEFT_MAGNITUDE in key or norms.ndim < 2 or norms.shape[0] == rows
        if norms.numel() != (rows if by_rows else columns):
            raise self._misshapen(
                key, f"the magnitudes of DoRA are {rows} for its rows or {columns} for its columns"
            )
        return norms.view(rows, 1, *ones) if by_rows else norms.view(1, columns, *ones)

    def _number(self, key: str) -> float:
        """Read a tensor of one number, of any type."""
        tensor = self._file.read(key)
        if tensor.numel() != 1 or self._file.tensors[key].type in PACKED_TYPES:
            raise self._misshapen(key, "the alpha of a LoRA layer is one number")
        number = float(tensor.double())
        if not math.isfinite(number):
            raise self._error(f"the alpha {key!r} is {number}. Take another LoRA.")
        return number

    def _read(self, key: str) -> Tensor:
        if self._file.weight_info(key).type in _KEPT:
            return self._file.read(key)
        return self._file.dequantize(key)

    def _name(self, leaf: str) -> str:
        path = self._layer.path
        return path if path in self._shapes else f"{path}.{leaf}"

    def _shape(self, leaf: str) -> tuple[int, ...]:
        return self._shapes.get(self._name(leaf), ())

    def _check(self, found: tuple[int, ...], expected: tuple[int, ...], key: str) -> None:
        if tuple(found) != expected or not expected:
            raise self._error(
                f"'{key}' changes a tensor of shape "
                f"{tuple(found) or 'unknown (factors of two ranks)'}, the model has "
                f"{expected or 'none there'}. Use a LoRA made for this Wan model."
            )

    def _misshapen(self, key: str, needed: str) -> GGUFError:
        return self._error(
            f"{key!r} has the shape {list(self._file.tensors[key].shape)}; {needed}. Download the "
            "file again, or take another LoRA."
        )

    def _error(self, text: str) -> GGUFError:
        return GGUFError(text, path=self._file.path)


def kept_bytes(info: TensorInfo) -> int:
    """Count the bytes that a tensor of a LoRA file takes in memory."""
    return info.nbytes if info.type in _KEPT else 4 * info.num_elements


def _tucker(core: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """Expand `(i, j, ...)` by `(i, out)` and `(j, in)` to a matrix `(out, in * ...)`."""
    expanded = torch.einsum("ij...,jr,ip->pr...", core.float(), b.float(), a.float())
    return expanded.flatten(1).contiguous()
