"""The scale of a LoRA's layers: alpha / rank, or alpha / sqrt(rank) of rank-stabilised LoRAs.

Alpha is a tensor of the layer, or PEFT's setting. PEFT's settings are a JSON object in the metadata
of a safetensors file (diffusers' `lora_adapter_metadata`, and other keys), single values there, or
`adapter_config.json` beside PEFT's own `adapter_model.safetensors`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from .errors import GGUFError
from .files import WeightsFile

_COMPONENT = "transformer."
_KNOWN = ("lora_alpha", "alpha_pattern", "use_rslora")
_PEFT_FILE, _PEFT_SETTINGS = "adapter_model.safetensors", "adapter_config.json"


@dataclass(frozen=True, kw_only=True, slots=True)
class LoraSettings:
    """What a file says of all its layers.

    Attributes:
        alpha: Of layers that have none of their own; None means the rank.
        patterns: Alpha of the layers whose name ends in a key.
        stabilised: Whether alpha is divided by the square root of the rank.
    """

    alpha: float | None = None
    patterns: Mapping[str, float] = field(default_factory=dict)
    stabilised: bool = False

    def scale(self, names: tuple[str, ...], *, rank: int, alpha: float | None) -> float:
        """Compute the scale of a layer.

        Args:
            names: Of the layer, as the file and as the model names it.
            rank: Rows of the layer's last factor.
            alpha: The layer's own.
        """
        if alpha is None:
            alpha = next(
                (value for key, value in self.patterns.items() if _ends(names, key)), self.alpha
            )
        if alpha is None:
            alpha = float(rank)
        return alpha / (math.sqrt(rank) if self.stabilised else rank)


def read_settings(file: WeightsFile) -> LoraSettings:
    """Read a file's settings.

    Raises:
        GGUFError: If a value is not of its kind, or a pattern names no layer of the file.
    """
    values: dict[str, object] = {}
    for source in _sources(file):
        values |= {key.removeprefix(_COMPONENT): value for key, value in source.items()}
    patterns = values.get("alpha_pattern") or {}
    patterns = _object(patterns) if isinstance(patterns, str) else patterns
    if not isinstance(patterns, dict):
        raise _unreadable(file, "alpha_pattern", patterns)
    lost = [key for key in patterns if not any(f".{key}." in f".{name}" for name in file.tensors)]
    if lost:
        raise GGUFError(
            f"the alpha_pattern of this LoRA names {lost[0]!r}, which is no layer of the file; "
            "only names of layers are read there. Convert the file with the tool that trained it.",
            path=file.path,
        )
    stabilised = str(values.get("use_rslora", False)).lower()
    if stabilised not in ("true", "false", "none"):
        raise _unreadable(file, "use_rslora", stabilised)
    alpha = values.get("lora_alpha")
    return LoraSettings(
        alpha=None if alpha is None else _number(file, "lora_alpha", alpha),
        patterns={key: _number(file, "alpha_pattern", value) for key, value in patterns.items()},
        stabilised=stabilised == "true",
    )


def _sources(file: WeightsFile) -> Iterator[Mapping[str, object]]:
    """Give every collection of settings that has one of PEFT's."""
    beside = file.path.with_name(_PEFT_SETTINGS)
    texts = [text for text in file.metadata.values() if isinstance(text, str)]
    if file.path.name == _PEFT_FILE and beside.is_file():
        texts.insert(0, beside.read_text(encoding="utf-8", errors="replace"))
    for source in (*map(_object, texts), file.metadata):
        if any(name in source or f"{_COMPONENT}{name}" in source for name in _KNOWN):
            yield {k: v for k, v in source.items() if k.removeprefix(_COMPONENT) in _KNOWN}


def _object(text: str) -> Mapping[str, object]:
    """Parse a JSON object; other texts give an empty one."""
    try:
        parsed = json.loads(text) if text.lstrip().startswith("{") else {}
    except (ValueError, RecursionError):
        return {}  # other tools write other texts
    return parsed if isinstance(parsed, dict) else {}


def _number(file: WeightsFile, name: str, value: object) -> float:
    try:
        number = float(value) if isinstance(value, (int, float, str)) else math.nan
    except (ValueError, OverflowError):
        number = math.nan
    if not math.isfinite(number):
        raise _unreadable(file, name, value)
    return number


def _unreadable(file: WeightsFile, name: str, value: object) -> GGUFError:
    return GGUFError(
        f"the metadata of this LoRA has {str(value)[:40]!r} as {name}, which cannot be read. "
        "Correct the file's metadata.",
        path=file.path,
    )


def _ends(names: tuple[str, ...], key: str) -> bool:
    return any(f".{name}".endswith(f".{key}") for name in names)
