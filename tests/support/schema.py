"""What the pack promises to saved workflows, taken from a server's `/object_info`.

Saved workflows hold nodes by id, links by input name and output number, and widget values by
position: none of these may change unseen. Texts are the other half: the English locale file is the
schema's own, so that a translation has something to be compared with.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
SCHEMA = ROOT / "tests" / "host" / "schema.json"
LOCALES = ROOT / "locales"
REWRITE = "python -m comfyui_multitalk.dev.schema"
PREFIX = "MTK_"

_MODEL_FILES = (".gguf", ".safetensors", ".sft")
_KEPT = ("default", "min", "max", "step", "control_after_generate", "forceInput")
Json = dict[str, Any]


def promised(object_info: Mapping[str, Json]) -> Json:
    """Give our nodes' inputs and outputs in order, without texts and lists of the machine."""
    return {
        name: {
            "inputs": [
                _input(input_name, spec, required=required)
                for input_name, spec, required in _inputs(node)
            ],
            "outputs": [
                {"name": label, "type": kind}
                for label, kind in zip(node["output_name"], node["output"], strict=True)
            ],
            "output_node": node["output_node"],
        }
        for name, node in sorted(object_info.items())
        if name.startswith(PREFIX)
    }


def english(object_info: Mapping[str, Json]) -> Json:
    """Give the English `nodeDefs.json` of our nodes."""
    return {
        name: {
            "display_name": node["display_name"],
            "description": node["description"],
            "inputs": {
                key: text
                for input_name, spec, _ in _inputs(node)
                for key, text in _input_texts(input_name, spec)
            },
            "outputs": {
                str(number): {"name": label, "tooltip": tooltip}
                for number, (label, tooltip) in enumerate(
                    zip(node["output_name"], node["output_tooltips"], strict=True)
                )
            },
        }
        for name, node in sorted(object_info.items())
        if name.startswith(PREFIX)
    }


def changes(before: Mapping[str, Json], after: Mapping[str, Json]) -> list[str]:
    """Say what a change of the promised nodes is, one sentence each; none if they are equal."""
    said = [f"{name}: the node is gone." for name in before if name not in after]
    said += [f"{name}: the node is new." for name in after if name not in before]
    for name in before:
        if name in after:
            said += [f"{name}: {what}" for what in _node_changes(before[name], after[name])]
    return said


def write(path: Path, content: Json) -> None:
    """Write JSON as the repository keeps it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _inputs(node: Json) -> Iterator[tuple[str, list[Any], bool]]:
    for group in ("required", "optional"):
        for name in node["input_order"].get(group, ()):
            yield name, node["input"][group][name], group == "required"


def _input(name: str, spec: Sequence[Any], *, required: bool) -> Json:
    options = spec[1] if len(spec) > 1 else {}
    entry: Json = {"name": name, "type": spec[0], "required": required}
    entry.update({key: options[key] for key in _KEPT if options.get(key) is not None})
    if "options" in options:
        listed = options["options"]
        of_files = any(str(choice).endswith(_MODEL_FILES) for choice in listed)
        entry["options"] = "model files" if of_files else listed
    if "template" in options:
        template = options["template"]
        entry["template"] = {key: template[key] for key in ("prefix", "min", "max")}
        entry["template"]["type"] = next(iter(template["input"]["required"].values()))[0]
    return entry


def _input_texts(name: str, spec: Sequence[Any]) -> Iterator[tuple[str, Json]]:
    """Give the key and texts of an input; a growing one has as many as it may grow to."""
    options = spec[1] if len(spec) > 1 else {}
    if "template" in options:
        template = options["template"]
        (inner,) = template["input"]["required"].values()
        for number in range(template["max"]):
            slot = f"{template['prefix']}{number}"
            yield f"{name}_{slot}", {"name": slot, "tooltip": inner[1]["tooltip"]}
    else:
        yield name, {"name": name, "tooltip": options.get("tooltip")}


def _node_changes(before: Json, after: Json) -> Iterator[str]:
    for part in ("inputs", "outputs"):
        old = {entry["name"]: entry for entry in before[part]}
        new = {entry["name"]: entry for entry in after[part]}
        kind = part[:-1]
        yield from (f"{kind} `{name}` is gone." for name in old if name not in new)
        yield from (f"{kind} `{name}` is new." for name in new if name not in old)
        kept = [name for name in old if name in new]
        for name in kept:
            yield from (
                f"{kind} `{name}`: {key} was {old[name].get(key)!r}, is {new[name].get(key)!r}."
                for key in sorted(old[name].keys() | new[name].keys())
                if old[name].get(key) != new[name].get(key)
            )
        if kept != [name for name in new if name in old] or list(new)[: len(kept)] != kept:
            yield f"the order of the {part} was {list(old)}, is {list(new)}."
    if before["output_node"] != after["output_node"]:
        yield f"output_node was {before['output_node']}, is {after['output_node']}."
