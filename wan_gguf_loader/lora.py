"""LoRA files on a loaded model: factors beside the packed bytes, which stay as they are.

Key forms: PEFT (`lora_A`, `lora_B`), diffusers (`lora.up`, `lora.down`, and its own layer names),
Kohya (`lora_unet_*`, `lora_down`, `lora_up`, `alpha`) and whole differences (`diff`, `diff_b`, and
`diff_m` of lightx2v for modulation). Layers without packed bytes (norms, convolutions, biases,
modulation) are changed in place. Keys of other parts, such as a text encoder, are left out.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from .dequant import PACKED_TYPES
from .errors import GGUFError
from .files import WeightsFile
from .names import first_names
from .ops import GGUFLinear

_log = logging.getLogger(__name__)

_PREFIXES = ("base_model.model.", "model.", "diffusion_model.", "transformer.", "net.")
_KOHYA = "lora_unet_"
_ROLES = {
    ".lora_A.weight": "down",
    ".lora_A.default.weight": "down",
    ".lora_down.weight": "down",
    ".lora_B.weight": "up",
    ".lora_B.default.weight": "up",
    ".lora_up.weight": "up",
    ".lora.down.weight": "down",
    ".lora.up.weight": "up",
    ".alpha": "alpha",
    ".diff": "weight",
    ".diff_b": "bias",
    ".diff_m": "modulation",
}
_DIFFUSERS = tuple(
    (re.compile(theirs), ours)
    for theirs, ours in (
        (r"^(blocks\.\d+)\.attn1\.to_([qkv])$", r"\1.self_attn.\2"),
        (r"^(blocks\.\d+)\.attn1\.to_out\.0$", r"\1.self_attn.o"),
        (r"^(blocks\.\d+)\.attn2\.to_([qkv])$", r"\1.cross_attn.\2"),
        (r"^(blocks\.\d+)\.attn2\.to_out\.0$", r"\1.cross_attn.o"),
        (r"^(blocks\.\d+)\.attn2\.add_([kv])_proj$", r"\1.cross_attn.\2_img"),
        (r"^(blocks\.\d+)\.ffn\.net\.0\.proj$", r"\1.ffn.0"),
        (r"^(blocks\.\d+)\.ffn\.net\.2$", r"\1.ffn.2"),
        (r"^condition_embedder\.(time|text)_embedder\.linear_1$", r"\1_embedding.0"),
        (r"^condition_embedder\.(time|text)_embedder\.linear_2$", r"\1_embedding.2"),
        (r"^condition_embedder\.time_proj$", "time_projection.1"),
        (r"^condition_embedder\.image_embedder\.ff\.net\.0\.proj$", "img_emb.proj.1"),
        (r"^condition_embedder\.image_embedder\.ff\.net\.2$", "img_emb.proj.3"),
        (r"^proj_out$", "head.head"),
    )
)
"""Layer names of diffusers' Wan transformer to upstream's."""
_LOW_RANK: tuple[str, ...] = ("up", "down", "alpha")


@dataclass
class _Layer:
    """The tensors of one layer: role to name in the file."""

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

    Nothing is changed unless everything that the file holds for this model fits. Tensors of other
    parts are left out with one warning.

    Args:
        model: A model whose weights are loaded.
        file: The LoRA file.
        strength: Factor on the whole file; 0 changes nothing, 1 is as it was trained.

    Returns:
        Number of layers that are changed.

    Raises:
        GGUFError: If tensors for this model match none of its layers, lack their other half, or
            have another shape or type.
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
    """Group the file's tensors by layer."""
    parts = {path for path, _ in model.named_children()}
    modules = {path for path, _ in model.named_modules() if path}
    by_kohya = {path.replace(".", "_"): path for path in modules}
    layers: dict[str, _Layer] = {}
    unmatched: list[str] = []
    others: list[str] = []
    for name in file.tensors:
        stem, role = _split(name)
        path = by_kohya.get(stem.removeprefix(_KOHYA), "") if stem.startswith(_KOHYA) else stem
        if role is not None and path in modules:
            roles = layers.setdefault(path, _Layer()).roles
            if role in roles:
                raise GGUFError(
                    f"{roles[role]!r} and {name!r} are the same part of one layer. Use a LoRA "
                    "with one of the two.",
                    path=file.path,
                )
            roles[role] = name
        else:
            (unmatched if _names_a_part(stem, parts) else others).append(name)
    if not layers:
        raise GGUFError(
            f"this is not a LoRA for this model: none of its {len(file.tensors)} tensors names a "
            f"layer with a LoRA key ({first_names([*unmatched, *others])}).",
            path=file.path,
        )
    if unmatched:
        raise GGUFError(
            f"{len(unmatched)} of the {len(file.tensors)} tensors of this LoRA match no layer of "
            f"the model: {first_names(unmatched)}. Use a LoRA made for this Wan model.",
            path=file.path,
        )
    if others:
        _log.warning(
            "%s: %d of the %d tensors of this LoRA belong to other parts than the transformer and "
            "are left out: %s",
            file.path.name, len(others), len(file.tensors), first_names(others),
        )  # fmt: skip
    return layers


def _names_a_part(stem: str, parts: Collection[str]) -> bool:
    """Tell whether a layer's name starts with a part of the model."""
    return any(stem == part or stem.startswith((f"{part}.", f"{_KOHYA}{part}_")) for part in parts)


def _split(name: str) -> tuple[str, str | None]:
    """Cut a key into the layer's name and the role of the tensor there (None if unknown)."""
    stripped = True
    while stripped:
        prefix = next((p for p in _PREFIXES if name.startswith(p)), "")
        name, stripped = name[len(prefix) :], bool(prefix)
    suffix = next((s for s in sorted(_ROLES, key=len, reverse=True) if name.endswith(s)), None)
    if suffix is None:
        return name, None
    stem = name.removesuffix(suffix)
    for theirs, ours in _DIFFUSERS:
        stem = theirs.sub(ours, stem)
    return stem, _ROLES[suffix]


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
        )
    up, down = _factor(file, names["up"]), _factor(file, names["down"])
    expected = _shape(owner, "weight")
    flat = (expected[0], torch.Size(expected[1:]).numel()) if expected else ()
    product = (up.shape[0], down.shape[1]) if up.shape[1] == down.shape[0] else ()
    _check(product, flat, name=names["up"], file=file)
    rank = down.shape[0]
    alpha = _number(file, names["alpha"]) if "alpha" in names else float(rank)
    return _Change(owner, "weight", (up, down), alpha / rank)


def _factor(file: WeightsFile, name: str) -> Tensor:
    """Read a factor as a matrix; those of a convolution have more dimensions."""
    tensor = _read(file, name)
    if tensor.ndim < 2 or 0 in tensor.shape:
        raise _misshapen(file, name, "a LoRA factor needs 2 dimensions or more, none of them 0")
    return tensor.flatten(1)


def _number(file: WeightsFile, name: str) -> float:
    """Read a tensor of one number, of any type."""
    tensor = file.read(name)
    if tensor.numel() != 1 or file.tensors[name].type in PACKED_TYPES:
        raise _misshapen(file, name, "the alpha of a LoRA layer is one number")
    return float(tensor.double())


def _misshapen(file: WeightsFile, name: str, needed: str) -> GGUFError:
    return GGUFError(
        f"{name!r} has the shape {list(file.tensors[name].shape)}; {needed}. Download the file "
        "again, or take another LoRA.",
        path=file.path,
    )


def _check(
    found: tuple[int, ...], expected: tuple[int, ...], *, name: str, file: WeightsFile
) -> None:
    if found != expected or not expected:
        raise GGUFError(
            f"'{name}' changes a tensor of shape {found or 'unknown (factors of two ranks)'}, "
            f"the model has {expected or 'none there'}. Use a LoRA made for this Wan model.",
            path=file.path,
        )


def _shape(owner: nn.Module, leaf: str) -> tuple[int, ...]:
    """Logical shape of a tensor of a module; empty if it has none of that name."""
    if isinstance(owner, GGUFLinear) and leaf == "weight":
        return owner.out_features, owner.in_features
    tensor = getattr(owner, leaf, None)
    return tuple(tensor.shape) if isinstance(tensor, Tensor) else ()


def _read(file: WeightsFile, name: str) -> Tensor:
    packed = file.weight_info(name).type in PACKED_TYPES
    return file.dequantize(name) if packed else file.read(name)


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
