"""Reads what a source file imports, wherever in it, and says what the import rule forbids."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator, Sequence, Set
from pathlib import Path, PurePosixPath
from typing import NamedTuple

PACKAGE = "comfyui_multitalk"
HOST_MODULES = frozenset(
    {"comfy", "comfy_api", "comfy_execution", "comfy_extras", "folder_paths", "latent_preview"}
    | {"node_helpers", "nodes", "server"}
)
_UNREADABLE = "<computed name>"
_ROOMS = frozenset({"multitalk_core", "wan_gguf_loader", "nodes", "standalone"})
_DEVELOPERS = frozenset({"dev", "tools"})  # import any room, but only its public names
_STANDALONE = frozenset(
    {"av", "diffusers", "filelock", "huggingface_hub", "numpy", "packaging", "PIL", "pillow_heif"}
    | {"safetensors", "sentencepiece", "tokenizers", "torch", "tqdm", "transformers"}
)
_STDLIB_ONLY = frozenset({"errors", "config", "geometry", "method.segments"})
_CORE_EXTRAS = {
    "inputs.photo": {"numpy", "PIL"},
    "inputs.voices": {"numpy", "librosa", "pyloudnorm"},
    "inputs.timeline": {"numpy"},
    "inputs.features": {"transformers"},
    "model.backends": {"flash_attn", "sageattention"},
}
# Low to high; a module may import its own level and those below.
CORE_LEVELS = (
    {"errors", "config", "geometry", "method.segments"},
    {"protocols", "files.lookalikes", "files.identify", "files.sizes"},
    {"inputs.photo", "inputs.voices", "inputs.masks", "method.color", "method.seams"},
    {"inputs.timeline"},
    {"method.state", "model.lrope", "model.kernels", "model.layers"},
    {"model.elementwise"},
    {"model.residual"},
    {"model.attention", "model.audio_tokens", "inputs.features"},
    {"model.hooks", "model.backends", "inputs.speech"},
    {"inputs.scene"},
    {"model.block", "method.schedule", "method.guidance"},
    {"model.dit"},
    {"method.conditioning", "method.step_cache"},
    {"method.sampler"},
    {"engine"},
)
_LEVEL = {name: level for level, names in enumerate(CORE_LEVELS) for name in names}
_CORE_ROOMS = frozenset({"model", "method", "inputs", "files"})


class Import(NamedTuple):
    """One imported name; our own are spelled from the package's name on."""

    name: str
    line: int
    relative: bool


class _Rule(NamedTuple):
    own: Set[str]  # rooms of the pack
    foreign: Set[str]  # top-level packages beside the standard library


def violations(source: str, *, place: str) -> list[str]:
    """Say what the import rule forbids in one file.

    Args:
        source: Text of the file.
        place: Where it stands, relative to the repository, with forward slashes.

    Returns:
        One line for each offence.
    """
    path = PurePosixPath(place)
    found = [
        f"{place}:{item.line}: {offence}"
        for item in imports(source, place=place)
        if (offence := _offence(item, path))
    ]
    if path.parts[0] in _DEVELOPERS:
        found += [f"{place}:{line}: uses the private {name}" for name, line in _privates(source)]
    if (
        path.parts[0] == "multitalk_core"
        and path.stem != "__init__"
        and _module(path) not in _LEVEL
    ):
        found.append(f"{place}: has no level yet; give it one in tests/support/imports.py")
    return list(dict.fromkeys(found))


def imports(source: str, *, place: str) -> Iterator[Import]:
    """Give every import of a file: at the top, in functions, under conditions, by `importlib`."""
    package = (PACKAGE, *PurePosixPath(place).parent.parts)
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield Import(alias.name, node.lineno, relative=False)
        elif isinstance(node, ast.ImportFrom):
            start = package[: len(package) - node.level + 1] if node.level else ()
            base = ".".join((*start, *filter(None, [node.module])))
            for alias in node.names:
                yield Import(f"{base}.{alias.name}", node.lineno, relative=bool(node.level))
        elif isinstance(node, ast.Call) and _imports_by_call(node.func):
            known = node.args and isinstance(node.args[0], ast.Constant)
            name = str(node.args[0].value) if known else _UNREADABLE  # type: ignore[attr-defined]
            yield Import(name, node.lineno, relative=False)


def source_files(root: Path) -> list[Path]:
    """Give the files the rule speaks of."""
    rooms = (*sorted(_ROOMS | _DEVELOPERS), "tests/unit", "tests/parity")
    return [root / "__init__.py", *(file for room in rooms for file in (root / room).rglob("*.py"))]


def _imports_by_call(function: ast.expr) -> bool:
    name = function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")
    return name in {"__import__", "import_module"}


def _offence(item: Import, path: PurePosixPath) -> str | None:
    top, *inner = item.name.split(".")
    if path.parts[0] == "tests":
        return f"tests here run without ComfyUI, not with {top}" if top in HOST_MODULES else None
    if path.parts[0] in _DEVELOPERS:
        return _developers_offence(item, inner if top == PACKAGE else ())
    if item.name == _UNREADABLE:
        return "imports a name that only running it would tell"
    if top == PACKAGE:
        return _own_offence(item, path, inner)
    if top in sys.stdlib_module_names or top in _rule(path).foreign:
        return None
    return f"{_room(path)} may not import {top}"


def _developers_offence(item: Import, inner: Sequence[str]) -> str | None:
    if inner and inner[0] in _ROOMS and any(_is_private(name) for name in inner):
        return f"developers' tools may not import the private {item.name}"
    return None


def _privates(source: str) -> Iterator[tuple[str, int]]:
    """Give the private names that a file reads from modules and classes of the product."""
    tree = ast.parse(source)
    ours = {
        alias.asname or alias.name
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and node.level
        if (node.module or "").split(".")[0] in _ROOMS
        for alias in node.names
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and _is_private(node.attr):
            owner = node.value
            if isinstance(owner, ast.Name) and owner.id in ours:
                yield f"{owner.id}.{node.attr}", node.lineno


def _is_private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__")


def _own_offence(item: Import, path: PurePosixPath, inner: list[str]) -> str | None:
    if not item.relative:
        return f"imports {item.name} by name; ComfyUI knows the pack by another, so use dots"
    room = inner[0] if inner else ""
    if room not in _rule(path).own:
        return f"{_room(path)} may not import {room or 'the root of the pack'}"
    if path.parts[0] != "multitalk_core":
        return None
    own, other = _module(path), _core_module(inner[1:])
    if own in _STDLIB_ONLY and other not in _STDLIB_ONLY:
        return f"{own} may not import {other or room}"
    if own in _LEVEL and _LEVEL.get(other, len(_LEVEL)) > _LEVEL[own]:
        return f"{own} stands below {other or room} and may not import it"
    return None


def _room(path: PurePosixPath) -> str:
    return path.parts[0] if len(path.parts) > 1 else "the root"


def _module(path: PurePosixPath) -> str:
    """Name a file inside its room, such as `model.dit`; of core's kernels their folder."""
    return _core_module(path.with_suffix("").parts[1:])


def _core_module(parts: Sequence[str]) -> str:
    return ".".join(parts[: 2 if parts and parts[0] in _CORE_ROOMS else 1])


def _rule(path: PurePosixPath) -> _Rule:
    room = _room(path)
    if room == "the root":
        return _Rule({"nodes"}, {"comfy_api"})
    if room == "nodes" and path.parts[1] == "drawing":
        return _Rule({room}, {"torch", "numpy", "PIL"})
    if room == "nodes":
        bridge = {"comfy", "folder_paths", "node_helpers", "latent_preview", "numpy", "PIL"}
        extra = bridge if path.with_suffix("").parts[1] == "host" else set()
        return _Rule({"nodes", "multitalk_core", "wan_gguf_loader"}, {"torch", "comfy_api"} | extra)
    if room == "standalone":
        return _Rule({room, "multitalk_core", "wan_gguf_loader"}, _STANDALONE)
    if room == "wan_gguf_loader":
        return _Rule({room}, {"torch", "numpy", "safetensors", "gguf"} | _triton(path))
    own_module = _module(path)
    if own_module in _STDLIB_ONLY:
        return _Rule({room}, set())
    return _Rule({room}, {"torch"} | _CORE_EXTRAS.get(own_module, set()) | _triton(path))


def _triton(path: PurePosixPath) -> set[str]:
    return {"triton"} if "kernels" in path.parts else set()
