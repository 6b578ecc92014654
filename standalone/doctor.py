"""`multitalk doctor`: what of this machine a video needs, one line each, with the fix.

A finding is `ok`, a `note` (works, at a price) or `bad` (no video comes out of it).
"""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
from collections.abc import Iterable, Iterator
from importlib import metadata
from pathlib import Path

import torch
from packaging.requirements import Requirement

from .finding import Finding, bad, note, ok
from .hub import gigabytes
from .stock import find_models, memory_plans, missing_roles

PACK = "multitalk-wan-gguf"
OLDEST_COMFYUI = (0, 23)
_ROOT = Path(__file__).resolve().parents[1]
_CODECS = ("libx264", "aac")
_HOPPER = 9
_PAGE = "comfyui-frontend-package"


def examine(files: list[Path], *, models: Path | None) -> Iterator[Finding]:
    """Examine the machine and the model files.

    Args:
        files: Weights files that belong together; none for those of a folder.
        models: Folder to look for weights in; `None` takes that of ComfyUI, if it is found.
    """
    yield ok("Python", platform.python_version())
    yield from examine_torch()
    dependencies = list(examine_dependencies(required()))
    yield from dependencies
    complete = not any(finding.is_bad for finding in dependencies)
    if complete:
        yield from _examine_av()
    yield from _examine_extras()
    comfyui = comfyui_folder()
    yield from examine_comfyui(comfyui)
    if models is None and comfyui is not None and not files:
        models = comfyui / "models"
    if models is None and not files:
        yield note("models", "not looked for", "give their folder with --models")
        yield _free_space(Path.cwd())
        return
    stock, findings = find_models(files, folder=models)
    yield from findings
    absent = list(missing_roles(stock, folder=models, comfyui=comfyui))
    yield from absent
    if complete and not absent:
        yield from memory_plans(stock)
    yield _free_space(models or files[0].absolute().parent)


def examine_torch() -> Iterator[Finding]:
    """Describe torch and every card that it sees."""
    driver = _driver()
    if not torch.cuda.is_available():
        if driver is not None:
            yield bad(
                "torch",
                f"{torch.__version__} does not see the card (driver {driver})",
                "install a CUDA build of torch for this driver: https://pytorch.org/get-started",
            )
            return
        yield ok("torch", torch.__version__)
        yield note(
            "card", "none; the CPU computes", "use a machine with an NVIDIA card for the 14B models"
        )
        return
    yield ok("torch", f"{torch.__version__}, CUDA {torch.version.cuda}")
    for index in range(torch.cuda.device_count()):
        card = torch.cuda.get_device_properties(index)
        free = torch.cuda.mem_get_info(index)[0]
        yield ok(
            f"card {index}",
            f"{card.name}, {gigabytes(free)} of {gigabytes(card.total_memory)} free, compute "
            f"capability {card.major}.{card.minor}, driver {driver or 'unknown'}",
        )


def required() -> list[str]:
    """Read what the package requires: of the installation, or of `requirements.txt`."""
    try:
        return metadata.requires(PACK) or []
    except metadata.PackageNotFoundError:
        lines = (_ROOT / "requirements.txt").read_text(encoding="utf-8").splitlines()
        return [line for line in lines if line and not line.startswith("#")]


def examine_dependencies(lines: Iterable[str]) -> Iterator[Finding]:
    """Compare the installed versions with the required ones.

    Args:
        lines: Requirements as pip takes them; those of extras other than `standalone` are left out.
    """
    count = 0
    for requirement in map(Requirement, lines):
        if requirement.marker and not requirement.marker.evaluate({"extra": "standalone"}):
            continue
        count += 1
        wanted = f"{requirement.name}{requirement.specifier}"
        try:
            found = metadata.version(requirement.name)
        except metadata.PackageNotFoundError:
            if requirement.name != _PAGE:  # ComfyUI's environment alone needs it
                yield bad(requirement.name, "not installed", f"pip install '{wanted}'")
            continue
        if not requirement.specifier.contains(found, prereleases=True):
            fix = f"pip install '{wanted}'"
            yield bad(requirement.name, f"{found}, but {requirement.specifier} is needed", fix)
    yield ok("dependencies", f"{count} packages compared with their required versions")


def comfyui_folder() -> Path | None:
    """Find ComfyUI: at `COMFYUI_PATH`, otherwise where comfy-cli puts it."""
    given = os.environ.get("COMFYUI_PATH")
    folder = Path(given) if given else Path.home() / "comfy" / "ComfyUI"
    return folder if (folder / "main.py").is_file() else None


def examine_comfyui(folder: Path | None) -> Iterator[Finding]:
    """Tell ComfyUI's version, and whether it has this pack."""
    if folder is None:
        yield note("ComfyUI", "not found", "if you have one, set COMFYUI_PATH to its folder")
        return
    file = folder / "comfyui_version.py"
    text = file.read_text(encoding="utf-8") if file.is_file() else ""
    version = re.search(r"""__version__ = ["'](\d+)\.(\d+)([^"']*)""", text)
    if version and (int(version[1]), int(version[2])) < OLDEST_COMFYUI:
        found = "".join((version[1], ".", version[2], version[3]))
        oldest = ".".join(map(str, OLDEST_COMFYUI))
        yield bad("ComfyUI", f"{found} in {folder}", f"update it to {oldest} or newer")
    else:
        found = text.rpartition("=")[2].strip(" \n\"'") or "of unknown version"
        yield ok("ComfyUI", f"{found} in {folder}")
    if any(_is_pack(path) for path in (folder / "custom_nodes").glob("*/pyproject.toml")):
        yield ok("nodes", f"{PACK} is in ComfyUI's custom_nodes")
    else:
        fix = f"comfy node install {PACK}, or put this folder into custom_nodes"
        yield note("nodes", f"{PACK} is not in ComfyUI's custom_nodes", fix)


def _is_pack(pyproject: Path) -> bool:
    text = pyproject.read_text(encoding="utf-8", errors="replace")
    return re.search(rf'^name = "{PACK}"', text, re.MULTILINE) is not None


def _examine_av() -> Iterator[Finding]:
    import av  # only if the dependencies are there

    versions = ".".join(map(str, av.library_versions["libavcodec"]))
    missing = [codec for codec in _CODECS if codec not in av.codecs_available]
    if missing:
        fix = "pip install --force-reinstall --only-binary av av"
        yield bad("ffmpeg", f"libavcodec {versions} in av without {', '.join(missing)}", fix)
    else:
        yield ok("ffmpeg", f"libavcodec {versions} in av, with {', '.join(_CODECS)}")


def _examine_extras() -> Iterator[Finding]:
    """Tell which of the packages that only make it faster are there."""
    if not torch.cuda.is_available():
        return  # both are for cards
    try:
        yield ok("triton", metadata.version("triton"))
    except metadata.PackageNotFoundError:
        cost = "not installed: steps are slower, and attention needs about twice the memory"
        yield note("triton", cost, "pip install triton (on Windows triton-windows)")
    hopper = torch.cuda.get_device_capability()[0] == _HOPPER
    try:
        yield ok("flash-attn-4", metadata.version("flash-attn-4"))
    except metadata.PackageNotFoundError:
        if hopper:
            cost = "not installed: self-attention of the video takes a sixth more time"
            yield note("flash-attn-4", cost, "pip install flash-attn-4")
        else:
            yield ok("flash-attn-4", "not needed: it is used on Hopper cards only")


def _free_space(folder: Path) -> Finding:
    free = shutil.disk_usage(folder if folder.exists() else Path.cwd()).free
    return ok("disk", f"{gigabytes(free)} free in {folder}")


def _driver() -> str | None:
    """Ask the NVIDIA driver for its version; `None` without one."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return None
    query = [program, "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        done = subprocess.run(query, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.split("\n")[0].strip() or None
