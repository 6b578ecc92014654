"""The package of the ComfyUI registry: what is in it, and what comfy-cli says of it.

That the package works is shown by test_hosting.py, whose server has nothing else.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from comfyui_multitalk.dev.tiny.files import TrainedSet
from comfyui_multitalk.tests.host import graphs
from comfyui_multitalk.tests.support.comfyui import ROOT
from comfyui_multitalk.tests.support.package import packaged_files

if TYPE_CHECKING:
    from comfyui_multitalk.tests.support.comfyui import Server

pytestmark = pytest.mark.host

HOW_TO_GET = (
    "There is no comfy-cli. Give it an environment of its own, such as `python -m venv "
    ".cache/comfy-cli && .cache/comfy-cli/bin/pip install comfy-cli==1.23.0`, or set COMFY_CLI."
)
NEVER = {".ci", "dev", "scripts", "tests", "tools"}
NEEDED = {
    "__init__.py", "pyproject.toml", "README.md", "CHANGELOG.md", "LICENSE", "NOTICE",
    "docs/hosting.md", "workflows/inputs/portrait.png", "hosting/handler.py",
    "workflows/api/photo_to_talking_video.json",
    "workflows/Try it now.json", "workflows/Photo to talking video.json",
    "web/docs/MTK_Sampler.md", "requirements.txt",
}  # fmt: skip


@pytest.fixture(scope="module")
def comfy() -> Path:
    """Give the `comfy` command; without it the tests skip, saying how to get it."""
    own = ROOT / ".cache" / "comfy-cli" / "bin" / "comfy"
    found = os.environ.get("COMFY_CLI") or shutil.which("comfy") or (own if own.is_file() else None)
    if found is None:
        pytest.skip(HOW_TO_GET)
    return Path(found)


def call(comfy: Path, *arguments: str, folder: Path = ROOT) -> subprocess.CompletedProcess[str]:
    """Run comfy-cli, which must succeed."""
    done = subprocess.run(
        [str(comfy), "--skip-prompt", *arguments],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "DO_NOT_TRACK": "1"},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done


def test_package_holds_what_users_need_and_nothing_of_the_workshop() -> None:
    names = set(packaged_files())
    assert names >= NEEDED
    assert {name.partition("/")[0] for name in names} & NEVER == set()
    tiny = {str(file.relative_to(ROOT)) for file in TrainedSet(ROOT / "models" / "tiny").files}
    assert {name for name in names if name.startswith("models/")} == {
        *tiny,
        "models/tiny/README.md",
    }
    code = {name for name in _tracked_code() if name.partition("/")[0] not in NEVER}
    assert code <= names


def _tracked_code() -> set[str]:
    return {
        str(path.relative_to(ROOT))
        for room in ("nodes", "multitalk_core", "wan_gguf_loader", "standalone")
        for path in (ROOT / room).rglob("*.py")
    }


def test_comfy_cli_packs_the_same_files(comfy: Path, tmp_path: Path) -> None:
    checkout = tmp_path / "checkout"
    subprocess.run(["git", "clone", "--quiet", str(ROOT), str(checkout)], check=True)
    call(comfy, "node", "pack", folder=checkout)
    (archive,) = checkout.glob("*.zip")
    with zipfile.ZipFile(archive) as file:
        assert sorted(file.namelist()) == packaged_files(checkout)


def test_comfy_cli_finds_nothing_to_object_to(comfy: Path) -> None:
    done = call(comfy, "node", "validate")
    assert "All validation checks passed" in done.stdout + done.stderr


@pytest.mark.parametrize(
    "path",
    sorted(graphs.FOLDER.rglob("*.json")),
    ids=lambda path: str(path.relative_to(graphs.FOLDER)),
)
def test_comfy_cli_accepts_every_workflow(
    comfy: Path, server: Server, tmp_path: Path, path: Path
) -> None:
    nodes = tmp_path / "object_info.json"
    nodes.write_text(json.dumps(server.get("/object_info")))
    arguments = ("--workflow", str(path), "--input", str(nodes), "--where", "local")
    said: dict[str, Any] = json.loads(
        call(comfy, "--json", "workflow", "validate", *arguments).stdout.splitlines()[-1]
    )
    assert said["data"]["valid"] is True
    assert said["data"]["errors"] == said["data"]["warnings"] == []
