"""LoRA files on a loaded model: factors beside the packed bytes, which stay as they are.

Key forms: PEFT and diffusers (`lora_A`, `lora_B`), Kohya (`lora_unet_*`, `lora_down`, `lora_up`,
`alpha`) and whole differences (`diff`, `diff_b`, and `diff_m` of lightx2v for modulation). Layers
that hold no packed bytes (norms, convolutions, biases, modulation) are changed in place.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from .dequant import PACKED_TYPES
from .errors import GGUFError
from .files import WeightsFile
from .ops import GGUFLinear

_PREFIXES = ("base_model.model.", "model.", "diffusion_model.", "transformer.", "net.")
_KOHYA = "lora_unet_"
_ROLES = {
    ".lora_A.weight": "down",
    ".lora_A.default.weight": "down",
    ".lora_down.weight": "down",
    ".lora_B.weight": "up",
    ".lora_B.default.weight": "up",
    ".lora_up.weight": "up",
    ".alpha": "alpha",
    ".diff": "weight",
    ".diff_b": "bias",
    ".diff_m": "modulation",
}
_LOW_RANK: tuple[str, ...] = ("up", "down", "alpha")
_SHOWN = 10


@dataclass
class _Layer:
    """What a file holds for one layer: role to tensor name in the file."""

    roles: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class _Change:
    """One checked change of one tensor of the model."""

    owner: nn.Module
    leaf: str
    factors: tuple[Tensor, ...]
    scale: float


def apply_lora(model: nn.Module, file: WeightsFile, strength: float) -> int:
    """Add a LoRA to a loaded model; several calls add up.

    Nothing is changed unless the whole file fits.

    Args:
        model: A model whose weights are loaded.
        file: The LoRA file.
        strength: Factor on the whole file; 0 changes nothing, 1 is as it was trained.

    Returns:
        Number of layers the file names.

    Raises:
        GGUFError: If tensors of the file match no layer of the model, lack their other half, or
            have another shape.
    """
    layers = _match(model, file)
    changes = [
        change for path, layer in layers.items() for change in _changes(model, path, layer, file)
    ]
    if strength != 0:
        for change in changes:
            _apply(change, strength)
    return len(layers)


def _match(model: nn.Module, file: WeightsFile) -> dict[str, _Layer]:
    """Sort the file's tensors by the layer they belong to."""
    modules = {path for path, _ in model.named_modules() if path}
    by_kohya = {path.replace(".", "_"): path for path in modules}
    layers: dict[str, _Layer] = {}
    unmatched = []
    for name in file.tensors:
        stem, role = _split(name)
        path = by_kohya.get(stem.removeprefix(_KOHYA), "") if stem.startswith(_KOHYA) else stem
        if role is None or path not in modules:
            unmatched.append(name)
        else:
            layers.setdefault(path, _Layer()).roles[role] = name
    if not layers:
        raise GGUFError(
            f"this is not a LoRA for this model: none of its {len(file.tensors)} tensors names a "
            f"layer with a LoRA key ({_first(unmatched)}).",
            path=file.path,
        )
    if unmatched:
        raise GGUFError(
            f"{len(unmatched)} of the {len(file.tensors)} tensors of this LoRA match no layer of "
            f"the model: {_first(unmatched)}. Use a LoRA made for this Wan model.",
            path=file.path,
        )
    return layers


def _split(name: str) -> tuple[str, str | None]:
    """Cut a key into the layer's name and the role of the tensor there (None if unknown)."""
    stripped = True
    while stripped:
        prefix = next((p for p in _PREFIXES if name.startswith(p)), "")
        name, stripped = name[len(prefix) :], bool(prefix)
    suffix = next((s for s in sorted(_ROLES, key=len, reverse=True) if name.endswith(s)), None)
    return (name, None) if suffix is None else (name.removesuffix(suffix), _ROLES[suffix])


def _changes(model: nn.Module, path: str, layer: _Layer, file: WeightsFile) -> Iterable[_Change]:
    """Read the tensors of one layer and check them against the model."""
    owner = model.get_submodule(path)
    roles = dict(layer.roles)
    low_rank = {role: roles.pop(role) for role in _LOW_RANK if role in roles}
    if low_rank:
        yield _low_rank(owner, path, low_rank, file)
    for leaf, name in roles.items():
        delta = _read(file, name)
        _check(tuple(delta.shape), _shape(owner, leaf), name=name, file=file)
        yield _Change(owner, leaf, (delta,), 1.0)


def _low_rank(owner: nn.Module, path: str, names: Mapping[str, str], file: WeightsFile) -> _Change:
    if "up" not in names or "down" not in names:
        raise GGUFError(
            f"layer {path!r} has only {', '.join(sorted(names.values()))}; "
            "a LoRA layer needs both of its factors.",
            path=file.path,
            tensor=next(iter(names.values())),
        )
    up, down = _read(file, names["up"]).flatten(1), _read(file, names["down"]).flatten(1)
    expected = _shape(owner, "weight")
    flat = (expected[0], torch.Size(expected[1:]).numel()) if expected else ()
    product = (up.shape[0], down.shape[1]) if up.shape[1] == down.shape[0] else ()
    _check(product, flat, name=names["up"], file=file)
    rank = down.shape[0]
    alpha = float(_read(file, names["alpha"]).float()) if "alpha" in names else float(rank)
    return _Change(owner, "weight", (up, down), alpha / rank)


def _check(
    found: tuple[int, ...], expected: tuple[int, ...], *, name: str, file: WeightsFile
) -> None:
    if found != expected or not expected:
        raise GGUFError(
            f"'{name}' changes a tensor of shape {found or 'unknown (factors of two ranks)'}, "
            f"the model has {expected or 'none there'}. Use a LoRA made for this Wan model.",
            path=file.path,
            tensor=name,
        )


def _shape(owner: nn.Module, leaf: str) -> tuple[int, ...]:
    """Logical shape of a tensor of a module; empty if it has none of that name."""
    if isinstance(owner, GGUFLinear) and leaf == "weight":
        return owner.out_features, owner.in_features
    tensor = getattr(owner, leaf, None)
    return tuple(tensor.shape) if isinstance(tensor, Tensor) else ()


def _read(file: WeightsFile, name: str) -> Tensor:
    if file.tensors[name].type in PACKED_TYPES:
        return file.dequantize(name)
    return file.read(name)


def _apply(change: _Change, strength: float) -> None:
    scale = change.scale * strength
    if isinstance(change.owner, GGUFLinear) and change.leaf == "weight":
        change.owner.change_weight(*change.factors, scale=scale)
        return
    tensor: Tensor = getattr(change.owner, change.leaf)
    first, *second = (factor.to(tensor.device, torch.float32) for factor in change.factors)
    added = first @ second[0] if second else first
    changed = tensor.detach().float().add(added.view(tensor.shape), alpha=scale).to(tensor.dtype)
    is_parameter = isinstance(tensor, nn.Parameter)
    setattr(
        change.owner,
        change.leaf,
        nn.Parameter(changed, requires_grad=tensor.requires_grad) if is_parameter else changed,
    )


def _first(names: list[str]) -> str:
    rest = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + rest
