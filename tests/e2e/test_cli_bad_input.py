"""Bad input to the `multitalk` command: one clear line, exit code 2, nothing half-written."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from comfyui_multitalk.standalone.cli import main
from comfyui_multitalk.tests.support.command import arguments, play, tone, write_voice
from comfyui_multitalk.wan_gguf_loader.files import open_weights

if TYPE_CHECKING:
    from comfyui_multitalk.dev.make_tiny import TinySet

Damage = Callable[["TinySet", Path], Path]


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    path = tmp_path / "photo.png"
    Image.effect_noise((64, 64), 60).convert("RGB").save(path)
    return path


@pytest.fixture
def voice(tmp_path: Path) -> Path:
    return write_voice(tmp_path / "voice.wav", tone(0.5))


@pytest.fixture
def videos(tmp_path: Path) -> Path:
    folder = tmp_path / "videos"
    folder.mkdir()
    return folder


@pytest.fixture
def refused(videos: Path, capsys: pytest.CaptureFixture[str]) -> Callable[[list[str]], str]:
    """Run a command that must fail; give its one line."""

    def run(line: list[str]) -> str:
        assert main([*line, "--output", str(videos / "out.mp4")]) == 2
        said = capsys.readouterr()
        assert said.out == ""
        assert said.err.count("\n") == 1
        assert said.err.startswith("multitalk: error: ")
        assert not list(videos.iterdir())
        return said.err

    return run


def _tensors(path: Path) -> dict[str, Tensor]:
    with safe_open(path, framework="pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118


def _t2v_base(tiny: TinySet, folder: Path) -> Path:
    """Give a base as text-to-video has it: 16 channels in, and nothing that sees a picture."""
    with open_weights(tiny.base) as file:
        tensors = {
            name: torch.zeros(shape, dtype=torch.bfloat16)
            for name, shape in file.shapes.items()
            if not name.startswith("img_emb") and "_img" not in name
        }
    patch = tensors["patch_embedding.weight"]
    tensors["patch_embedding.weight"] = patch[:, :16].clone()
    save_file(tensors, folder / "t2v.safetensors")
    return folder / "t2v.safetensors"


def _narrow_adapter(tiny: TinySet, folder: Path) -> Path:
    tensors = _tensors(tiny.adapter)
    for name, tensor in tensors.items():
        if "audio_cross_attn" in name:
            cut = [slice(side // 2) if side in (256, 512) else slice(None) for side in tensor.shape]
            tensors[name] = tensor[tuple(cut)].clone()
    save_file(tensors, folder / "narrow.safetensors")
    return folder / "narrow.safetensors"


def _shallow_wav2vec2(tiny: TinySet, folder: Path) -> Path:
    """Drop the last of the twelve layers."""
    tensors = _tensors(tiny.wav2vec2)
    kept = {name: tensor for name, tensor in tensors.items() if ".layers.11." not in name}
    assert len(kept) < len(tensors)
    save_file(kept, folder / "shallow.safetensors", metadata={"num_heads": "4"})
    return folder / "shallow.safetensors"


def _truncated(tiny: TinySet, folder: Path) -> Path:
    content = tiny.base.read_bytes()
    (folder / "cut.gguf").write_bytes(content[: len(content) * 2 // 3])
    return folder / "cut.gguf"


def _text(content: str) -> Damage:
    def write(tiny: TinySet, folder: Path) -> Path:
        (folder / "base.gguf").write_text(content)
        return folder / "base.gguf"

    return write


_LFS = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a2146\nsize 11341184384\n"

WRONG_FILES: dict[str, tuple[str, Damage, tuple[str, ...]]] = {
    "t2v base": ("base", _t2v_base, ("t2v.safetensors is a Wan2.1 or Wan2.2 text-to-video base",)),
    "adapter as base": ("base", lambda tiny, _: tiny.adapter, ("adapter", "--base needs", "I2V")),
    "lora as base": ("base", lambda tiny, _: tiny.lora, ("is a LoRA; --base needs",)),
    "vae as base": ("base", lambda tiny, _: tiny.vae, ("is a Wan2.1 video VAE; --base needs",)),
    "truncated base": ("base", _truncated, ("cut.gguf", "truncated")),
    "lfs pointer": ("base", _text(_LFS), ("base.gguf", "git-lfs pointer")),
    "web page": ("base", _text("<!DOCTYPE html><html>404"), ("base.gguf", "web page")),
    "missing base": ("base", lambda _, folder: folder / "no.gguf", ("no.gguf", "no such file")),
    "base as adapter": ("adapter", lambda tiny, _: tiny.base, ("--adapter needs",)),
    "lora as adapter": ("adapter", lambda tiny, _: tiny.lora, ("is a LoRA; --adapter needs",)),
    "narrow adapter": (
        "adapter", _narrow_adapter, ("narrow.safetensors", "width 128", "base has", "width 256"),
    ),
    "adapter as lora": ("lora", lambda tiny, _: tiny.adapter, ("--lora needs a LoRA",)),
    "shallow wav2vec2": (
        "wav2vec", _shallow_wav2vec2,
        ("shallow.safetensors gives 11 layers of width 32", "multitalk_tiny", "12 layers of"),
    ),
    "clip as wav2vec2": ("wav2vec", lambda tiny, _: tiny.clip_vision, ("--wav2vec needs",)),
    "text encoder as vae": ("vae", lambda tiny, _: tiny.text_encoder, ("--vae needs",)),
    "vae as text encoder": ("text_encoder", lambda tiny, _: tiny.vae, ("--text-encoder needs",)),
    "wav2vec2 as clip": ("clip_vision", lambda tiny, _: tiny.wav2vec2, ("--clip-vision needs",)),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG_FILES)
def test_generate_wrong_weights_file_is_named(
    tmp_path: Path, tiny: TinySet, photo: Path, voice: Path, case: str,
    refused: Callable[[list[str]], str],
) -> None:  # fmt: skip
    option, damage, says = WRONG_FILES[case]
    line = arguments(tiny, image=photo, audio=voice, **{option: damage(tiny, tmp_path)})
    said = refused(line)
    assert all(words in said for words in says), said


def test_generate_without_adapter_asks_for_it(
    tiny: TinySet, photo: Path, voice: Path, refused: Callable[[list[str]], str]
) -> None:
    said = refused(arguments(tiny, image=photo, audio=voice, adapter=None))
    assert "no audio layers" in said
    assert "--adapter" in said


@pytest.mark.parametrize(
    ("waveform", "says"),
    [
        (tone(0.39), "at least 0.4 s"),
        (torch.full((1, 16_000), torch.nan), "NaN"),
    ],
    ids=["under 0.4 s", "NaN"],
)
def test_generate_impossible_voice_is_named(
    tmp_path: Path, tiny: TinySet, photo: Path, waveform: Tensor, says: str,
    refused: Callable[[list[str]], str],
) -> None:  # fmt: skip
    bad = write_voice(tmp_path / "bad.wav", waveform)
    said = refused(arguments(tiny, image=photo, audio=bad))
    assert "bad.wav" in said
    assert says in said


WRONG_OPTIONS: dict[str, tuple[dict[str, str | None], tuple[str, ...], str]] = {
    "int8 in float32": ({}, ["--precision", "int8"], "it needs bfloat16"),
    "flash without a card": ({}, ("--attention", "flash"), "does not work on cpu in float32"),
    "zero speakers": ({"audio": None}, (), "no voice"),
    "three speakers": ({}, ("--audio", "VOICE", "--audio", "VOICE"), "There are 3 voices"),
    "mask empty on the token grid": (
        {}, ("--audio", "VOICE", "--box", "9,9,10,10", "--box", "32,0,64,64"), "Speaker 1",
    ),
    "box outside": (
        {}, ("--audio", "VOICE", "--box", "0,0,9,9", "--box", "32,0,65,64"),
        "does not lie in the photo of 64x64",
    ),
    "two masks for one voice": ({}, ("--box", "0,0,9,9", "--box", "0,0,9,9"), "2 masks and boxes"),
    "one box for two voices": (
        {}, ("--audio", "VOICE", "--box", "0,0,32,64"), "Speaker 2 has neither mask nor box",
    ),
    "no box": ({}, ("--box", "1,2,3"), "'1,2,3' is no box"),
    "size beyond limits": ({"size": "100000x100000"}, (), "at most 4096 pixels a side"),
    "longest side beyond limits": ({"size": "100000"}, (), "at most 4096 pixels a side"),
    "start beyond limits": ({"start": "36000"}, (), "Speaker 1 starts at 36000.0 s"),
    "start is no number": ({"start": "nan"}, (), "Speaker 1 starts at nan s"),
    "no size": ({"size": "0x5"}, (), "'0x5' is no size"),
    "negative start": ({"start": "-1"}, (), "-1"),
    "no steps": ({"steps": "0"}, (), "`steps` is 0"),
    "odd segment": ({"segment_frames": "10"}, (), "`segment_frames` is 10"),
    "cache above one": ({"step_cache": "2"}, (), "`step_cache` is 2.0"),
    "empty part": ({"text_guidance_end": "0"}, (), "`text_guidance_end` is 0.0; the end must be"),
    "unknown option": ({}, ("--colour", "red"), "--colour"),
    "unknown device": ({"device": "abacus"}, (), "'abacus' cannot be used"),
    "no photo": ({"image": "no.png"}, (), "no photo file no.png"),
    "photo is no picture": ({"image": "VOICE"}, (), "is no picture"),
    "voice is no sound": ({"audio": "PHOTO"}, (), "no sound"),
    "lora strength": ({"lora": "x.safetensors:nan"}, (), "is no LoRA"),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG_OPTIONS)
def test_generate_impossible_option_is_named(
    tiny: TinySet, photo: Path, voice: Path, case: str, refused: Callable[[list[str]], str]
) -> None:
    replaced, extra, says = WRONG_OPTIONS[case]
    paths = {"VOICE": str(voice), "PHOTO": str(photo)}
    options = {"image": photo, "audio": voice, **replaced}
    options = {name: paths.get(str(value), value) for name, value in options.items()}
    said = refused(arguments(tiny, *(paths.get(word, word) for word in extra), **options))
    assert says in said, said


@pytest.mark.parametrize(
    ("output", "says"),
    [
        ("none/out.mp4", "no folder"),
        ("out.gif", "must end in '.mp4'"),
        ("n" * 252 + ".mp4", "of 256 bytes"),
        ("n" * 300 + "/out.mp4", "no folder"),
    ],
    ids=["no folder", "no mp4", "name too long", "folder too long"],
)
def test_generate_impossible_output_is_refused_at_once(
    tmp_path: Path, tiny: TinySet, output: str, says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    line = arguments(tiny, image="no.png", audio="no.wav", output=tmp_path / output)
    assert main(line) == 2
    assert says in capsys.readouterr().err


def test_generate_silent_voice_and_photo_with_alpha_work_and_odd_size_is_said(
    tmp_path: Path, tiny: TinySet, videos: Path, caplog: pytest.LogCaptureFixture
) -> None:
    silent = write_voice(tmp_path / "silent.wav", torch.zeros(1, 8000))
    Image.new("RGBA", (50, 40), (200, 100, 50, 128)).save(tmp_path / "alpha.png")
    line = arguments(
        tiny, image=tmp_path / "alpha.png", audio=silent, output=videos / "out.mp4", size="50x39"
    )
    assert main(line) == 0
    assert "50x39 pixels is no multiple of 16; the video is 48x32." in caplog.text
    played = play(videos / "out.mp4")
    assert {frame.shape for frame in played.frames} == {(32, 48, 3)}
    assert len(played.frames) == 13


def test_generate_overlapping_masks_warn_and_grey_photo_works(
    tmp_path: Path, tiny: TinySet, voice: Path, videos: Path, caplog: pytest.LogCaptureFixture
) -> None:
    Image.new("L", (64, 64), 90).save(tmp_path / "grey.png")
    mask = Image.new("L", (64, 64), 0)
    mask.paste(255, (32, 0, 64, 64))
    mask.save(tmp_path / "mask.png")
    line = arguments(
        tiny, "--audio", str(voice), "--box", "0,0,36,64", "--mask", str(tmp_path / "mask.png"),
        image=tmp_path / "grey.png", audio=voice, output=videos / "out.mp4",
    )  # fmt: skip
    assert main(line) == 0
    warnings = [record for record in caplog.records if record.levelno == logging.WARNING]
    assert [record.getMessage()[:26] for record in warnings] == ["11.1 % of speaker 1's mask"]
    assert [path.name for path in videos.iterdir()] == ["out.mp4"]


_LIMITED = """
import resource, sys
from comfyui_multitalk.standalone.cli import main
resource.setrlimit(resource.RLIMIT_FSIZE, (4000, 4000))
sys.exit(main(sys.argv[1:]))
"""


def test_generate_on_a_full_disk_says_so_and_leaves_nothing(
    tmp_path: Path, tiny: TinySet, photo: Path, voice: Path, videos: Path, repository: Path
) -> None:
    package = tmp_path / "package"
    package.mkdir()
    (package / "comfyui_multitalk").symlink_to(repository)
    line = arguments(tiny, image=photo, audio=voice, output=videos / "out.mp4")
    done = subprocess.run(
        [sys.executable, "-c", _LIMITED, *line],
        env={**os.environ, "PYTHONPATH": str(package), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert "multitalk: error: The disk is full" in done.stderr
    assert "Traceback" not in done.stderr
    assert not list(videos.iterdir())


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (_truncated, "truncated"),
        (_text(_LFS), "git-lfs pointer"),
        (_text("<html>"), "web page"),
        (lambda _, folder: folder / "no.gguf", "no such file"),
        (lambda _, folder: folder, "this folder holds no model"),
    ],
    ids=["truncated", "lfs pointer", "web page", "missing", "folder"],
)
def test_inspect_damaged_file_is_named(
    tmp_path: Path, tiny: TinySet, damage: Damage, says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = damage(tiny, tmp_path)
    assert main(["inspect", str(path)]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.count("\n") == 1
    assert path.name in said.err
    assert says in said.err


def test_inspect_file_of_no_known_kind_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save_file({"layer.weight": torch.zeros(2, 2)}, tmp_path / "other.safetensors")
    assert main(["inspect", str(tmp_path / "other.safetensors")]) == 2
    assert "other.safetensors is a file of no known kind" in capsys.readouterr().err
