"""The `multitalk` command end to end on the tiny set: what it writes, says and leaves behind.

The tiny set is untrained, so the picture is noise: frames, sizes, times and sound are what counts.
"""

from __future__ import annotations

import functools
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from PIL import Image

from comfyui_multitalk.standalone.cli import main
from comfyui_multitalk.tests.support.command import arguments, play, tone, write_voice

if TYPE_CHECKING:
    from comfyui_multitalk.dev.make_tiny import TinySet


@pytest.fixture(scope="module")
def portrait(repository: Path) -> Path:
    return repository / "workflows" / "inputs" / "portrait.png"


@pytest.fixture
def voice(tmp_path: Path) -> Path:
    return write_voice(tmp_path / "voice.wav", tone(0.5))


def _summary(capsys: pytest.CaptureFixture[str]) -> dict[str, object]:
    summary: dict[str, object] = json.loads(capsys.readouterr().out)
    return summary


def test_generate_one_speaker_writes_a_video_as_long_as_the_voice(
    tmp_path: Path, tiny: TinySet, repository: Path, portrait: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    """The drawn portrait and the espeak-ng voice, in several segments."""
    path = tmp_path / "out.mp4"
    voice = repository / "workflows" / "inputs" / "voice.wav"
    line = arguments(
        tiny, "--json", image=portrait, audio=voice, output=path, size="48x32",
        segment_frames="33", motion_frames="5", lora=f"{tiny.lora}:0.5",
    )  # fmt: skip
    assert main(line) == 0
    summary, played = _summary(capsys), play(path)
    seconds = len(played.frames) / 25
    assert played.fps == 25
    assert played.codecs == ("h264", "yuv420p", "aac")
    assert {frame.shape for frame in played.frames} == {(32, 48, 3)}
    assert played.picture_seconds == pytest.approx(seconds)
    assert played.sound_seconds == pytest.approx(seconds, abs=1.5 / played.sample_rate)
    assert abs(played.sound.shape[1] - seconds * played.sample_rate) <= 1024
    assert np.abs(played.sound).max() > 0.05
    expected = {"frames": len(played.frames), "fps": 25, "seconds": seconds, "seed": 42}
    assert expected.items() <= summary.items()
    assert (summary["width"], summary["height"]) == (48, 32)
    (report,) = summary["loras"]
    assert re.match(r"\S+: \d+ layers at strength 0\.5 \(LoRA of rank \d+: \d+\)$", report)
    assert set(summary["timings"]) == {"read", "listen", "encode_text", "load", "sample"}
    assert summary["peak_memory_bytes"] > 1e8


def _two_speakers(tmp_path: Path, tiny: TinySet, repository: Path, *extra: str) -> list[str]:
    voices = [write_voice(tmp_path / f"{n}.wav", tone(n, pitch=200 * n)) for n in (0.5, 0.7)]
    listed = [word for voice in voices for word in ("--audio", str(voice))]
    return arguments(
        tiny, *listed, *extra, "--json",
        image=repository / "workflows" / "inputs" / "pair.png",
        output=tmp_path / "out.mp4", size="64x48",
    )  # fmt: skip


@pytest.mark.parametrize(
    ("mode", "starts", "frames"),
    [("together", (), 18), ("in_turn", (), 30), ("in_turn", ("0", "0.2"), 35)],
)
def test_generate_two_speakers_lasts_as_long_as_their_timeline(
    tmp_path: Path, tiny: TinySet, repository: Path, mode: str, starts: tuple[str, ...],
    frames: int, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    with Image.open(repository / "workflows" / "inputs" / "pair.png") as image:
        width, height = image.size
    boxes = f"0,0,{width // 2},{height}", f"{width // 2},0,{width},{height}"
    extra = [word for box in boxes for word in ("--box", box)]
    extra += [word for start in starts for word in ("--start", start)]
    assert main(_two_speakers(tmp_path, tiny, repository, "--mode", mode, *extra)) == 0
    assert _summary(capsys)["frames"] == frames
    played = play(tmp_path / "out.mp4")
    assert len(played.frames) == frames
    assert played.sound_seconds == pytest.approx(frames / 25, abs=1.5 / played.sample_rate)


def test_generate_follows_seed_and_lora(
    tmp_path: Path, tiny: TinySet, portrait: Path, voice: Path
) -> None:
    for name, seed, lora in (
        ("a.mp4", "1", None), ("b.mp4", "1", None), ("seed.mp4", "2", None),
        ("lora.mp4", "1", f"{tiny.lora}:4"), ("no_lora.mp4", "1", f"{tiny.lora}:0"),
    ):  # fmt: skip
        line = arguments(
            tiny, image=portrait, audio=voice, output=tmp_path / name, seed=seed, lora=lora
        )
        assert main(line) == 0
    videos = {path.stem: play(path).frames for path in tmp_path.glob("*.mp4")}
    assert np.array_equal(videos["a"], videos["b"])
    assert np.array_equal(videos["a"], videos["no_lora"])
    assert not np.array_equal(videos["a"], videos["seed"])
    assert not np.array_equal(videos["a"], videos["lora"])


def test_generate_infinitetalk_with_all_guidance_runs(
    tmp_path: Path, tiny: TinySet, portrait: Path, voice: Path
) -> None:
    line = arguments(
        tiny, image=portrait, audio=voice, output=tmp_path / "out.mp4", method="infinitetalk",
        preset="quality", steps="2", dtype="bfloat16",
    )  # fmt: skip
    assert main(line) == 0
    assert len(play(tmp_path / "out.mp4").frames) == 13


def test_generate_flashtalk_runs_and_takes_one_voice(
    tmp_path: Path, tiny: TinySet, portrait: Path, voice: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = arguments(
        tiny, image=portrait, audio=voice, output=tmp_path / "out.mp4", method="flashtalk",
        preset=None, steps="2",
    )  # fmt: skip
    assert main(line) == 0
    assert len(play(tmp_path / "out.mp4").frames) == 13
    assert main([*line, "--audio", str(voice)]) == 2
    assert "FlashTalk animates one speaker, and there are 2 voices" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("sent", "code", "message"),
    [
        (signal.SIGINT, 130, "interrupted; no video was written"),
        (signal.SIGTERM, 143, "terminated; no video was written"),
    ],
    ids=["ctrl_c", "sigterm"],
)
def test_generate_stopped_leaves_nothing_and_says_so(
    tmp_path: Path, tiny: TinySet, repository: Path, portrait: Path,
    sent: signal.Signals, code: int, message: str,
) -> None:  # fmt: skip
    """Ctrl-C, or a container's end, in the middle of sampling, with frames in the file."""
    package = tmp_path / "package"
    package.mkdir()
    (package / "comfyui_multitalk").symlink_to(repository)
    videos = tmp_path / "videos"
    videos.mkdir()
    older = videos / "out.mp4"
    older.write_bytes(b"older")
    voice = write_voice(tmp_path / "voice.wav", tone(20))
    line = arguments(tiny, image=portrait, audio=voice, output=older)
    line.remove("--quiet")
    with subprocess.Popen(
        [sys.executable, "-m", "comfyui_multitalk.standalone.cli", *line],
        env={**os.environ, "PYTHONPATH": str(package), "OMP_NUM_THREADS": "1"},
        stderr=subprocess.PIPE,
        text=True,
        # Tests started in the background ignore Ctrl-C, and would pass that on.
        preexec_fn=functools.partial(signal.signal, signal.SIGINT, signal.SIG_DFL),
    ) as process:
        try:
            assert process.stderr is not None
            said = ""
            deadline = time.monotonic() + 120
            while "segment 3/" not in said and time.monotonic() < deadline:
                said += process.stderr.read(1)
            assert len(list(videos.iterdir())) == 2
            process.send_signal(sent)
            _, rest = process.communicate(timeout=60)
        finally:
            process.kill()
    assert process.returncode == code
    assert message in rest
    assert "Traceback" not in rest
    assert list(videos.iterdir()) == [older]
    assert older.read_bytes() == b"older"


_KINDS = {
    "base": ("base_i2v", "gguf", {"Q4_K", "Q6_K", "F32", "F16"}),
    "adapter": ("adapter", "safetensors", {"BF16"}),
    "lora": ("lora", "safetensors", {"BF16"}),
    "vae": ("vae", "safetensors", {"BF16"}),
    "text_encoder": ("umt5", "safetensors", {"F16", "U8"}),
    "clip_vision": ("clip_vision", "safetensors", {"F16"}),
    "wav2vec2": ("wav2vec2", "safetensors", {"F16"}),
}


@pytest.mark.parametrize("name", _KINDS)
def test_inspect_says_what_a_file_is(
    tiny: TinySet, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path: Path = getattr(tiny, name)
    assert main(["inspect", str(path), "--json"]) == 0
    said = _summary(capsys)
    kind, file_format, types = _KINDS[name]
    assert (said["kind"], said["format"]) == (kind, file_format)
    assert types <= set(said["types"])
    assert sum(said["types"].values()) == said["tensors"]
    assert 0.8 * path.stat().st_size < said["bytes"] < path.stat().st_size
    assert main(["inspect", str(path)]) == 0
    text = capsys.readouterr().out
    assert f"{said['parameters']:,}" in text
    assert said["description"] in text


def test_help_needs_no_heavy_import(repository: Path, tmp_path: Path) -> None:
    (tmp_path / "comfyui_multitalk").symlink_to(repository)
    code = (
        "import sys\nfrom comfyui_multitalk.standalone import cli\n"
        "sys.exit(', '.join({'diffusers', 'transformers', 'av'} & set(sys.modules)) or 0)"
    )
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, check=False, capture_output=True, text=True
    )
    assert (done.stderr.strip(), done.returncode) == ("", 0)
