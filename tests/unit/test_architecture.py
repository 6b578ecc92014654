"""docs/architecture.md keeps its word: the walk's functions and the levels of core exist."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from comfyui_multitalk.tests.support.imports import CORE_LEVELS


@pytest.fixture(scope="module")
def page(repository: Path) -> str:
    return (repository / "docs" / "architecture.md").read_text(encoding="utf-8")


def _defines(tree: ast.Module, dotted: str) -> bool:
    body = tree.body
    for name in dotted.split("."):
        found = next((node for node in body if getattr(node, "name", None) == name), None)
        if found is None:
            return False
        body = found.body
    return True


def test_walk_has_at_most_ten_steps_of_one_function_each(page: str, repository: Path) -> None:
    rows = re.findall(r"^\| (\d+) \| .* \| `([\w.]+)` \| `([\w/.]+)` \|$", page, re.MULTILINE)
    assert [int(number) for number, _, _ in rows] == list(range(1, len(rows) + 1))
    assert 5 <= len(rows) <= 10
    for _, function, file in rows:
        source = (repository / "multitalk_core" / file).read_text(encoding="utf-8")
        assert _defines(ast.parse(source), function), f"{file} has no {function}"


def test_levels_of_core_are_those_of_the_import_rule(page: str) -> None:
    listed = re.findall(r"^\d+\. ([\w/, ]+)", page, re.MULTILINE)
    levels = [{name.replace("/", ".") for name in line.strip().split(", ")} for line in listed]
    assert levels == [set(level) for level in CORE_LEVELS]
