"""The demo: pictures that are what their code draws, a strip that tells lips from noise."""

from __future__ import annotations

import shlex
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from comfyui_multitalk.dev.demo_strip import curves, main
from comfyui_multitalk.dev.draw_cartoons import PAIR, PORTRAIT, Cartoon
from comfyui_multitalk.dev.tiny.files import TrainedSet
from comfyui_multitalk.dev.train_tiny.articulation import articulation
from comfyui_multitalk.dev.train_tiny.drawing import render
from comfyui_multitalk.dev.train_tiny.mouth import correlation
from comfyui_multitalk.multitalk_core.config import FPS
from comfyui_multitalk.multitalk_core.geometry import Size
from comfyui_multitalk.multitalk_core.inputs.timeline import Sound
from comfyui_multitalk.multitalk_core.inputs.voices import Recording, prepare_voice
from comfyui_multitalk.standalone.arguments import build_request, parse
from comfyui_multitalk.standalone.media import read_voice
from comfyui_multitalk.standalone.video import VideoWriter

NUM_FRAMES = 50


@pytest.fixture(scope="module")
def voice(repository: Path) -> Recording:
    """Give the first two seconds of the demo's voice."""
    whole = read_voice(repository / "workflows" / "inputs" / "tiny_voice.wav")
    length = NUM_FRAMES * whole.sample_rate // FPS
    return whole._replace(waveform=whole.waveform[:, :length])


@pytest.fixture(scope="module")
def talking(voice: Recording) -> Tensor:
    """Give the portrait drawn saying it, `(T, 128, 128, 3)` uint8."""
    heard = prepare_voice(voice)
    curve = torch.from_numpy(articulation(heard.numpy(), NUM_FRAMES))
    faces, still = PORTRAIT.look()
    motion = replace(
        still,
        articulation=curve[None, None],
        pose=still.pose.expand(-1, -1, NUM_FRAMES, -1),
        blink=still.blink.expand(-1, -1, NUM_FRAMES),
    )
    frames = render(faces, motion, size=(128, 128))[0]
    return ((frames + 1) * 127.5).round().to(torch.uint8).permute(1, 2, 3, 0)


@pytest.mark.parametrize("cartoon", [PORTRAIT, PAIR], ids=lambda cartoon: cartoon.name)
def test_cartoon_file_is_what_the_code_draws(repository: Path, cartoon: Cartoon) -> None:
    with Image.open(repository / "workflows" / "inputs" / cartoon.name) as picture:
        stored = np.asarray(picture).astype(int)
    assert np.abs(stored - np.asarray(cartoon.draw())).max() <= 1


def test_demo_names_what_the_portrait_shows_and_takes_the_trained_set(repository: Path) -> None:
    script = (repository / "scripts" / "demo").read_text(encoding="utf-8").replace("\\\n", " ")
    folder = repository / "models" / "tiny"
    (line,) = [line for line in script.splitlines() if "/multitalk" in line]
    request = build_request(parse(shlex.split(line.replace("$tiny", str(folder)))[1:]))
    assert request.prompt == PORTRAIT.prompt
    assert request.image == Path("workflows/inputs") / PORTRAIT.name
    assert request.sampling.steps <= 8
    files = request.files
    used = (files.base, files.adapter, files.wav2vec2, files.vae)
    assert {*used, files.text_encoder, files.clip_vision} == set(TrainedSet(folder).files)
    assert all(file.is_file() for file in TrainedSet(folder).files)


def test_curves_of_a_drawn_speaker_agree(talking: Tensor, voice: Recording) -> None:
    wanted, seen = curves(talking, voice)
    assert wanted.shape == seen.shape == (NUM_FRAMES,)
    assert correlation(wanted, seen) > 0.99
    assert 0.7 < seen.max() <= 1


def test_curves_of_a_speaker_who_says_it_backwards_do_not(
    talking: Tensor, voice: Recording
) -> None:
    assert correlation(*curves(talking.flip(0), voice)) < 0.6


def test_strip_and_preview_are_written(
    talking: Tensor, voice: Recording, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    video, strip, preview = (tmp_path / name for name in ("a.mp4", "a.png", "a.gif"))
    sound = Sound(voice.waveform[None], voice.sample_rate)
    with VideoWriter(video, size=Size(128, 128), sound=sound) as writer:
        writer.write((talking.float() / 127.5 - 1).permute(3, 0, 1, 2))
    assert main([str(video), str(strip), str(preview)]) == 0
    figure = float(capsys.readouterr().out.rpartition("r = ")[2])
    assert figure > 0.97
    with Image.open(strip) as picture, Image.open(preview) as moving:
        assert picture.width == 1280
        assert moving.n_frames == NUM_FRAMES // 2
        assert moving.size == (192, 192)


def test_strip_without_a_video_tells_how(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["one.mp4"]) == 2
    assert "usage: demo_strip VIDEO" in capsys.readouterr().err
