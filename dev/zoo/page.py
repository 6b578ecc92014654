"""The page of the documentation with the zoo's table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from .files import Family, Variant
from .result import Result

TITLES: Mapping[Family, str] = {
    "base": "Wan2.1 image-to-video base",
    "adapter": "MultiTalk or InfiniteTalk adapter",
    "merged": "Base with the adapter in it",
    "text_encoder": "Text encoder (UMT5)",
    "clip_vision": "Picture encoder (CLIP vision)",
    "wav2vec2": "Voice encoder (Wav2Vec2)",
    "vae": "Video autoencoder (VAE)",
    "lora": "LoRA",
    "lookalike": "Other models, given as the base",
}
_INTRODUCTION = """\
# Weights files that are read

Every row is a kind of file that people hold.
`python -m comfyui_multitalk.dev.zoo FOLDER --docs docs/files.md` writes one small file of each kind
from one fixed set of values, loads it by the nodes and by the `multitalk` command, and writes this
page. The figures are the largest relative error (norm of the difference, in float32) of a tensor of
the loaded model, against the same bytes decoded without the loader:

- `0` means that every number is the same. Where a tensor is kept in fp16 or bf16, it is compared
  with the decoded values rounded to that type.
- Other figures are the rounding of float32 sums: products of LoRA factors, and the weight norm of
  Wav2Vec2.
- "refused" means that the file is refused, with a message that says what it is or what is wrong.

Packed weights (GGUF, scaled fp8 and int8) stay packed in memory. The NVFP4 and MXFP8 of
`comfy_quant` and scales of blocks are decoded when the file is read. Nothing is quantised again.
The IQ types, NVFP4, Q2_K, Q3_K and Q5_K of GGUF hold random blocks, because no quantiser for them
is at hand.
"""


def page(rows: Sequence[Variant], paths: Mapping[str, Mapping[str, Result]]) -> str:
    """Give the page: a table for each family, a row for each variant."""
    parts = [_INTRODUCTION]
    for family, title in TITLES.items():
        lines = [f"## {title}", "", "| file | nodes | command |", "|---|---|---|"]
        for row in rows:
            if row.family == family:
                cells = (_cell(paths.get(path, {}), row) for path in ("nodes", "command"))
                lines.append(f"| {row.name} | {' | '.join(cells)} |")
        parts.append("\n".join(lines) + "\n")
    return "\n".join(parts)


def listed(text: str) -> list[str]:
    """Give the titles of the variants that a page lists."""
    families = {title: family for family, title in TITLES.items()}
    found: list[str] = []
    family = ""
    for line in text.splitlines():
        if line.startswith("## "):
            family = families[line.removeprefix("## ")]
        elif family and line.startswith("| ") and not line.startswith("| file |"):
            found.append(f"{family}: {line.split(' | ')[0].removeprefix('| ')}")
    return found


def _cell(found: Mapping[str, Result], row: Variant) -> str:
    result = found.get(row.title)
    return "" if result is None else result.text
