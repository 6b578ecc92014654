"""The files that together hold one model: a single one, or shards with or without an index."""

from __future__ import annotations

import json
import re
from pathlib import Path

from .errors import GGUFError
from .source import Source

_SHARD = re.compile(r"(.+)-(\d{5})-of-(\d{5})(\.safetensors|\.gguf)", re.DOTALL)
_INDEX = re.compile(r".+\.safetensors\.index(\.[\w-]+)?\.json", re.DOTALL)  # diffusers' .fp16 too
_ENDS = (".gguf", ".safetensors", ".sft")
_MAX_INDEX = 64 << 20
_MAX_SHARDS = 1000


def shard_paths(path: Path) -> list[Path]:
    """Find the files of a model.

    Args:
        path: A weights file, any shard of a set (`model-00001-of-00003.safetensors`), an index
            (`model.safetensors.index.json`), or a folder that holds one of these.

    Raises:
        GGUFError: If a shard is missing, the index is damaged, or the folder holds no model or
            several.
    """
    if path.is_dir():
        path = _only_model(path)
    if _INDEX.fullmatch(path.name):
        return [path.with_name(name) for name in _indexed(path)]
    match = _SHARD.fullmatch(path.name)
    if match is None:
        return [path]
    stem, _, count, end = match.groups()
    if not 1 <= int(count) <= _MAX_SHARDS:
        raise GGUFError(f"the file's name speaks of {int(count)} shards.", path=path)
    shards = [path.with_name(f"{stem}-{n:05}-of-{count}{end}") for n in range(1, int(count) + 1)]
    missing = [shard.name for shard in shards if not shard.exists()]
    if missing:
        raise GGUFError(
            f"this is one of {int(count)} shards of a model, and {', '.join(missing[:3])} "
            f"{'is' if len(missing) == 1 else 'are'} not beside it. Download all shards into one "
            "folder.",
            path=path,
        )
    return shards


def _only_model(folder: Path) -> Path:
    """Give the index, the only weights file, or the first of the only set of shards in a folder."""
    files = sorted(file for file in folder.iterdir() if file.is_file())
    models = [file for file in files if _INDEX.fullmatch(file.name)] or [
        file for file in files if file.suffix in _ENDS and not _is_later_shard(file.name)
    ]
    if len(models) == 1:
        return models[0]
    names = ", ".join(file.name for file in models[:5])
    raise GGUFError(
        f"this folder holds {f'several models ({names})' if models else 'no model'}. Choose a "
        ".gguf or .safetensors file.",
        path=folder,
    )


def _is_later_shard(name: str) -> bool:
    match = _SHARD.fullmatch(name)
    return match is not None and int(match[2]) != 1


def _indexed(path: Path) -> list[str]:
    """Read the shards' names from an index."""
    source = Source(path)
    if source.size > _MAX_INDEX:
        raise source.error(f"the index has {source.size} bytes, at most {_MAX_INDEX} are read.")
    try:
        index = json.loads(source.read(0, source.size))
    except (ValueError, RecursionError) as reason:
        raise source.error("the index is no JSON. Download it again.") from reason
    places = index.get("weight_map") if isinstance(index, dict) else None
    names = (
        set(places.values())
        if isinstance(places, dict) and all(isinstance(name, str) for name in places.values())
        else set()
    )
    if not names or any(not name or Path(name).name != name for name in names):
        raise source.error("the index names no shards beside it ('weight_map'). Download it again.")
    if len(names) > _MAX_SHARDS:
        raise source.error(f"the index names {len(names)} shards, at most {_MAX_SHARDS} are read.")
    return sorted(names)
