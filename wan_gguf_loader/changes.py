"""Changes of weights as LoRA files hold them, and their arithmetic on decoded weights.

`lora.py` reads a file as `Change` values; a layer keeps its changes beside its stored weight as
modules, which move with it. The formulas are those of ComfyUI (`comfy/weight_adapter`), with one
departure: a DoRA magnitude of the rows is divided by the norm of the changed row, as PEFT and
LyCORIS train it. ComfyUI 0.33 divides it by the norm of the unchanged row.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

Kind = Literal["LoRA", "LoHa", "LoKr", "difference"]


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Change:
    """One change of one tensor of a model; independent of how the model stores that tensor.

    The change is `scale` times, by kind and factors (all but those of a difference as matrices):

    - LoRA `(up, down)`: `up @ down`
    - LoHa `(a, b, c, d)`: `(a @ b) * (c @ d)`
    - LoKr `(a, b)` or `(a, b, c)`: the Kronecker product of `a` with `b` or `b @ c`
    - difference `(d,)`: `d`

    Attributes:
        name: The tensor: a module's path, and the name in the module.
        kind: How the factors make the change.
        factors: In the dtypes of the file; float32 if that is narrower than 16 bits.
        scale: Factor of the change, for example alpha / rank.
        magnitude: Of DoRA, `(out, 1 ...)` or `(1, in, 1 ...)`: the norms that the rows or the
            columns of the changed weight get.
    """

    name: str
    kind: Kind
    factors: tuple[Tensor, ...]
    scale: float = 1.0
    magnitude: Tensor | None = None

    @property
    def is_low_rank(self) -> bool:
        """Whether the change is a plain product of two matrices."""
        return self.kind == "LoRA" and self.magnitude is None

    def apply(self, weight: Tensor, strength: float) -> Tensor:
        """Change a decoded weight.

        Args:
            weight: Float32, of the tensor's logical shape; overwritten.
            strength: Factor on the change; with DoRA, on the step to the rescaled weight.

        Returns:
            The changed weight.
        """
        added = self.product(weight.device).view_as(weight)
        if self.magnitude is None:
            return weight.add_(added, alpha=self.scale * strength)
        changed = torch.add(weight, added, alpha=self.scale)
        dims = [i for i, size in enumerate(self.magnitude.shape) if size == 1]
        norm = torch.linalg.vector_norm(changed, dim=dims, keepdim=True)
        wanted = self.magnitude.to(weight.device, torch.float32)
        changed = changed * (wanted / (norm + torch.finfo(torch.float32).eps))
        return weight.lerp_(changed, strength)

    def product(self, device: torch.device | str) -> Tensor:
        """Multiply the factors, in float32; without the scale."""
        a, *others = (factor.to(device, torch.float32) for factor in self.factors)
        if self.kind == "LoRA":
            return a @ others[0]
        if self.kind == "LoHa":
            return (a @ others[0]) * (others[1] @ others[2])
        if self.kind == "LoKr":
            return torch.kron(a, others[0] @ others[1] if others[1:] else others[0])
        return a


class LowRank(nn.Module):
    """The low-rank changes of a layer's weight: `up @ (scale * down)`, one pair for several files.

    The factors are concatenated, so that one matrix product adds them all. They move between
    devices with the layer and are not part of its state dict.

    Attributes:
        up: `(out, rank)`, the ranks of all files concatenated.
        down: `(rank, in)`.
        scale: Factor of each rank, `(rank,)` float32.
    """

    up: Tensor
    down: Tensor
    scale: Tensor

    def __init__(self, up: Tensor, down: Tensor, scale: Tensor) -> None:
        """Store the factors in their own dtypes."""
        super().__init__()
        self.register_buffer("up", up, persistent=False)
        self.register_buffer("down", down, persistent=False)
        self.register_buffer("scale", scale, persistent=False)

    def joined(self, other: LowRank) -> LowRank:
        """Combine two changes into one."""
        return LowRank(
            _join((self.up, other.up), dim=1),
            _join((self.down, other.down), dim=0),
            torch.cat((self.scale, other.scale.to(self.scale.device))),
        )

    def add_to(self, weight: Tensor) -> Tensor:
        """Add the change to a weight `(out, in)` of any dtype in place and return it."""
        device = weight.device
        down = self.down.to(device).float() * self.scale.to(device).unsqueeze(1)
        return weight.addmm_(self.up.to(device, weight.dtype), down.to(weight.dtype))


class FullRank(nn.Module):
    """A change of any other kind, computed in full each time the layer's weight is decoded."""

    magnitude: Tensor | None

    def __init__(self, change: Change, strength: float) -> None:
        """Store the factors, as buffers that are not part of the state dict."""
        super().__init__()
        self._strength = strength
        self._plan = dataclasses.replace(change, factors=(), magnitude=None)
        self._names = [f"factor_{index}" for index in range(len(change.factors))]
        for name, factor in zip(self._names, change.factors, strict=True):
            self.register_buffer(name, factor, persistent=False)
        self.register_buffer("magnitude", change.magnitude, persistent=False)

    def add_to(self, weight: Tensor) -> Tensor:
        """Apply the change to a float32 weight `(out, in)` in place and return it."""
        factors = tuple(self.get_buffer(name) for name in self._names)
        change = dataclasses.replace(self._plan, factors=factors, magnitude=self.magnitude)
        return change.apply(weight, self._strength)


def kept_changes(
    kept: Sequence[LowRank | FullRank], change: Change, strength: float
) -> list[LowRank | FullRank]:
    """Add a change to those of a layer, in order; adjacent low-rank changes become one."""
    if not change.is_low_rank:
        return [*kept, FullRank(change, strength)]
    up, down = change.factors
    scale = torch.full((up.shape[1],), change.scale * strength, device=up.device)
    added = LowRank(up, down, scale)
    if kept and isinstance(kept[-1], LowRank):
        return [*kept[:-1], kept[-1].joined(added)]
    return [*kept, added]


def _join(tensors: tuple[Tensor, Tensor], *, dim: int) -> Tensor:
    """Concatenate on the first tensor's device, in a dtype wide enough for both."""
    dtype = torch.promote_types(tensors[0].dtype, tensors[1].dtype)
    return torch.cat([tensor.to(tensors[0].device, dtype) for tensor in tensors], dim=dim)
