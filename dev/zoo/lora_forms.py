"""Forms of a LoRA's factors for one layer, each with the changed weight computed in plain torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from .codecs import E4M3
from .values import noise

Tensors = Mapping[str, Tensor]
Form = Callable[[str, Tensor], tuple[Tensors, Tensor]]
"""Makes the tensors of a layer, by what follows its name, and its changed weight."""

RANK = 4


def factors(
    layer: str, weight: Tensor, dtype: torch.dtype = torch.float16
) -> tuple[Tensor, Tensor]:
    """Draw `(out, rank)` and `(rank, in)`, rounded to a dtype."""
    rows, columns = weight.shape[0], weight[0].numel()
    up, down = noise(f"{layer} up", (rows, RANK)), noise(f"{layer} down", (RANK, columns))
    return (up * 0.1).to(dtype), (down * 0.1).to(dtype)


def low_rank(
    up_end: str = ".lora_B.weight",
    down_end: str = ".lora_A.weight",
    *,
    alpha: float | None = None,
    scale: float | None = None,
    dtypes: tuple[torch.dtype, torch.dtype] = (torch.float16, torch.float16),
) -> Form:
    """Give a plain LoRA, with an alpha of each layer, or a scale that the metadata decides."""

    def make(layer: str, weight: Tensor) -> tuple[Tensors, Tensor]:
        up, down = factors(layer, weight, torch.float32)
        up, down = up.to(dtypes[0]), down.to(dtypes[1])
        tensors = {up_end: up, down_end: down}
        if alpha is not None:
            tensors[".alpha"] = torch.tensor(alpha)
        factor = scale if scale is not None else (alpha or RANK) / RANK
        return tensors, weight + factor * (up.float() @ down.float()).view_as(weight)

    return make


KOHYA = low_rank(".lora_up.weight", ".lora_down.weight", alpha=6.0)
PEFT = low_rank()


def scaled(end: str) -> Form:
    """Store factors in fp8 beside a scale for each."""

    def make(layer: str, weight: Tensor) -> tuple[Tensors, Tensor]:
        tensors: dict[str, Tensor] = {}
        decoded = []
        for name, factor in zip(
            ("lora_B", "lora_A"), factors(layer, weight, torch.float32), strict=True
        ):
            scale = factor.abs().max() / 448
            tensors[f".{name}.weight"] = (factor / scale).to(E4M3)
            tensors[f".{name}{end}"] = scale
            decoded.append(tensors[f".{name}.weight"].float() * scale)
        return tensors, weight + decoded[0] @ decoded[1]

    return make


def loha(layer: str, weight: Tensor) -> tuple[Tensors, Tensor]:
    """Change by the Hadamard product of two low-rank matrices."""
    one = factors(f"{layer} 1", weight)
    two = factors(f"{layer} 2", weight)
    names = ("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b")
    tensors = {f".{name}": factor for name, factor in zip(names, (*one, *two), strict=True)}
    change = (one[0].float() @ one[1].float()) * (two[0].float() @ two[1].float())
    return {**tensors, ".alpha": torch.tensor(3.0)}, weight + 3 / RANK * change


def lokr(layer: str, weight: Tensor) -> tuple[Tensors, Tensor]:
    """Change by a Kronecker product; alpha means nothing without a rank."""
    one, two = _kronecker_pair(layer, weight)
    tensors = {".lokr_w1": one, ".lokr_w2": two, ".alpha": torch.tensor(8.0)}
    return tensors, weight + torch.kron(one.float(), two.float())


def lokr_in_factors(layer: str, weight: Tensor) -> tuple[Tensors, Tensor]:
    """Change by a Kronecker product whose second matrix is low-rank."""
    one, two = _kronecker_pair(layer, weight)
    up, down = factors(layer, two)
    tensors = {".lokr_w1": one, ".lokr_w2_a": up, ".lokr_w2_b": down, ".alpha": torch.tensor(8.0)}
    return tensors, weight + 8 / RANK * torch.kron(one.float(), up.float() @ down.float())


def _kronecker_pair(layer: str, weight: Tensor) -> tuple[Tensor, Tensor]:
    rows, columns = weight.shape
    one, two = noise(f"{layer} one", (8, 4)), noise(f"{layer} two", (rows // 8, columns // 4))
    return (one * 0.1).half(), (two * 0.1).half()


def dora(end: str, axis: int, form: Form = KOHYA) -> Form:
    """Rescale the rows (0) or columns (1) of the changed weight to stored norms."""

    def make(layer: str, weight: Tensor) -> tuple[Tensors, Tensor]:
        tensors, changed = form(layer, weight)
        norms = weight.norm(dim=1 - axis, keepdim=True) * 1.25
        stored = norms if end == ".dora_scale" else norms.flatten()
        return {**tensors, end: stored}, changed / changed.norm(dim=1 - axis, keepdim=True) * norms

    return make


def convolution(layer: str, weight: Tensor) -> tuple[Tensors, Tensor]:
    """Give the factors of a convolution, which have its dimensions."""
    up, down = factors(layer, weight)
    tensors = {
        ".lora_up.weight": up[:, :, None, None, None],
        ".lora_down.weight": down.view(RANK, *weight.shape[1:]),
    }
    return tensors, weight + (up.float() @ down.float()).view_as(weight)
