"""Samples of every kind of LoRA, each with its arithmetic in numpy's float64."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

RANK = 4
Array = np.ndarray[Any, np.dtype[np.float64]]


class Sample(NamedTuple):
    """A kind of LoRA.

    Attributes:
        tensors: Makes the tensors of a layer of `out` x `in` numbers, by the endings of their keys.
        changed: Computes the changed weight, at strength 1, from the weight and the tensors.
    """

    tensors: Callable[[int, int], dict[str, Tensor]]
    changed: Callable[[Array, Mapping[str, Array]], Array]

    def expected(self, weight: Tensor, *, strength: float) -> Tensor:
        """Compute the changed weight `(out, in)` at any strength, in float64."""
        before = weight.double().numpy()
        given = {name: t.double().numpy() for name, t in self.tensors(*weight.shape).items()}
        return torch.from_numpy(before + strength * (self.changed(before, given) - before))

    def file(self, stem: str, out: int, columns: int) -> dict[str, Tensor]:
        """Make the tensors of a file for the layer `stem`."""
        return {f"{stem}{name}": tensor for name, tensor in self.tensors(out, columns).items()}


def drawn(*shape: int, seed: int, scale: float = 0.1) -> Tensor:
    """Draw normal numbers."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * scale


def _lora(out: int, columns: int) -> dict[str, Tensor]:
    up, down = drawn(out, RANK, seed=1).half(), drawn(RANK, columns, seed=2).bfloat16()
    return {".lora_up.weight": up, ".lora_down.weight": down, ".alpha": torch.tensor(6.0)}


def _peft(out: int, columns: int) -> dict[str, Tensor]:
    up, down = drawn(out, RANK, seed=3), drawn(RANK, columns, seed=4)
    return {".lora_B.weight": up, ".lora_A.weight": down}


def _loha(out: int, columns: int) -> dict[str, Tensor]:
    sides = {"w1_a": (out, RANK), "w1_b": (RANK, columns), "w2_a": (out, 3), "w2_b": (3, columns)}
    factors = {f".hada_{n}": drawn(*sides[n], seed=i, scale=0.4) for i, n in enumerate(sides)}
    return {**factors, ".alpha": torch.tensor(2.0)}


def _lokr(out: int, columns: int) -> dict[str, Tensor]:
    alpha = torch.tensor(0.5)  # has no meaning without a rank
    second = drawn(out // 8, columns // 4, seed=6)
    return {".lokr_w1": drawn(8, 4, seed=5), ".lokr_w2": second, ".alpha": alpha}


def _lokr_in_factors(out: int, columns: int) -> dict[str, Tensor]:
    sides = {
        "w1_a": (8, 2),
        "w1_b": (2, 4),
        "w2_a": (out // 8, RANK),
        "w2_b": (RANK, columns // 4),
    }
    factors = {f".lokr_{n}": drawn(*sides[n], seed=i, scale=0.4) for i, n in enumerate(sides)}
    return {**factors, ".alpha": torch.tensor(3.0)}


def _with(ending: str, make: Callable[[int, int], dict[str, Tensor]], axis: int) -> Any:
    """Add the magnitudes of DoRA of the rows (axis 0) or columns (axis 1)."""

    def tensors(out: int, columns: int) -> dict[str, Tensor]:
        norms = drawn((out, columns)[axis], seed=11, scale=0.5).abs() + 0.5
        shaped = norms if ending != ".dora_scale" else norms.view(*[(-1, 1), (1, -1)][axis])
        return {**make(out, columns), ending: shaped}

    return tensors


def _product(t: Mapping[str, Array]) -> Array:
    return 1.5 * t[".lora_up.weight"] @ t[".lora_down.weight"]


def _hadamard(t: Mapping[str, Array]) -> Array:
    first, second = t[".hada_w1_a"] @ t[".hada_w1_b"], t[".hada_w2_a"] @ t[".hada_w2_b"]
    return 0.5 * first * second


def _kronecker(first: Array, second: Array) -> Array:
    rows, columns = (a * b for a, b in zip(first.shape, second.shape, strict=True))
    return np.einsum("ij,kl->ikjl", first, second).reshape(rows, columns)


def _scaled(weight: Array, magnitude: Array, *, axis: int) -> Array:
    norm = np.sqrt((weight**2).sum(axis=1 - axis, keepdims=True))
    return weight / norm * magnitude.reshape(norm.shape)


SAMPLES = {
    "lora": Sample(_lora, lambda w, t: w + _product(t)),
    "peft": Sample(_peft, lambda w, t: w + t[".lora_B.weight"] @ t[".lora_A.weight"]),
    "difference": Sample(
        lambda out, columns: {".diff": drawn(out, columns, seed=12).bfloat16()},
        lambda w, t: w + t[".diff"],
    ),
    "loha": Sample(_loha, lambda w, t: w + _hadamard(t)),
    "lokr": Sample(_lokr, lambda w, t: w + _kronecker(t[".lokr_w1"], t[".lokr_w2"])),
    "lokr_in_factors": Sample(
        _lokr_in_factors,
        lambda w, t: (
            w
            + 0.75
            * _kronecker(t[".lokr_w1_a"] @ t[".lokr_w1_b"], t[".lokr_w2_a"] @ t[".lokr_w2_b"])
        ),
    ),
    "dora_of_columns": Sample(
        _with(".dora_scale", _lora, 1),
        lambda w, t: _scaled(w + _product(t), t[".dora_scale"], axis=1),
    ),
    "dora_of_rows": Sample(
        _with(".dora_scale", _lora, 0),
        lambda w, t: _scaled(w + _product(t), t[".dora_scale"], axis=0),
    ),
    "dora_of_peft": Sample(
        _with(".lora_magnitude_vector", _lora, 0),
        lambda w, t: _scaled(w + _product(t), t[".lora_magnitude_vector"], axis=0),
    ),
    "loha_with_dora": Sample(
        _with(".dora_scale", _loha, 1),
        lambda w, t: _scaled(w + _hadamard(t), t[".dora_scale"], axis=1),
    ),
}
