"""The sets of model files that `multitalk download` knows, read from `models.json`.

A sum or size that no public source states is null there; the first download fills it in locally
(`download.py`).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path, PurePosixPath


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelFile:
    """One file on the Hugging Face hub.

    Attributes:
        role: What it is for: `base`, `adapter`, `wav2vec2` ...
        option: Option of `multitalk generate` that takes it.
        folder: Its folder in ComfyUI's `models`.
        repository: Repository on the hub.
        path: Path inside the repository.
        revision: Commit, or `main`.
        bytes: Exact size, if known.
        sha256: Sum of the content, if known.
        licence: As published with the file; `None` if that is not known here.
    """

    role: str
    option: str
    folder: str
    repository: str
    path: str
    revision: str
    bytes: int | None
    sha256: str | None
    licence: str | None

    @property
    def name(self) -> str:
        """Name of the local file."""
        return PurePosixPath(self.path).name


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelSet:
    """All files of one complete run.

    Attributes:
        name: What the command line calls it.
        about: One line about its use.
        files: Base first.
        options: What `multitalk generate` needs besides the files.
    """

    name: str
    about: str
    files: tuple[ModelFile, ...]
    options: tuple[str, ...]


@cache
def model_sets() -> Mapping[str, ModelSet]:
    """Read the sets, by name."""
    text = Path(__file__).with_name("models.json").read_text(encoding="utf-8")
    manifest = json.loads(text)
    roles = manifest["roles"]
    files = [ModelFile(**entry, **roles[entry["role"]]) for entry in manifest["files"]]
    by_name = {file.name: file for file in files}
    return {
        name: ModelSet(
            name=name,
            about=entry["about"],
            files=tuple(by_name[file] for file in (*entry["files"], *manifest["encoders"])),
            options=tuple(entry["options"]),
        )
        for name, entry in manifest["sets"].items()
    }
