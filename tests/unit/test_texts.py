"""Translations and help pages cover exactly what the committed schema promises."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from comfyui_multitalk.tests.support.schema import LOCALES, ROOT, SCHEMA

DOCS = ROOT / "web" / "docs"
NODES = json.loads(SCHEMA.read_text(encoding="utf-8"))
CHINESE = re.compile("[\u4e00-\u9fff]")
SYNTAX = re.compile(r"[{}@|]")
PICTURE_BYTES = 2_000_000


def locale(language: str, file: str) -> dict[str, Any]:
    return dict(json.loads((LOCALES / language / file).read_text(encoding="utf-8")))


def leaves(tree: dict[str, Any], path: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in tree.items():
        place = f"{path}/{key}"
        found |= leaves(value, place) if isinstance(value, dict) else {place: value}
    return found


def pages(node: str) -> dict[str, Path]:
    return {"en": DOCS / f"{node}.md", "zh": DOCS / node / "zh.md"}


@pytest.mark.parametrize("file", ["main.json", "nodeDefs.json"])
def test_chinese_translates_every_english_text_and_no_other(file: str) -> None:
    english, chinese = leaves(locale("en", file)), leaves(locale("zh", file))
    missing, stale = english.keys() - chinese.keys(), chinese.keys() - english.keys()
    assert not missing, f"locales/zh/{file} lacks {sorted(missing)}"
    assert not stale, f"locales/zh/{file} has what is no more: {sorted(stale)}"


def test_chinese_texts_are_chinese() -> None:
    texts = leaves(locale("zh", "nodeDefs.json"))
    sentences = [key for key in texts if key.endswith(("/tooltip", "/description"))]
    assert [key for key in sentences if not CHINESE.search(texts[key])] == []
    assert [key for key, text in texts.items() if not text] == []


@pytest.mark.parametrize("language", ["en", "zh"])
def test_texts_hold_no_signs_that_the_page_would_interpret(language: str) -> None:
    texts = leaves(locale(language, "nodeDefs.json"))
    assert {key: text for key, text in texts.items() if SYNTAX.search(text or "")} == {}


def test_categories_and_sockets_of_ours_have_names() -> None:
    main = locale("en", "main.json")
    kinds = {
        slot["type"] for node in NODES.values() for slot in (*node["inputs"], *node["outputs"])
    }
    ours = {kind for kind in kinds if kind.startswith(("MTK_", "MULTITALK_"))}
    assert set(main["dataTypes"]) == ours
    assert set(main["nodeCategories"]) == {"MultiTalk"}


@pytest.mark.parametrize("language", ["en", "zh"])
@pytest.mark.parametrize("node", NODES)
def test_help_page_names_every_input_and_output(node: str, language: str) -> None:
    page = pages(node)[language].read_text(encoding="utf-8")
    texts = locale(language, "nodeDefs.json")[node]
    assert page.splitlines()[0] == f"# {texts['display_name']}"
    names = [slot["name"] for part in ("inputs", "outputs") for slot in texts[part].values()]
    assert [name for name in names if name not in page] == []


@pytest.mark.parametrize("language", ["en", "zh"])
@pytest.mark.parametrize("node", NODES)
def test_help_page_shows_the_node(node: str, language: str) -> None:
    page = pages(node)[language].read_text(encoding="utf-8")
    pictures = re.findall(r"!\[[^\]]+\]\(([^)]+)\)", page)
    assert f"images/{node}.webp" in pictures
    assert [picture for picture in pictures if not (DOCS / picture).is_file()] == []


def test_help_pages_and_pictures_are_of_nodes_that_exist() -> None:
    kept = {path for node in NODES for path in pages(node).values()}
    kept |= {DOCS / "images" / f"{node}.webp" for node in NODES}
    files = {path for path in DOCS.rglob("*") if path.is_file()}
    assert sorted(str(path.relative_to(DOCS)) for path in files - kept) == []
    assert sum(path.stat().st_size for path in files) < PICTURE_BYTES
