"""Keys of LoRA files: which layer of the model each names, and what its tensor is there.

Layers are named as upstream or as diffusers names them, with dots or (Kohya, LyCORIS) underscores,
behind any prefix. Endings are those of PEFT (`lora_A`), Kohya (`lora_down`), diffusers
(`lora.down`) and LyCORIS (`hada_*`, `lokr_*`), and those of whole differences (`diff`, `diff_b`,
and `diff_m` of lightx2v for modulation).
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import NamedTuple

from .namings import DIFFUSERS_LAYERS

_PREFIXES = (
    *("base_model.model.", "model.", "diffusion_model.", "transformer.", "unet.", "net.", "dit."),
    *("pipe.", "module.", "lora_unet__", "lora_unet_", "lora_transformer_", "lycoris_"),
)
_ENDING = re.compile(
    r"\.(?:(?P<down>lora_A(?:\.\w+)?\.weight|lora_A"
    r"|lora_down\.weight|lora\.down\.weight|lora_linear_layer\.down\.weight)"
    r"|(?P<up>lora_B(?:\.\w+)?\.weight|lora_B"
    r"|lora_up\.weight|lora\.up\.weight|lora_linear_layer\.up\.weight)"
    r"|(?P<magnitude>dora_scale|lora_magnitude_vector(?:\.\w+)*)"
    r"|(?P<alpha>alpha)"
    r"|(?P<own>hada_w[12]_[ab]|hada_t[12]|lokr_w[12](?:_[ab])?|lokr_t2)"
    r"|(?P<weight>diff|w_norm)|(?P<bias>diff_b|b_norm)|(?P<modulation>diff_m))$"
)
_RULES = tuple(
    (re.compile(theirs.pattern.replace(r"\.", "_")), ours.replace(".", "_"))
    for theirs, ours in DIFFUSERS_LAYERS
)
_DIFFUSERS_PARTS = ("condition_embedder", "proj_out", "scale_shift_table")


class LayerKey(NamedTuple):
    """What a key names.

    Attributes:
        stem: The key without prefixes and ending: the layer, as the file names it.
        path: The model's module or tensor of that name; None if it has none.
        role: What the tensor is there: `down`, `up`, `alpha`, `magnitude`, a LyCORIS factor such as
            `lokr_w1`, or the `weight`, `bias` or `modulation` of which it is a difference.
            None if the ending is unknown.
        is_ours: Whether the key is for the model, known to it or not, and not for another one.
    """

    stem: str
    path: str | None
    role: str | None
    is_ours: bool


class LayerNames:
    """The names that files have for the layers of one model."""

    def __init__(self, tensors: Iterable[str]) -> None:
        """Collect the names.

        Args:
            tensors: Names of the model's tensors.
        """
        paths = {name for tensor in tensors for name in (tensor, tensor.rpartition(".")[0])}
        self._paths = {path.replace(".", "_"): path for path in paths}
        self._parts = {*_DIFFUSERS_PARTS, *(path.partition(".")[0] for path in paths if path)}

    def find(self, key: str) -> LayerKey:
        """Find the layer and the role of a key."""
        ending = _ENDING.search(key)
        stem, prefix = (key[: ending.start()] if ending else key), ""
        while (path := self._path(stem)) is None:
            found = next((p for p in _PREFIXES if stem.startswith(p)), None)
            if found is None:
                break
            stem, prefix = stem[len(found) :], found
        role = ending.lastgroup if ending else None
        if ending and role == "own":
            role = ending["own"]
        part = stem.partition(".")[0]
        with_underscores = prefix.endswith("_") and part.startswith(
            tuple(f"{name}_" for name in self._parts)
        )
        return LayerKey(stem, path, role, is_ours=part in self._parts or with_underscores)

    def _path(self, stem: str) -> str | None:
        """Look a layer up by its name with underscores, ours or diffusers'."""
        name = stem.replace(".", "_")
        for theirs, ours in () if name in self._paths else _RULES:
            name, count = theirs.subn(ours, name)
            if count:
                break
        return self._paths.get(name)
