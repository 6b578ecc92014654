"""Turn Wan weights in safetensors into GGUF: `python -m comfyui_multitalk.tools.convert IN OUT`.

Which tensors stay unquantised, and which types a mix such as Q4_K_M holds, follows city96's
published Wan files (`convert.py` and `lcpp.patch` of ComfyUI-GGUF). Departures: the 5-D patch
embedding is written in place (no second "fix" step), rows that do not divide into a K-quant's
blocks take Q8_0 where they can, and the MultiTalk audio projection stays unquantised.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from ..wan_gguf_loader.files import TensorInfo, WeightsFile, open_weights
from ..wan_gguf_loader.types import PLAIN_DTYPES
from .gguf_writer import Entry, write_gguf
from .quantize import quantize

HEAD_DIM = 128
"""Channels of a head in every published Wan model; other models carry their number of heads."""

FILE_TYPES = {"Q4_0": 2, "Q8_0": 7, "Q5_0": 8, "Q4_K": 14, "Q4_K_M": 15, "Q6_K": 18}
"""Names of the mixes to llama.cpp's numbers of them (`general.file_type`)."""

_DEFAULT = {"Q4_K_M": "Q4_K"}
_VALUES = {"Q4_K_M": "Q6_K"}  # type of self_attn.v and cross_attn.v
_FFN_2 = {"Q4_K_M": "Q6_K", "Q4_0": "Q4_1", "Q5_0": "Q5_1"}
_BLOCKS = {"Q4_K": 256, "Q6_K": 256}  # all others: 32
_KEPT = (
    "modulation", "patch_embedding.", "text_embedding.", "time_projection.", "time_embedding.",
    "img_emb.", "head.", "audio_proj.",
)  # fmt: skip
_SMALL = 1024  # elements
_PLAIN = {"F32", "F16", "BF16", "F8_E4M3", "F8_E5M2"}
_SCALE_MARKS = ("scaled_fp8", ".scale_weight", ".weight_scale", ".comfy_quant", "._scale")


class _Planned(NamedTuple):
    """One tensor of the input and its form in the output."""

    file: WeightsFile
    entry: Entry

    def payload(self) -> Tensor:
        name, type = self.entry.name, self.entry.type
        try:
            if type not in PLAIN_DTYPES:
                return quantize(self.file.read(name), type)
            value = self.file.dequantize(name).to(PLAIN_DTYPES[type])
            if not bool(torch.isfinite(value).all()):
                raise ValueError(f"it holds a value that is not finite as {type}.")
        except ValueError as error:
            raise ValueError(f"Tensor '{name}': {error}") from error
        return value


def convert(
    inputs: str | Path | Sequence[str | Path],
    output: str | Path,
    *,
    type: str = "Q4_K_M",
    num_heads: int | None = None,
    fold_patch_embedding: bool = False,
) -> None:
    """Convert the weights of one Wan model.

    Args:
        inputs: One safetensors file, or the parts of a split one.
        output: GGUF file to write; it appears only when it is complete.
        type: One of `FILE_TYPES`.
        num_heads: Attention heads; needed if they do not have 128 channels and the metadata of the
            input does not give them (`num_heads`, or `model.num_heads` in its JSON `config`).
        fold_patch_embedding: Write the patch embedding 4-D, outputs times inputs first, as some
            other tools do.

    Raises:
        ValueError: If the input is not a plain Wan safetensors file, or the type is unknown.
        OSError: If a file cannot be read or written.
    """
    if type not in FILE_TYPES:
        raise ValueError(f"Unknown type '{type}'; choose one of {', '.join(FILE_TYPES)}.")
    paths = [Path(inputs)] if isinstance(inputs, str | Path) else [Path(path) for path in inputs]
    output = Path(output)
    files = [open_weights(path) for path in paths]
    plan = [
        _Planned(file, _entry(info, type=type, fold=fold_patch_embedding))
        for file in files
        for info in file.tensors.values()
    ]
    entries = [planned.entry for planned in plan]
    _check_names(entries, source=paths[0].name)
    metadata = _metadata(files, entries, type=type, num_heads=num_heads)
    write_gguf(output, entries, (planned.payload() for planned in plan), metadata=metadata)


def _entry(info: TensorInfo, *, type: str, fold: bool) -> Entry:
    if info.name.endswith(_SCALE_MARKS) or info.type not in _PLAIN:
        raise ValueError(
            f"Tensor '{info.name}' ({info.type}) belongs to weights that are quantised already. "
            "Convert the original fp32, fp16, bf16 or plain fp8 file."
        )
    shape = info.shape or (1,)
    chosen = choose_type(info.name, shape, stored=info.type, type=type)
    if fold and info.name == "patch_embedding.weight":
        shape = (shape[0] * shape[1], *shape[2:])
    return Entry(info.name, shape, chosen)


def _check_names(entries: Sequence[Entry], *, source: str) -> None:
    names = [entry.name for entry in entries]
    if len(set(names)) != len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"Tensor '{twice}' is there twice; give each part of a model once.")
    if not any(name.startswith("blocks.0.") for name in names):
        raise ValueError(
            f"{source} holds no Wan transformer (no tensor is named 'blocks.0.*'). "
            "Give a Wan file with the original tensor names; diffusers' names are not converted."
        )


def choose_type(name: str, shape: tuple[int, ...], *, stored: str, type: str) -> str:
    """Choose the type of one tensor by city96's recipe.

    Args:
        name: Upstream's name.
        shape: Logical shape, torch order.
        stored: Type in the input, such as BF16.
        type: One of `FILE_TYPES`.

    Returns:
        A GGML type.
    """
    numel = torch.Size(shape).numel()
    if (
        len(shape) == 1
        or numel <= _SMALL
        or name.endswith("modulation")
        or name == "patch_embedding.weight"
    ):
        return "F32"
    half = "BF16" if stored == "BF16" else "F16"
    if len(shape) != 2 or any(part in name for part in _KEPT):
        return half
    wanted = _DEFAULT.get(type, type)
    if name.endswith(("self_attn.v.weight", "cross_attn.v.weight")):
        wanted = _VALUES.get(type, wanted)
    elif name.endswith("ffn.2.weight"):
        wanted = _FFN_2.get(type, wanted)
    if shape[1] % _BLOCKS.get(wanted, 32) == 0:
        return wanted
    return "Q8_0" if shape[1] % 32 == 0 else half


def _metadata(
    files: Sequence[WeightsFile], entries: Sequence[Entry], *, type: str, num_heads: int | None
) -> dict[str, str | int]:
    found: dict[str, str | int] = {
        "general.architecture": "wan",
        "general.quantization_version": 2,
        "general.file_type": FILE_TYPES[type],
    }
    heads = num_heads or next((file.num_heads for file in files if file.num_heads), None)
    width = next((e.shape[0] for e in entries if e.name == "blocks.0.self_attn.q.weight"), None)
    if heads is None and width is not None and width % HEAD_DIM:
        raise ValueError(
            f"A model of width {width} has no heads of {HEAD_DIM} channels. "
            "Give its number of heads (--num-heads)."
        )
    if heads is not None and width != heads * HEAD_DIM:
        found["wan.attention.head_count"] = heads
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return its exit code."""
    parser = argparse.ArgumentParser(prog="convert", description="Wan safetensors to GGUF")
    parser.add_argument("input", nargs="+", type=Path, help="safetensors file, or all its parts")
    parser.add_argument("output", type=Path, help="GGUF file to write")
    parser.add_argument("--type", choices=FILE_TYPES, default="Q4_K_M")
    parser.add_argument("--num-heads", type=int, help="when a head has not 128 channels")
    options = parser.parse_args(arguments)
    try:
        convert(options.input, options.output, type=options.type, num_heads=options.num_heads)
    except (ValueError, OSError) as error:
        sys.stderr.write(f"convert: {error}\n")
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
