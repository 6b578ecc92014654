"""`multitalk download`: a set of model files into ComfyUI's folders or one folder.

Nothing is fetched before all is known: which files are there already, what the hub states of the
others, and whether they fit on the disk. A file that is there is compared by its sum. A sum that
the manifest lacks is kept in a record beside the files, so that the next run compares it too.
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from filelock import FileLock, Timeout
from huggingface_hub import constants

from ..multitalk_core.errors import InputError
from .hub import Hub, Remote, gigabytes, part_of, sha256_of, size_of
from .manifest import ModelFile, ModelSet

RECORD = ".multitalk-models.json"
"""Sums of the files that the manifest has none for, in the folder of the files."""
_LOCK = ".multitalk-models.lock"
_MANY_FOLDERS = "models"
"""Where ComfyUI has its folders of models."""

Say = Callable[[str], None]


class Target(NamedTuple):
    """A file of the set and its place here."""

    file: ModelFile
    path: Path


def targets(models: ModelSet, *, to: Path | None, comfyui: Path | None) -> list[Target]:
    """Say where each file of a set goes.

    Args:
        models: The set.
        to: One folder for all files.
        comfyui: ComfyUI's folder, whose `models` has a folder for each kind.

    Raises:
        InputError: If not exactly one of both is given, or `comfyui` is no ComfyUI.
    """
    if (to is None) == (comfyui is None):
        raise InputError("Say where the files go: --to FOLDER, or --comfyui FOLDER with ComfyUI.")
    if to is not None:
        return [Target(file, to / file.name) for file in models.files]
    assert comfyui is not None
    root = comfyui / _MANY_FOLDERS
    if not root.is_dir():
        raise InputError(
            f"{comfyui} is no ComfyUI: it has no folder {_MANY_FOLDERS!r}. Give the folder with "
            "ComfyUI's main.py, or one folder for all files with --to."
        )
    return [Target(file, root / file.folder / file.name) for file in models.files]


def download(wanted: list[Target], *, hub: Hub, say: Say) -> None:
    """Fetch the files that are not there yet.

    Args:
        wanted: Files and places, all under one folder.
        hub: Where they come from.
        say: Takes a line about each file.

    Raises:
        InputError: If another file is in the way, the disk is too small, or the hub is off limits.
        MultiTalkError: If a download fails; complete files stay, of the broken one at most a part.
    """
    root = _root(wanted)
    with _alone(root):
        sums = _Record(root)
        missing = [target for target in wanted if not _is_there(target, sums, hub, say)]
        if missing and constants.HF_HUB_OFFLINE:
            raise InputError(
                f"HF_HUB_OFFLINE is set, and {_count(missing)} missing in {root}: "
                f"{', '.join(target.file.name for target in missing)}. Unset it, or copy the "
                "files there from another machine."
            )
        stated = {target: hub.ask(target.file) for target in missing}
        _check_space(stated)
        for target, remote in stated.items():
            found = hub.fetch(remote, target.path)
            sums.add(target, found)
            how = "checked" if remote.sha256 else "unverified: the hub states no sum"
            say(f"{target.path}: {gigabytes(remote.size)}, sha256 {how}")


def generate_command(models: ModelSet, places: list[Target]) -> str:
    """Write the `multitalk generate` line that uses a set."""
    words = ["multitalk", "generate", "--image", "photo.png", "--audio", "voice.wav"]
    words += ["--prompt", "A person is talking."]
    for file, path in places:
        words += [file.option, f"{path}:1" if file.role == "lora" else str(path)]
    return shlex.join([*words, *models.options, "-o", "video.mp4"])


def list_sets(sets: Mapping[str, ModelSet]) -> Iterator[str]:
    """Describe every set in a line."""
    for name, models in sets.items():
        size = sum(file.bytes or 0 for file in models.files)
        more = "" if all(file.bytes for file in models.files) else " and more"
        yield f"{name:22} {gigabytes(size) + more:18} {models.about}"


def list_files(models: ModelSet) -> Iterator[str]:
    """Describe every file of a set."""
    yield f"{models.name}: {models.about}"
    for file in models.files:
        yield f"  {file.folder}/{file.name}"
        size = gigabytes(file.bytes) if file.bytes else "size unknown"
        licence = file.licence or f"licence: see https://huggingface.co/{file.repository}"
        yield f"    {file.repository}/{file.path}, {size}, {licence}"
        yield f"    sha256 {file.sha256 or 'unverified: recorded at the first download'}"


class _Record:
    """Sums found at the first download of files that the manifest has no sum for."""

    def __init__(self, root: Path) -> None:
        self._root, self._path = root, root / RECORD
        try:
            text = self._path.read_text(encoding="utf-8") if self._path.exists() else "{}"
            self._sums: dict[str, str] = dict(json.loads(text))
        except (ValueError, TypeError) as reason:
            raise InputError(
                f"{self._path} is damaged ({reason}). Delete it; the files are then compared with "
                "the hub's sums."
            ) from reason

    def known(self, target: Target) -> str | None:
        return target.file.sha256 or self._sums.get(self._key(target))

    def add(self, target: Target, found: str) -> None:
        if target.file.sha256:
            return
        self._sums[self._key(target)] = found
        draft = self._path.with_suffix(".part")
        draft.write_text(json.dumps(self._sums, indent=2) + "\n", encoding="utf-8")
        draft.replace(self._path)

    def _key(self, target: Target) -> str:
        return target.path.relative_to(self._root).as_posix()


def _is_there(target: Target, sums: _Record, hub: Hub, say: Say) -> bool:
    """Tell whether a file is there; refuse another one of its name."""
    file, path = target
    if not path.exists():
        return False
    size, known = file.bytes, sums.known(target)
    if known is None and not constants.HF_HUB_OFFLINE:
        remote = hub.ask(file)
        size, known = remote.size, remote.sha256
    right = path.is_file() and size in (None, size_of(path))
    if right and known is not None:
        say(f"{path}: there already, comparing its sum")
        right = sha256_of(path) == known
    if not right:
        raise InputError(
            f"{path} is there already with other content ({size_of(path):,} bytes). It was not "
            f"changed: move it away, or choose another folder, to download {file.repository}/"
            f"{file.path}."
        )
    if known is None:
        say(f"{path}: there already, unverified: no sum is known")
    else:
        sums.add(target, known)
    return True


def _check_space(stated: Mapping[Target, Remote]) -> None:
    """Refuse what does not fit; ComfyUI's folders may be on several disks."""
    needed, folders = Counter[int](), {}
    for target, remote in stated.items():
        folder = target.path.parent
        device = folder.stat().st_dev
        needed[device] += max(0, remote.size - size_of(part_of(target.path)))
        folders[device] = folder
    for device, size in needed.items():
        free = shutil.disk_usage(folders[device]).free
        if size > free:
            raise InputError(
                f"The download needs {gigabytes(size)} in {folders[device]}, but "
                f"{gigabytes(free)} are free. Free some space or choose another folder; nothing "
                "was downloaded."
            )


def _root(wanted: list[Target]) -> Path:
    """Make the folders; give the one that holds all of them."""
    folders = [target.path.parent for target in wanted]
    for folder in folders:
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as reason:
            raise InputError(
                f"{folder} cannot be made ({reason.strerror}). Choose another folder."
            ) from reason
        if not os.access(folder, os.W_OK):
            raise InputError(f"{folder} cannot be written to. Choose another folder.")
    return Path(os.path.commonpath(folders))


@contextmanager
def _alone(root: Path) -> Iterator[None]:
    """Refuse to write into a folder that another download writes into."""
    try:
        with FileLock(root / _LOCK, timeout=0):
            yield
    except Timeout as reason:
        raise InputError(
            f"Another `multitalk download` writes into {root}. Wait until it has ended."
        ) from reason


def _count(missing: list[Target]) -> str:
    return "1 file is" if len(missing) == 1 else f"{len(missing)} files are"
