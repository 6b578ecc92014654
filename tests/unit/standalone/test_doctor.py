"""`multitalk doctor`: each line says what is there, or what is missing and the fix."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from comfyui_multitalk.multitalk_core.files.identify import FileKind
from comfyui_multitalk.standalone.cli import main
from comfyui_multitalk.standalone.doctor import (
    OLDEST_COMFYUI,
    PACK,
    comfyui_folder,
    examine_comfyui,
    examine_dependencies,
    examine_torch,
    required,
)
from comfyui_multitalk.standalone.finding import Finding, bad, note, ok
from comfyui_multitalk.standalone.stock import find_models, memory_plans, missing_roles

without_card = pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA card")


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Give an empty home, so that no ComfyUI of this machine is found."""
    monkeypatch.delenv("COMFYUI_PATH", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path


@pytest.fixture
def comfyui(home: Path) -> Path:
    folder = home / "comfy" / "ComfyUI"
    (folder / "custom_nodes").mkdir(parents=True)
    (folder / "models").mkdir()
    (folder / "main.py").touch()
    (folder / "comfyui_version.py").write_text('__version__ = "0.33.0"\n')
    return folder


@pytest.fixture
def weights(repository: Path) -> Path:
    return repository / "models" / "tiny"


@pytest.mark.parametrize(
    ("finding", "line"),
    [
        (ok("a", "b"), "ok    a: b"),
        (note("a", "b", "do c"), "note  a: b. Fix: do c"),
        (bad("a", "b", "do c"), "bad   a: b. Fix: do c"),
    ],
    ids=["ok", "note", "bad"],
)
def test_finding_is_one_line_with_its_fix(finding: Finding, line: str) -> None:
    assert finding.line() == line


def test_dependencies_are_compared_with_what_is_required() -> None:
    lines = [
        "torch>=2",
        "numpy>=999",
        "no-such-package>=1",
        "sentencepiece>=0.1; extra == 'standalone'",
        "no-such-test-package; extra == 'test'",
        "comfyui-frontend-package>=1",
    ]
    old, absent, summary = examine_dependencies(lines)
    assert (old.level, old.subject, old.fix) == ("bad", "numpy", "pip install 'numpy>=999'")
    assert absent == bad("no-such-package", "not installed", "pip install 'no-such-package>=1'")
    assert summary == ok("dependencies", "5 packages compared with their required versions")


def test_requirements_are_read_without_an_installation() -> None:
    assert any(line.startswith("gguf") for line in required())


@without_card
def test_torch_that_does_not_see_the_card_is_bad(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = home / "nvidia-smi"
    program.write_text("#!/bin/sh\necho 580.65.06\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(home), prepend=":")
    (finding,) = examine_torch()
    assert finding.is_bad
    assert "does not see the card (driver 580.65.06)" in finding.text
    assert finding.fix.startswith("install a CUDA build of torch")


@without_card
def test_machine_without_a_card_is_a_note(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(home))
    torch_line, card = examine_torch()
    assert torch_line == ok("torch", torch.__version__)
    assert (card.level, card.subject) == ("note", "card")


def test_comfyui_is_found_where_comfy_cli_puts_it(comfyui: Path) -> None:
    assert comfyui_folder() == comfyui


def test_comfyui_of_the_environment_comes_first(
    comfyui: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = tmp_path / "other"
    shutil.copytree(comfyui, other)
    monkeypatch.setenv("COMFYUI_PATH", str(other))
    assert comfyui_folder() == other


def test_comfyui_without_the_pack_is_a_note(comfyui: Path) -> None:
    version, pack = examine_comfyui(comfyui)
    assert version == ok("ComfyUI", f"0.33.0 in {comfyui}")
    assert pack.level == "note"
    assert pack.fix.startswith(f"comfy node install {PACK}")


def test_pack_is_found_under_any_folder_name(comfyui: Path, repository: Path) -> None:
    (comfyui / "custom_nodes" / "my-clone").symlink_to(repository)
    _, pack = examine_comfyui(comfyui)
    assert pack == ok("nodes", f"{PACK} is in ComfyUI's custom_nodes")


def test_old_comfyui_is_bad(comfyui: Path) -> None:
    (comfyui / "comfyui_version.py").write_text('__version__ = "0.3.50"\n')
    version, _ = examine_comfyui(comfyui)
    assert version == bad("ComfyUI", f"0.3.50 in {comfyui}", "update it to 0.23 or newer")


def test_oldest_comfyui_is_that_of_the_registry(repository: Path) -> None:
    text = (repository / "pyproject.toml").read_text(encoding="utf-8")
    assert 'requires-comfyui = ">={}.{}.0"'.format(*OLDEST_COMFYUI) in text


def test_no_comfyui_is_a_note() -> None:
    assert comfyui_folder() is None
    (finding,) = examine_comfyui(None)
    assert (finding.level, finding.text) == ("note", "not found")


def test_folder_of_a_complete_set_lacks_nothing(weights: Path) -> None:
    stock, findings = find_models([], folder=weights)
    assert {finding.subject for finding in findings} == {
        *("base", "adapter", "Wav2Vec2", "VAE", "text encoder", "CLIP vision"),
    }
    assert list(missing_roles(stock, folder=weights, comfyui=None)) == []


def test_missing_role_comes_with_the_download_that_brings_it(weights: Path, tmp_path: Path) -> None:
    folder = tmp_path / "my models"
    shutil.copytree(weights, folder)
    (folder / "multitalk_tiny.safetensors").unlink()
    stock, _ = find_models([], folder=folder)
    assert list(missing_roles(stock, folder=folder, comfyui=None)) == [
        bad(
            "adapter",
            "there is no MultiTalk or InfiniteTalk adapter",
            f"multitalk download 480p-q4 --to '{folder}'",
        )
    ]


def test_empty_models_of_comfyui_lack_all_and_go_to_comfyui(comfyui: Path) -> None:
    folder = comfyui / "models"
    stock, findings = find_models([], folder=folder)
    missing = list(missing_roles(stock, folder=folder, comfyui=comfyui))
    assert findings == []
    assert [finding.subject for finding in missing] == [
        *("base", "adapter", "Wav2Vec2", "VAE", "text encoder", "CLIP vision")
    ]
    assert {finding.fix for finding in missing} == {
        f"multitalk download 480p-q4 --comfyui {comfyui}"
    }


def test_role_that_named_files_lack_is_a_note(weights: Path) -> None:
    stock, _ = find_models([weights / "multitalk_tiny.safetensors"], folder=None)
    missing = list(missing_roles(stock, folder=None, comfyui=None))
    assert [finding.level for finding in missing] == ["note"] * 5


def test_damaged_file_is_bad_if_named_and_a_note_in_a_folder(tmp_path: Path) -> None:
    file = tmp_path / "broken.gguf"
    file.write_bytes(b"GGUF")
    for files, folder, level in (([file], None, "bad"), ([], tmp_path, "note")):
        _, (finding,) = find_models(files, folder=folder)
        assert (finding.level, finding.subject) == (level, "broken.gguf")
        assert "truncated download" in finding.text


def test_file_of_another_model_is_counted_in_a_folder_and_bad_if_named(tmp_path: Path) -> None:
    file = tmp_path / "other.safetensors"
    save_file({"some.weight": torch.zeros(2)}, file)
    _, (counted,) = find_models([], folder=tmp_path)
    assert counted == ok("other files", "1 for other models, not used")
    _, (named,) = find_models([file], folder=None)
    assert (named.level, named.subject) == ("bad", "other.safetensors")
    assert "no option takes it" in named.text


def test_shards_are_one_model(tmp_path: Path) -> None:
    for number, side in ((1, "A"), (2, "B")):
        tensors = {f"blocks.0.self_attn.q.lora_{side}.weight": torch.zeros(2, 2)}
        save_file(tensors, tmp_path / f"fast-0000{number}-of-00002.safetensors")
    stock, _ = find_models([], folder=tmp_path)
    assert stock[FileKind.LORA] == [tmp_path / "fast-00001-of-00002.safetensors"]


def test_linked_folders_are_searched_once(weights: Path, tmp_path: Path) -> None:
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "vae").symlink_to(weights / "vae")
    (tmp_path / "models" / "circle").symlink_to(tmp_path)
    stock, _ = find_models([], folder=tmp_path / "models")
    assert [path.name for path in stock[FileKind.VAE]] == ["wan_vae_tiny.safetensors"]


def test_folder_that_is_not_there_is_bad(tmp_path: Path) -> None:
    _, (finding,) = find_models([], folder=tmp_path / "none")
    assert finding == bad("models", f"{tmp_path}/none is no folder", "give another with --models")


def test_memory_plan_of_the_base_is_given(weights: Path) -> None:
    stock, _ = find_models([], folder=weights)
    (plan,) = memory_plans(stock)
    assert plan.level == "ok"
    assert plan.subject == "memory for wan_tiny_i2v_Q8_0.gguf"
    assert "832x480, 81 frames, 3 passes need about" in plan.text


def test_files_that_do_not_fit_each_other_are_bad(weights: Path) -> None:
    stock, _ = find_models([], folder=weights)
    wrong = {**stock, FileKind.ADAPTER: stock[FileKind.BASE_I2V]}
    (plan,) = memory_plans(wrong)
    assert plan.is_bad
    assert "--adapter needs a MultiTalk or InfiniteTalk adapter" in plan.text


@without_card
def test_command_ends_with_0_if_all_is_there_and_1_if_not(
    weights: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))  # no nvidia-smi
    assert main(["doctor", "--models", str(weights)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert {line.split()[0] for line in lines} <= {"ok", "note"}
    assert lines[0].startswith("ok    Python: 3.")
    assert any(line.startswith("ok    ffmpeg: libavcodec") for line in lines)
    assert lines[-1].startswith("ok    disk: ")
    (tmp_path / "empty").mkdir()
    assert main(["doctor", "--models", str(tmp_path / "empty")]) == 1
    assert "\nbad   base: there is no" in capsys.readouterr().out
