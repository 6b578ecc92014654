"""`multitalk download` against a hub that breaks off, lies, sends too little or has too much."""

from __future__ import annotations

import hashlib
import json
import os
import random
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from filelock import FileLock
from huggingface_hub import constants

from comfyui_multitalk.multitalk_core.errors import InputError, MultiTalkError
from comfyui_multitalk.standalone.arguments import build_request, parse
from comfyui_multitalk.standalone.cli import main
from comfyui_multitalk.standalone.download import (
    RECORD,
    download,
    generate_command,
    targets,
)
from comfyui_multitalk.standalone.hub import Hub
from comfyui_multitalk.standalone.manifest import ModelFile, ModelSet, model_sets
from comfyui_multitalk.tests.support.model_hub import COMMIT, ModelHub, serve

CONTENT = random.Random(0).randbytes(3_000_000)
OTHER = bytes(reversed(CONTENT))
SHA256 = hashlib.sha256(CONTENT).hexdigest()
BASE = "someone/base/base.gguf"
ADAPTER = "other/adapters/folder/adapter.safetensors"
Get = Callable[..., list[str]]


def model_file(role: str, name: str, sha256: str | None) -> ModelFile:
    repository, _, path = name.partition("/")[2].partition("/")
    pattern = next(file for file in model_sets()["480p-q4"].files if file.role == role)
    return ModelFile(
        role=role,
        option=pattern.option,
        folder=pattern.folder,
        repository=f"{name.partition('/')[0]}/{repository}",
        path=path,
        revision="main",
        bytes=len(CONTENT) if sha256 else None,
        sha256=sha256,
        licence=None,
    )


def model_set(*files: ModelFile) -> ModelSet:
    return ModelSet(name="test", about="a test", files=files, options=())


KNOWN = model_set(model_file("base", BASE, SHA256))
UNKNOWN = model_set(model_file("adapter", ADAPTER, None))


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModelHub]:
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.setenv(name, "127.0.0.1,localhost")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    # Otherwise it asks huggingface.co what kinds of agents there are.
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_TELEMETRY", True)
    # huggingface_hub writes 10 MiB at once; what is less is lost if the connection breaks.
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 100_000)
    state = ModelHub(files={BASE: CONTENT, ADAPTER: OTHER})
    with serve(state):
        yield state


@pytest.fixture
def get(hub: ModelHub, tmp_path: Path) -> Get:
    """Download a set into `tmp_path / "models"`; gives the lines that were said."""

    def call(models: ModelSet) -> list[str]:
        said: list[str] = []
        places = targets(models, to=tmp_path / "models", comfyui=None)
        download(places, hub=Hub(hub.endpoint), say=said.append)
        return said

    return call


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return tmp_path / "models" / "base.gguf"


@pytest.fixture
def part(base: Path) -> Path:
    return base.with_name("base.gguf.part")


def test_files_arrive_whole_at_the_commit_that_was_asked_for(
    get: Get, hub: ModelHub, base: Path
) -> None:
    said = get(model_set(*KNOWN.files, *UNKNOWN.files))
    assert base.read_bytes() == CONTENT
    assert base.with_name("adapter.safetensors").read_bytes() == OTHER
    assert [line.rpartition(", ")[2] for line in said] == ["sha256 checked"] * 2
    assert not list(base.parent.glob("*.part"))
    heads = [path for method, path, _ in hub.asked if method == "HEAD"]
    gets = [path for method, path, _ in hub.asked if method == "GET" and "/resolve/" in path]
    assert heads[0] == "/someone/base/resolve/main/base.gguf"
    assert gets[0] == f"/someone/base/resolve/{COMMIT}/base.gguf"


def test_comfyui_gets_each_file_in_its_own_folder(hub: ModelHub, tmp_path: Path) -> None:
    (tmp_path / "models").mkdir()
    places = targets(model_set(*KNOWN.files, *UNKNOWN.files), to=None, comfyui=tmp_path)
    download(places, hub=Hub(hub.endpoint), say=lambda line: None)
    found = {str(path.relative_to(tmp_path)) for path in (tmp_path / "models").glob("*/*")}
    assert found == {
        "models/diffusion_models/base.gguf",
        "models/model_patches/adapter.safetensors",
    }
    assert json.loads((tmp_path / "models" / RECORD).read_text()) == {
        "model_patches/adapter.safetensors": hashlib.sha256(OTHER).hexdigest()
    }


def test_folder_without_models_is_no_comfyui(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is no ComfyUI"):
        targets(KNOWN, to=None, comfyui=tmp_path)


def test_connection_that_breaks_once_is_resumed(get: Get, hub: ModelHub, base: Path) -> None:
    hub.stops = [1_000_000]
    get(KNOWN)
    assert base.read_bytes() == CONTENT
    assert hub.fetched == [("base.gguf", None), ("base.gguf", "bytes=1000000-")]


def test_connection_that_stays_broken_leaves_a_part_that_the_next_run_resumes(
    get: Get, hub: ModelHub, base: Path, part: Path
) -> None:
    hub.stops = [1_000_000] + [-1] * 9
    with pytest.raises(MultiTalkError, match=r"ended after 1\.00 MB of 3\.00 MB .* base.gguf.part"):
        get(KNOWN)
    assert not base.exists()
    assert part.read_bytes() == CONTENT[:1_000_000]
    hub.stops.clear()
    hub.asked.clear()
    get(KNOWN)
    assert base.read_bytes() == CONTENT
    assert not part.exists()
    assert hub.fetched == [("base.gguf", "bytes=1000000-")]


def test_server_without_ranges_starts_over(get: Get, hub: ModelHub, base: Path, part: Path) -> None:
    part.parent.mkdir()
    part.write_bytes(CONTENT[:1_000_000])
    hub.ranges = False
    get(KNOWN)
    assert base.read_bytes() == CONTENT


@pytest.mark.parametrize("size", [1_000_000, 3_000_000, 4_000_000])
def test_part_of_another_file_never_becomes_the_file(
    get: Get, base: Path, part: Path, size: int
) -> None:
    part.parent.mkdir()
    part.write_bytes(bytes(size))
    if size > len(CONTENT):
        get(KNOWN)  # it cannot be a part of this file
        assert base.read_bytes() == CONTENT
        return
    with pytest.raises(MultiTalkError, match="were removed"):
        get(KNOWN)
    assert not base.exists()
    assert not part.exists()


def test_server_that_lies_about_the_sum_leaves_nothing(
    get: Get, hub: ModelHub, base: Path, part: Path
) -> None:
    hub.files[BASE] = OTHER
    hub.stated_sums[BASE] = SHA256
    with pytest.raises(MultiTalkError, match=f"but 3,000,000 bytes with {SHA256} are right"):
        get(KNOWN)
    assert not base.exists()
    assert not part.exists()


@pytest.mark.parametrize("what", ["size", "sha256"])
def test_file_that_was_replaced_on_the_hub_is_not_fetched(
    get: Get, hub: ModelHub, base: Path, what: str
) -> None:
    hub.files[BASE] = CONTENT[:-1] if what == "size" else OTHER
    with pytest.raises(MultiTalkError, match=f"has the {what} .* Nothing was downloaded"):
        get(KNOWN)
    assert hub.fetched == []
    assert not base.exists()


def test_short_file_does_not_get_the_name(get: Get, hub: ModelHub, base: Path, part: Path) -> None:
    hub.files[BASE] = CONTENT[:2_000_000]
    hub.stated_sizes[BASE], hub.stated_sums[BASE] = len(CONTENT), SHA256
    with pytest.raises(MultiTalkError, match=r"ended after 2\.00 MB of 3\.00 MB"):
        get(KNOWN)
    assert not base.exists()
    assert part.exists()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs the device that is always full")
def test_disk_that_becomes_full_leaves_nothing(get: Get, base: Path, part: Path) -> None:
    part.parent.mkdir()
    part.symlink_to("/dev/full")
    with pytest.raises(MultiTalkError, match=r"disk became full .* Free 3\.00 MB in"):
        get(KNOWN)
    assert not base.exists()
    assert not part.is_symlink()


def test_set_that_does_not_fit_is_refused_with_numbers_before_anything_starts(
    get: Get, hub: ModelHub, base: Path
) -> None:
    hub.stated_sizes[ADAPTER] = 10**17
    with pytest.raises(InputError, match=r"needs 100000000\.00 GB in .* GB are free"):
        get(model_set(*KNOWN.files, *UNKNOWN.files))
    assert hub.fetched == []
    assert not base.exists()


def test_file_that_is_there_is_not_fetched_again(get: Get, hub: ModelHub, base: Path) -> None:
    get(KNOWN)
    hub.asked.clear()
    assert get(KNOWN) == [f"{base}: there already, comparing its sum"]
    assert hub.asked == []


@pytest.mark.parametrize("content", [OTHER, CONTENT[:-1]], ids=["sum", "size"])
@pytest.mark.parametrize("models", [KNOWN, UNKNOWN], ids=["known", "unknown"])
def test_other_file_of_that_name_is_never_overwritten(
    get: Get, hub: ModelHub, base: Path, models: ModelSet, content: bytes
) -> None:
    hub.files[ADAPTER] = CONTENT
    there = base.with_name(models.files[0].name)
    there.parent.mkdir()
    there.write_bytes(content)
    with pytest.raises(InputError, match="is there already with other content"):
        get(models)
    assert there.read_bytes() == content
    assert hub.fetched == []


def test_size_alone_tells_another_file_where_no_sum_is_stated(
    get: Get, hub: ModelHub, base: Path
) -> None:
    hub.stated_sums[ADAPTER] = "0123"
    there = base.with_name("adapter.safetensors")
    there.parent.mkdir()
    there.write_bytes(OTHER[:-1])
    with pytest.raises(InputError, match="is there already with other content"):
        get(UNKNOWN)
    there.write_bytes(OTHER)
    assert get(UNKNOWN) == [f"{there}: there already, unverified: no sum is known"]


def test_sum_of_the_first_download_is_compared_by_the_next(
    get: Get, hub: ModelHub, base: Path
) -> None:
    get(UNKNOWN)
    adapter = base.with_name("adapter.safetensors")
    record = json.loads((base.parent / RECORD).read_text())
    assert record == {"adapter.safetensors": hashlib.sha256(OTHER).hexdigest()}
    hub.asked.clear()
    get(UNKNOWN)
    assert hub.asked == []
    adapter.write_bytes(CONTENT)
    with pytest.raises(InputError, match="other content"):
        get(UNKNOWN)


def test_damaged_record_is_reported(get: Get, base: Path) -> None:
    base.parent.mkdir()
    (base.parent / RECORD).write_text("[1]")
    with pytest.raises(InputError, match=r"is damaged .* Delete it"):
        get(KNOWN)


def test_sum_that_nobody_states_is_called_unverified(get: Get, hub: ModelHub) -> None:
    hub.stated_sums[ADAPTER] = "0123"
    (line,) = get(UNKNOWN)
    assert line.endswith("sha256 unverified: the hub states no sum")


def test_offline_mode_names_what_is_missing(
    get: Get, hub: ModelHub, base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    get(KNOWN)
    hub.asked.clear()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    get(KNOWN)
    with pytest.raises(
        InputError, match=r"HF_HUB_OFFLINE is set, and 1 file is missing in .*: ada"
    ):
        get(model_set(*KNOWN.files, *UNKNOWN.files))
    assert hub.asked == []


def test_two_downloads_into_one_folder_do_not_mix(get: Get, base: Path) -> None:
    base.parent.mkdir()
    with (
        FileLock(base.parent / ".multitalk-models.lock"),
        pytest.raises(InputError, match="Another `multitalk download`"),
    ):
        get(KNOWN)


def test_token_reaches_the_hub_alone(
    get: Get, hub: ModelHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    get(KNOWN)
    assert hub.authorized == {"127.0.0.1"}
    assert hub.fetched


def test_folder_that_cannot_be_made_is_reported(hub: ModelHub, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    places = targets(KNOWN, to=tmp_path / "file" / "models", comfyui=None)
    with pytest.raises(InputError, match="cannot be made"):
        download(places, hub=Hub(hub.endpoint), say=lambda line: None)


def test_endpoint_of_the_environment_is_asked(
    hub: ModelHub, tmp_path: Path, package_path: Path
) -> None:
    module = "comfyui_multitalk.standalone.cli"
    environment = {
        "PYTHONPATH": str(package_path),
        "HF_ENDPOINT": hub.endpoint,
        "HF_HUB_OFFLINE": "0",
        "HF_HUB_DISABLE_TELEMETRY": "1",
    }
    done = subprocess.run(
        [sys.executable, "-m", module, "download", "infinitetalk", "--to", str(tmp_path)],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert done.stderr.startswith(f"multitalk: error: {hub.endpoint} does not give city96/")
    assert len(done.stderr.splitlines()) == 1
    (request,) = hub.asked
    assert request[1].startswith("/city96/Wan2.1-I2V-14B-480P-gguf/resolve/main/wan2.1-i2v-14b")


def test_command_without_place_or_set_says_what_to_give(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["download", "480p-q4"]) == 2
    assert "Say where the files go: --to FOLDER" in capsys.readouterr().err
    assert main(["download"]) == 2
    assert "Name a set: 480p-q4, 480p-q8," in capsys.readouterr().err


@pytest.mark.parametrize("name", model_sets())
def test_printed_command_makes_a_video_of_the_set(name: str, tmp_path: Path) -> None:
    models = model_sets()[name]
    places = targets(models, to=tmp_path / "my models", comfyui=None)
    words = shlex.split(generate_command(models, places))
    request = build_request(parse(words[1:]))
    files = request.files
    used = [files.base, files.adapter, files.wav2vec2, files.vae, files.text_encoder]
    used += [files.clip_vision, *(lora.path for lora in files.loras)]
    assert set(used) == {path for _, path in places}
    assert request.sampling.steps == (4 if "lightx2v" in name else 40)
    assert request.size == ("720p" if "720p" in name else "480p")
    assert request.sampling.method == ("infinitetalk" if "infinite" in name else "multitalk")
