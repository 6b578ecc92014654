"""What the registry and ComfyUI-Manager read of the pack agrees with itself."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parents[2]
METADATA = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
PROJECT, COMFY = METADATA["project"], METADATA["tool"]["comfy"]
GRAPHS = sorted([*(ROOT / "workflows").glob("*.json"), *(ROOT / "subgraphs").glob("*.json")])
PAGE_ONLY = {"MarkdownNote"}  # nodes of the page, which no pack provides
SUBGRAPH = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")


def test_requirements_equal_the_dependencies() -> None:
    lines = (ROOT / "requirements.txt").read_text(encoding="utf-8").splitlines()
    assert [line for line in lines if not line.startswith("#")] == PROJECT["dependencies"]


def test_registry_name_follows_its_rules() -> None:
    assert re.fullmatch(r"[a-z]+(-[a-z0-9]+)*", PROJECT["name"])
    assert "comfyui" not in PROJECT["name"]


def test_template_category_is_named_after_the_folder_that_the_manager_makes() -> None:
    for language in ("en", "zh"):
        texts = json.loads((ROOT / "locales" / language / "main.json").read_text(encoding="utf-8"))
        assert list(texts["templateWorkflows"]["category"]) == [PROJECT["name"]]


@pytest.mark.parametrize(("field", "ratio"), [("Icon", 1), ("Banner", 21 / 9)])
def test_registry_picture_is_in_the_repository(field: str, ratio: float) -> None:
    _, _, path = COMFY[field].partition("/main/")
    with Image.open(ROOT / path) as picture:
        width, height = picture.size
    assert width / height == pytest.approx(ratio, rel=0.01)
    assert (ROOT / path).stat().st_size < 100_000


@pytest.mark.parametrize("path", GRAPHS, ids=lambda path: f"{path.parent.name}: {path.stem}")
def test_every_node_of_a_workflow_names_its_pack_and_version(path: Path) -> None:
    for node in nodes(json.loads(path.read_text(encoding="utf-8"))):
        if node["type"] in PAGE_ONLY or SUBGRAPH.fullmatch(node["type"]):
            continue
        origin = (node["properties"]["cnr_id"], node["properties"]["ver"])
        if node["type"].startswith("MTK_"):
            assert origin == (PROJECT["name"], PROJECT["version"])
        else:
            assert origin == ("comfy-core", "0.33.0")


def nodes(workflow: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Give the nodes of a workflow and of its subgraphs."""
    yield from workflow["nodes"]
    for subgraph in workflow.get("definitions", {}).get("subgraphs", ()):
        yield from subgraph["nodes"]
