"""Importing the pack is free (no host, no torch, no side effect), and all of it ships."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

try:
    import tomllib
except ModuleNotFoundError:  # Python 3.10
    import tomli as tomllib

# Not on Windows, or not on macOS.
_ELSEWHERE = {"crypt", "fcntl", "grp", "pty", "pwd", "readline", "resource", "termios", "triton"}
_PROBE = """
import importlib.util, logging, pathlib, sys
root = pathlib.Path(sys.argv[1])
before, handlers = set(sys.modules), list(logging.getLogger().handlers)
spec = importlib.util.spec_from_file_location(
    "a_name_of_the_host", root / "__init__.py", submodule_search_locations=[str(root)]
)
module = importlib.util.module_from_spec(spec)
sys.modules[spec.name] = module
spec.loader.exec_module(module)
assert logging.getLogger().handlers == handlers
assert callable(module.comfy_entrypoint)
print(module.WEB_DIRECTORY)
print(*sorted(name.partition(".")[0] for name in set(sys.modules) - before))
"""


def test_import_pack_without_comfy_has_no_side_effects(repository: Path) -> None:
    # As ComfyUI does: by file, under a name of its own, in a process that has no `comfy`.
    probe = [sys.executable, "-W", "error", "-I", "-c", _PROBE, str(repository)]
    run = subprocess.run(probe, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    web_directory, modules = run.stdout.splitlines()
    assert web_directory == "./web"
    foreign = {name for name in modules.split() if name not in sys.stdlib_module_names}
    assert foreign == {"a_name_of_the_host"}


def test_packages_of_pyproject_are_all_that_ship(repository: Path) -> None:
    listed = tomllib.loads((repository / "pyproject.toml").read_text())["tool"]["setuptools"]
    rooms = ("multitalk_core", "nodes", "standalone", "wan_gguf_loader")
    found = {
        ".".join(("comfyui_multitalk", *file.parent.relative_to(repository).parts))
        for room in rooms
        for file in (repository / room).rglob("__init__.py")
    }
    assert set(listed["packages"]) == found | {"comfyui_multitalk"}


def test_dependencies_of_pyproject_leave_torch_to_the_host(repository: Path) -> None:
    project = tomllib.loads((repository / "pyproject.toml").read_text())["project"]
    names = {entry.split(">")[0].split("=")[0].strip() for entry in project["dependencies"]}
    assert names.isdisjoint({"torch", "torchvision", "torchaudio"})


def test_no_module_imports_what_windows_or_macos_lacks(repository: Path) -> None:
    rooms = ("multitalk_core", "nodes", "standalone", "wan_gguf_loader")
    files = [
        file
        for room in rooms
        for file in (repository / room).rglob("*.py")
        if file.parent.name != "kernels"  # imported only where Triton is
    ]
    assert len(files) > 50
    found = {
        f"{file.relative_to(repository)}: {name}"
        for file in files
        for name in _imports(ast.parse(file.read_text(encoding="utf-8")))
        if name in _ELSEWHERE
    }
    assert found == set()


def _imports(node: ast.AST) -> Iterator[str]:
    """Give the modules imported anywhere but under an `if` about `sys.platform`."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and "sys.platform" in ast.unparse(child.test):
            continue
        if isinstance(child, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in child.names)
        elif isinstance(child, ast.ImportFrom) and child.level == 0 and child.module:
            yield child.module.partition(".")[0]
        yield from _imports(child)
