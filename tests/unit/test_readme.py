"""The README keeps its word: its commands parse, its files exist, the two targets come first."""

from __future__ import annotations

import ast
import re
import shlex
from pathlib import Path

import pytest

from comfyui_multitalk.standalone.arguments import build_request, parse


@pytest.fixture(scope="module")
def readme(repository: Path) -> str:
    return (repository / "README.md").read_text(encoding="utf-8")


def _blocks(readme: str) -> list[str]:
    return re.findall(r"^ *```\n(.*?)^ *```$", readme, flags=re.DOTALL | re.MULTILINE)


def test_readme_begins_with_the_two_commands(readme: str, repository: Path) -> None:
    commands = [line.split("#")[0].split() for line in _blocks(readme)[0].splitlines()]
    assert commands == [["make", "demo"], ["make", "test"]]
    for _, target in commands:
        assert f"{target}:\n\t@scripts/{target}\n" in (repository / "Makefile").read_text()


def test_readme_commands_parse(readme: str) -> None:
    text = "\n".join(_blocks(readme)).replace("\\\n", " ")
    commands = [shlex.split(line) for line in text.splitlines() if line.startswith("multitalk ")]
    assert len(commands) == 2
    for command in commands:
        request = build_request(parse(command[1:]))
        assert request.output.suffix == ".mp4"


def test_readme_links_lead_to_files(readme: str, repository: Path) -> None:
    links = re.findall(r"\]\((?!https?:)([^)]+)\)", readme)
    assert links
    headings = {f"#{line[3:].lower().replace(' ', '-')}" for line in readme.splitlines()}
    files = [link for link in links if link not in headings]
    assert [link for link in files if not (repository / link).exists()] == []


def test_readme_names_examples_that_are_there(readme: str, repository: Path) -> None:
    names = set(re.findall(r"workflows/inputs/[\w.]+\w", readme))
    assert len(names) > 3
    assert [name for name in names if not (repository / name).exists()] == []


def test_readme_model_table_is_what_the_lists_ask_for(readme: str, repository: Path) -> None:
    row = re.compile(r"^ *\| .*? \| `([^`]+)` \| `([^`]+)` \| `([^`]+)` \|$", re.MULTILINE)
    source = (repository / "nodes" / "host" / "folders.py").read_text(encoding="utf-8")
    asked = {
        _literals(call)
        for call in ast.walk(ast.parse(source))
        if isinstance(call, ast.Call) and getattr(call.func, "id", "") == "ModelFolder"
    }
    assert len(asked) > 3
    theirs = {entry for entry in row.findall(readme) if entry[2] == "vae"}  # ComfyUI's Load VAE
    assert len(theirs) == 1
    assert set(row.findall(readme)) == asked | theirs


def _literals(call: ast.Call) -> tuple[str, str, str]:
    """Give file, repository and folder of a `ModelFolder(...)`."""
    given = {word.arg: ast.literal_eval(word.value) for word in call.keywords}
    return given["file"], given["repository"], given["sources"][0]
