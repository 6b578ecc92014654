"""The sets of `multitalk download`: complete, of safe formats, and as the documents say."""

from __future__ import annotations

import ast
import re
import sys
from pathlib import Path

import pytest

from comfyui_multitalk.standalone.download import list_files, list_sets
from comfyui_multitalk.standalone.hub import gigabytes
from comfyui_multitalk.standalone.manifest import ModelFile, ModelSet, model_sets

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

SETS = model_sets()
FILES = {file.name: file for models in SETS.values() for file in models.files}
NEEDED = {"base", "adapter", "wav2vec2", "vae", "text_encoder", "clip_vision"}


@pytest.mark.parametrize("models", SETS.values(), ids=SETS)
def test_set_is_complete(models: ModelSet) -> None:
    roles = [file.role for file in models.files]
    assert sorted(roles) == sorted(NEEDED | ({"lora"} if "lightx2v" in models.name else set()))


@pytest.mark.parametrize("file", FILES.values(), ids=FILES)
def test_file_is_of_a_safe_format_and_well_described(file: ModelFile) -> None:
    assert Path(file.name).suffix in {".gguf", ".safetensors"}
    assert re.fullmatch(r"[\w.-]+/[\w.-]+", file.repository)
    assert re.fullmatch(r"main|[0-9a-f]{40}", file.revision)
    assert file.sha256 is None or re.fullmatch(r"[0-9a-f]{64}", file.sha256)
    assert (file.sha256 is None) == (file.bytes is None)


def test_names_are_unique() -> None:
    assert len({(file.repository, file.path) for file in FILES.values()}) == len(FILES)


def test_folders_are_those_that_the_nodes_look_in(repository: Path) -> None:
    source = (repository / "nodes" / "host" / "folders.py").read_text(encoding="utf-8")
    known = {
        target.id.lower(): ast.literal_eval(word.value)[0]
        for node in ast.parse(source).body
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Call)
        for target in node.targets
        if isinstance(target, ast.Name)
        for word in node.value.keywords
        if word.arg == "sources"
    }
    folders = {file.role: file.folder for file in FILES.values()}
    # ComfyUI's own nodes load these two.
    assert folders == {**known, "vae": "vae", "lora": "loras"}


def test_manifest_is_installed_with_the_package(repository: Path) -> None:
    metadata = tomllib.loads((repository / "pyproject.toml").read_text(encoding="utf-8"))
    data = metadata["tool"]["setuptools"]["package-data"]
    assert data == {"comfyui_multitalk.standalone": ["models.json"]}


def test_page_has_the_tables_of_the_manifest(repository: Path) -> None:
    page = (repository / "docs" / "models.md").read_text(encoding="utf-8")
    rows = [line for line in page.splitlines() if line.startswith("| `")]
    assert rows == [*map(set_row, SETS.values()), *map(file_row, FILES.values())]


def set_row(models: ModelSet) -> str:
    names = [f"`{file.name}`" for file in models.files if file.role in ("base", "adapter", "lora")]
    return f"| `{models.name}` | {models.about} | {', '.join(names)} |"


def file_row(file: ModelFile) -> str:
    size = gigabytes(file.bytes) if file.bytes else "not known here"
    total = f"`{file.sha256[:12]}...`" if file.sha256 else "unverified"
    licence = file.licence or "not known here"
    return f"| `{file.name}` | {file.repository} | `{file.folder}` | {size} | {licence} | {total} |"


def test_list_of_the_sets_has_a_line_for_each() -> None:
    assert [line.split()[0] for line in list_sets(SETS)] == list(SETS)


def test_list_of_a_set_names_every_file_and_what_is_not_known() -> None:
    text = "\n".join(list_files(SETS["480p-q8"]))
    for file in SETS["480p-q8"].files:
        assert f"{file.folder}/{file.name}" in text
    assert text.count("sha256 unverified") == 2
    assert "size unknown, Apache-2.0" in text  # the MultiTalk adapter
