"""Node ids, inputs and outputs are promises to saved workflows; texts exist in every language."""

from __future__ import annotations

import copy
import json
from typing import TYPE_CHECKING, Any

import pytest

from comfyui_multitalk.tests.support import schema

if TYPE_CHECKING:
    from comfyui_multitalk.tests.support.comfyui import Server

pytestmark = pytest.mark.host


@pytest.fixture(scope="module")
def object_info(server: Server) -> dict[str, Any]:
    return dict(server.get("/object_info"))


def test_nodes_are_as_the_committed_schema_promises(object_info: dict[str, Any]) -> None:
    said = schema.changes(json.loads(schema.SCHEMA.read_text()), schema.promised(object_info))
    message = ["The nodes differ from tests/host/schema.json:", *said]
    assert not said, "\n".join([*message, f"If this is meant: {schema.REWRITE}"])


def test_english_texts_are_the_schemas_own(object_info: dict[str, Any]) -> None:
    written = json.loads((schema.LOCALES / "en" / "nodeDefs.json").read_text())
    assert written == schema.english(object_info), f"Take the texts anew: {schema.REWRITE}"


def test_every_node_input_and_output_says_what_it_is(object_info: dict[str, Any]) -> None:
    for name, texts in schema.english(object_info).items():
        assert texts["description"], name
        assert object_info[name]["search_aliases"], name
        for part in ("inputs", "outputs"):
            silent = [key for key, text in texts[part].items() if not text["tooltip"]]
            assert not silent, f"{name}: no tooltip for the {part} {silent}"


def test_translations_reach_the_page(server: Server) -> None:
    served = server.get("/i18n")
    for language in ("en", "zh"):
        folder = schema.LOCALES / language
        main = json.loads((folder / "main.json").read_text())
        nodes = json.loads((folder / "nodeDefs.json").read_text())
        assert served[language] == {**main, "nodeDefs": nodes}


def test_changes_of_a_schema_are_named() -> None:
    before = json.loads(schema.SCHEMA.read_text())
    after = copy.deepcopy(before)
    inputs = after["MTK_Speaker"]["inputs"]
    inputs[2], inputs[3] = inputs[3], inputs[2]
    next(entry for entry in inputs if entry["name"] == "start")["default"] = 1.5
    inputs.append({"name": "pitch", "type": "FLOAT", "required": False})
    after["MTK_Speaker"]["outputs"][0]["type"] = "AUDIO"
    del after["MTK_LoadUMT5"]
    after["MTK_Other"] = after["MTK_LoadWan"]
    names = [entry["name"] for entry in before["MTK_Speaker"]["inputs"]]
    changed = [entry["name"] for entry in inputs]
    assert schema.changes(before, after) == [
        "MTK_LoadUMT5: the node is gone.",
        "MTK_Other: the node is new.",
        "MTK_Speaker: input `pitch` is new.",
        "MTK_Speaker: input `start`: default was 0.0, is 1.5.",
        f"MTK_Speaker: the order of the inputs was {names}, is {changed}.",
        "MTK_Speaker: output `speaker`: type was 'MULTITALK_SPEAKERS', is 'AUDIO'.",
    ]
    assert schema.changes(before, before) == []
