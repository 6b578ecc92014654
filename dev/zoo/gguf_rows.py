"""Transformers in GGUF: every block type, and what converters do to names, shapes and files."""

from __future__ import annotations

import functools
import itertools
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from . import values
from .files import Family, Loads, Refused, Variant, Written
from .gguf_file import Metadata, Packed, pack, write
from .stored import is_block_layer

PLAIN_TYPES = ("F32", "F16", "BF16")
BLOCK_TYPES = (
    "Q2_K", "Q3_K", "Q4_0", "Q4_1", "Q4_K", "Q5_0", "Q5_1", "Q5_K", "Q6_K", "Q8_0",
    "IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ3_XXS", "IQ3_S", "IQ4_NL", "IQ4_XS",
    "TQ1_0", "TQ2_0", "MXFP4", "NVFP4",
)  # fmt: skip
MIXES = {
    "Q2_K (mixed with Q3_K)": ("Q2_K", "Q3_K"),
    "Q3_K_M": ("Q3_K", "Q5_K"),
    "Q4_K_M": ("Q4_K", "Q6_K"),
    "Q5_K_M": ("Q5_K", "Q6_K"),
}
"""Mixes of city96's files: the usual type, and that of the values and of `ffn.2`."""
WAN: Metadata = {"general.architecture": "wan", "general.quantization_version": 2}
PATCH = "patch_embedding.weight"
QUERY = "blocks.0.self_attn.q.weight"

Tensors = Mapping[str, Packed]
Change = Callable[[Tensors], Tensors]


@functools.cache
def packed(family: str, type: str) -> Tensors:
    """Store the blocks' layers in a type, and the rest as city96's files do."""
    model = {"base": values.base, "adapter": values.adapter, "merged": values.transformer}[family]()
    usual, better = MIXES.get(type, (type, type))

    def type_of(name: str, ndim: int) -> str:
        if ndim == 1 or name == PATCH or name.endswith("modulation"):
            return "F32"
        if not name.startswith("blocks."):
            return "F16"
        return better if name.endswith(("attn.v.weight", "ffn.2.weight")) else usual

    return {name: pack(name, value, type_of(name, value.ndim)) for name, value in model.items()}


def one_file(
    family: Family,
    name: str,
    type: str = "Q8_0",
    *,
    change: Change = dict,
    metadata: Metadata = WAN,
    version: int = 3,
    alignment: int = 32,
) -> Variant:
    """Describe a single GGUF file; `change` gives its tensors from the usual ones."""

    def written(folder: Path) -> Written:
        usual = packed(family, type)
        path = folder / f"{family}.gguf"
        write(path, change(usual), metadata, version=version, alignment=alignment)
        return Written(path, Loads({name: tensor.value for name, tensor in usual.items()}))

    return Variant(family, name, written)


def refused_file(family: Family, name: str, words: str, *, change: Change) -> Variant:
    """Describe a GGUF file that must be refused."""
    loads = one_file(family, name, change=change)
    return Variant(family, name, lambda folder: Written(loads.write(folder).path, Refused(words)))


def prefixed(prefix: str) -> Change:
    """Put a prefix before every name."""
    return lambda tensors: {prefix + name: tensor for name, tensor in tensors.items()}


def reshaped(pattern: str, shape: Callable[[tuple[int, ...]], tuple[int, ...]]) -> Change:
    """State another shape for some tensors; the bytes stay."""

    def change(tensors: Tensors) -> Tensors:
        return {
            name: tensor._replace(shape=shape(tensor.shape)) if re.search(pattern, name) else tensor
            for name, tensor in tensors.items()
        }

    return change


def without(name: str) -> Change:
    """Leave a tensor out."""
    return lambda tensors: {n: tensor for n, tensor in tensors.items() if n != name}


def split(family: Family, name: str, choose: Callable[[list[Path]], Path]) -> Variant:
    """Describe a GGUF in three files, of which the last two hold few tensors."""

    def written(folder: Path) -> Written:
        tensors = packed(family, "Q8_0")
        names = list(tensors)
        cuts = (0, len(names) // 2, len(names) - 7, len(names))
        paths = []
        for number, (start, stop) in enumerate(itertools.pairwise(cuts)):
            counts = {"split.no": number, "split.count": 3, "split.tensors.count": len(names)}
            path = folder / f"{family}-Q8_0-{number + 1:05}-of-00003.gguf"
            part = {name: tensors[name] for name in names[start:stop]}
            paths.append(write(path, part, {**(WAN if number == 0 else {}), **counts}))
        return Written(choose(paths), Loads({n: tensor.value for n, tensor in tensors.items()}))

    return Variant(family, name, written)


def _lost_part(paths: list[Path]) -> Path:
    paths[1].unlink()
    return paths[0]


def refused_split(family: Family, name: str, words: str) -> Variant:
    """Describe a GGUF of three files of which one is not there."""
    whole = split(family, name, _lost_part)
    return Variant(family, name, lambda folder: Written(whole.write(folder).path, Refused(words)))


def rows() -> Iterator[Variant]:
    """Give all variants."""
    for type in (*BLOCK_TYPES, *PLAIN_TYPES):
        yield one_file("base", f"GGUF {type}", type)
    for type in MIXES:
        yield one_file("base", f"GGUF {type}", type)
    for architecture in ("pig", "cow", "None", "flux", "llama"):
        metadata = {**WAN, "general.architecture": architecture}
        yield one_file("base", f"GGUF, architecture `{architecture}`", metadata=metadata)
    yield one_file("base", "GGUF, no architecture", metadata={"general.file_type": 7})
    yield from _bases()
    yield from _adapters()
    for type in ("Q8_0", "Q4_K", "F16"):
        yield one_file("merged", f"GGUF {type}", type)
    yield one_file("merged", "GGUF Q8_0, `multitalk_audio_proj.`", change=_kijai)


def _kijai(tensors: Tensors) -> Tensors:
    return {re.sub("^audio_proj", "multitalk_audio_proj", n): t for n, t in tensors.items()}


def _folded(tensors: Tensors) -> Tensors:
    return {
        name: tensor._replace(shape=(tensor.value.numel() // 256, 256))
        if is_block_layer(name, tensor.value)
        else tensor
        for name, tensor in tensors.items()
    }


def _bases() -> Iterator[Variant]:
    for prefix in ("model.diffusion_model.", "model.", "net."):
        yield one_file("base", f"GGUF, prefix `{prefix}`", change=prefixed(prefix))
    yield one_file("base", "GGUF version 2", version=2)
    yield one_file("base", "GGUF, alignment 64", alignment=64)
    words = {**WAN, "a.words": ["a", "b"], "a.numbers": [1.5, 2.5], "general.tags": ["wan"]}
    yield one_file("base", "GGUF with arrays in its metadata", metadata=words)
    yield one_file(
        "base",
        "GGUF, patch embedding 4-D, outputs times inputs first",
        change=reshaped("^patch_embedding.weight", lambda s: (s[0] * s[1], *s[2:])),
    )
    yield one_file(
        "base",
        "GGUF, patch embedding 4-D, without the frame",
        change=reshaped("^patch_embedding.weight", lambda s: (*s[:2], *s[3:])),
    )
    yield refused_file(
        "base",
        "GGUF without patch embedding (raw llama.cpp)",
        "patch_embedding.weight.*fix_5d_tensors",
        change=without(PATCH),
    )
    yield one_file("base", "GGUF, modulation 2-D", change=reshaped("modulation$", lambda s: s[1:]))
    half = functools.partial(_recoded, pattern=r"\.bias$|norm|modulation$|patch", type="BF16")
    yield one_file_recoded("base", "GGUF, biases and norms BF16", half)
    yield one_file_recoded(
        "base",
        "GGUF, embeddings and head quantised too",
        functools.partial(_recoded, pattern="(embedding|projection|head).*weight$", type="Q8_0"),
    )
    shapes = {
        f"comfy.gguf.orig_shape.{name}": [*tensor.shape]
        for name, tensor in values.base().items()
        if is_block_layer(name, tensor)
    }
    yield one_file(
        "base",
        "GGUF Q4_K, folded to rows of 256 (`comfy.gguf.orig_shape`)",
        "Q4_K",
        change=_folded,
        metadata={**WAN, **shapes},
    )
    yield split("base", "GGUF in three files, first chosen", lambda paths: paths[0])
    yield split("base", "GGUF in three files, last chosen", lambda paths: paths[-1])
    yield split("base", "GGUF in three files, folder chosen", lambda paths: paths[0].parent)
    yield refused_split("base", "GGUF in three files, one lost", "00002-of-00003.gguf is not")


def _recoded(tensors: Tensors, *, pattern: str, type: str) -> Tensors:
    originals = values.base()
    return {
        name: pack(name, originals[name], type)
        if re.search(pattern, name) and tensor.value.shape[-1] % (32 if type == "Q8_0" else 1) == 0
        else tensor
        for name, tensor in tensors.items()
    }


def one_file_recoded(family: Family, name: str, change: Change) -> Variant:
    """Describe a file whose tensors `change` stores in other types than usual."""

    def written(folder: Path) -> Written:
        tensors = change(packed(family, "Q8_0"))
        path = write(folder / "recoded.gguf", tensors, WAN)
        return Written(path, Loads({name: tensor.value for name, tensor in tensors.items()}))

    return Variant(family, name, written)


def _adapters() -> Iterator[Variant]:
    for type in ("Q8_0", "Q6_K", "Q5_K", "Q4_K", "Q4_0", "F16", "BF16"):
        yield one_file("adapter", f"GGUF {type} (architecture `wan`)", type)
    yield one_file("adapter", "GGUF Q8_0, `multitalk_audio_proj.`", change=_kijai)
    yield one_file(
        "adapter", "GGUF Q8_0, prefix `diffusion_model.`", change=prefixed("diffusion_model.")
    )
    yield one_file("adapter", "GGUF Q8_0, no architecture", metadata={"general.file_type": 7})
    yield split("adapter", "GGUF in three files", lambda paths: paths[0])
