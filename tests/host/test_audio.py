"""Every sound ComfyUI gives, from its file to the preview that shows what was heard of it.

The picture on MultiTalk Preview Speakers must be the one drawn here of the same recording.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from PIL import Image

from comfyui_multitalk.multitalk_core.geometry import Box, Size
from comfyui_multitalk.multitalk_core.inputs.masks import speaker_masks
from comfyui_multitalk.multitalk_core.inputs.timeline import Mode, arrange
from comfyui_multitalk.multitalk_core.inputs.voices import Recording, prepare_voice
from comfyui_multitalk.nodes.drawing.speakers import Lane, draw_speakers
from comfyui_multitalk.tests.host import graphs, sounds
from comfyui_multitalk.tests.support.comfyui import failure

if TYPE_CHECKING:
    from comfyui_multitalk.tests.support.comfyui import Server

pytestmark = pytest.mark.host

Picture = npt.NDArray[np.uint8]
Samples = tuple[npt.NDArray[np.float32], int]
ONE, TWO = "portrait.png", "pair.png"


@pytest.fixture(scope="module")
def noisy(server: Server) -> Server:
    """Give the server with every kind of recording in its input folder."""
    sounds.add_sounds(server.base / "input")
    return server


def listen(*files: str, mode: Mode = "together", starts: Sequence[float] = ()) -> graphs.Graph:
    """Give a graph that hears files and shows who is where, without the sampler."""
    graph: graphs.Graph = {
        "ears": {
            "class_type": "MTK_LoadWav2Vec2",
            "inputs": {"wav2vec2": "wav2vec2-chinese-base_fp16.safetensors"},
        },
        "photo": {"class_type": "LoadImage", "inputs": {"image": (ONE, TWO)[len(files) - 1]}},
        "embeds": {
            "class_type": "MTK_AudioEmbeds",
            "inputs": {"wav2vec2": ["ears", 0], "mode": mode},
        },
        "preview": {
            "class_type": "MTK_PreviewSpeakers",
            "inputs": {"image": ["photo", 0], "audio_embeds": ["embeds", 0]},
        },
    }
    for number, file in enumerate(files):
        graph[f"load{number}"] = {"class_type": "LoadAudio", "inputs": {"audio": file}}
        speaker = {"audio": [f"load{number}", 0], "left": 0, "top": 0, "right": 0, "bottom": 0}
        speaker["start"] = (*starts, 0.0, 0.0)[number]
        graph[f"speaker{number}"] = {"class_type": "MTK_Speaker", "inputs": speaker}
        graph["embeds"]["inputs"][f"speakers.speaker{number}"] = [f"speaker{number}", 0]
    return graph


def put_between(graph: graphs.Graph, kind: str, **inputs: Any) -> None:
    """Put a node of ComfyUI between the first file and its speaker."""
    graph["between"] = {"class_type": kind, "inputs": {"audio": ["load0", 0], **inputs}}
    graph["speaker0"]["inputs"]["audio"] = ["between", 0]


def shown(server: Server, history: dict[str, Any], node: str = "preview") -> Picture:
    """Give the picture that a node shows, from ComfyUI's temp folder."""
    assert history["status"]["status_str"] == "success", history["status"]
    (entry,) = history["outputs"][node]["images"]
    assert entry["type"] == "temp"
    with Image.open(server.base / "temp" / entry["subfolder"] / entry["filename"]) as image:
        return np.asarray(image)


def drawn(
    *recordings: Samples,
    mode: Mode = "together",
    starts: Sequence[float] = (0.0, 0.0),
    regions: Sequence[Box | None] = (None, None),
) -> Picture:
    """Draw what the preview of these recordings must show."""
    voices = [
        prepare_voice(Recording(torch.from_numpy(waveform), rate, "Voice"))
        for waveform, rate in recordings
    ]
    timeline = arrange(voices, mode=mode, starts=starts[: len(voices)])
    with Image.open(graphs.ROOT / "workflows" / "inputs" / (ONE, TWO)[len(voices) - 1]) as image:
        photo = torch.from_numpy(np.array(image.convert("RGB")))
    masks = speaker_masks(regions[: len(voices)], photo=Size(*photo.shape[:2]))
    spans = zip(timeline.tracks, timeline.starts, timeline.stops, strict=True)
    return draw_speakers(
        photo,
        masks=masks[:-1],
        lanes=[Lane(track, start / 16000, stop / 16000) for track, start, stop in spans],
        sample_rate=16000,
        seconds=timeline.num_frames / 25,
    ).numpy()


def difference(first: Picture, second: Picture) -> float:
    """Give the mean difference of pictures of one size, in steps of 256."""
    assert first.shape == second.shape
    return float(np.abs(first.astype(int) - second).mean())


def recording(server: Server, name: str) -> Samples:
    return sounds.read(server.base / "input" / name)


@pytest.mark.parametrize(
    ("file", "same_as"),
    [
        ("mono_48k.wav", "mono_48k.wav"),
        ("left_48k.wav", "mono_48k.wav"),
        ("right_48k.wav", "mono_48k.wav"),
        ("surround.wav", "mono_48k.wav"),
        ("stereo_44k.wav", "stereo_44k.wav"),
        ("stereo_44k.flac", "stereo_44k.wav"),
        ("studio_96k.wav", "studio_96k.wav"),
        ("odd_rate.wav", "odd_rate.wav"),
        ("silence.wav", "silence.wav"),
        ("long.wav", "long.wav"),
    ],
)
def test_voice_of_any_file_is_heard_whole(noisy: Server, file: str, same_as: str) -> None:
    picture = shown(noisy, noisy.run(listen(file)))
    assert difference(picture, drawn(recording(noisy, same_as))) < 0.01


def test_mp3_is_heard_but_for_its_padding(noisy: Server) -> None:
    picture = shown(noisy, noisy.run(listen("stereo_44k.mp3")))
    assert difference(picture, drawn(recording(noisy, "stereo_44k.wav"))) < 2


def test_trimmed_voice_is_heard_from_its_new_start(noisy: Server) -> None:
    graph = listen("left_48k.wav")
    put_between(graph, "TrimAudioDuration", start_index=0.5, duration=0.6)
    picture = shown(noisy, noisy.run(graph))
    waveform, rate = recording(noisy, "left_48k.wav")
    part = np.ascontiguousarray(waveform[:, round(0.5 * rate) : round(1.1 * rate)])
    assert difference(picture, drawn((part, rate))) < 0.01
    assert difference(picture, drawn((waveform, rate))) > 1


def test_two_voices_of_unlike_files_take_turns_after_their_pauses(noisy: Server) -> None:
    files = ("left_48k.wav", "stereo_44k.flac")
    graph = listen(*files, mode="in_turn", starts=(0.2, 0.4))
    picture = shown(noisy, noisy.run(graph))
    voices = recording(noisy, files[0]), recording(noisy, "stereo_44k.wav")
    assert difference(picture, drawn(*voices, mode="in_turn", starts=(0.2, 0.4))) < 0.01
    assert difference(picture, drawn(*voices, mode="in_turn")) > 0.3


def test_boxes_are_drawn_where_they_are(noisy: Server) -> None:
    graph = listen("mono_48k.wav", "mono_48k.wav")
    boxes = Box(400, 50, 600, 400), Box(20, 100, 300, 500)
    for number, box in enumerate(boxes):
        graph[f"speaker{number}"]["inputs"].update(box._asdict())
    picture = shown(noisy, noisy.run(graph))
    voice = recording(noisy, "mono_48k.wav")
    assert difference(picture, drawn(voice, voice, regions=boxes)) < 0.01


def test_preview_shows_a_bad_box_before_the_sampler(noisy: Server) -> None:
    graph = listen("mono_48k.wav", "mono_48k.wav")
    for number in range(2):
        graph[f"speaker{number}"]["inputs"].update(right=9000, bottom=100)
    error = failure(noisy.run(graph))
    assert error["node_type"] == "MTK_PreviewSpeakers"
    assert "does not lie in the photo of 768x512" in error["exception_message"]


def no_sound_track(graph: graphs.Graph) -> None:
    graph["film"] = {"class_type": "CreateVideo", "inputs": {"images": ["photo", 0], "fps": 25}}
    graph["parts"] = {"class_type": "GetVideoComponents", "inputs": {"video": ["film", 0]}}
    graph["speaker0"]["inputs"]["audio"] = ["parts", 1]


def empty(graph: graphs.Graph) -> None:
    inputs = {"duration": 0.0, "sample_rate": 48000, "channels": 2}
    graph["load0"] = {"class_type": "EmptyAudio", "inputs": inputs}


BAD = {
    "trimmed too short": (
        lambda graph: put_between(graph, "TrimAudioDuration", start_index=1.2, duration=9.0),
        "The voice lasts 0.30 s",
    ),
    "empty": (empty, "The voice is empty"),
    "video without sound": (no_sound_track, "gives no sound"),
    "opposite channels": (
        lambda graph: graph["load0"]["inputs"].update(audio="opposite.wav"),
        "2 channels that cancel each other",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_voice_fails_on_its_speaker(noisy: Server, name: str) -> None:
    change, message = BAD[name]
    graph = listen("mono_48k.wav")
    change(graph)
    error = failure(noisy.run(graph))
    assert error["node_type"] == "MTK_Speaker"
    assert message in error["exception_message"]
    assert "\n" not in error["exception_message"].strip()


def test_picture_as_voice_is_rejected(noisy: Server) -> None:
    graph = listen("mono_48k.wav")
    graph["speaker0"]["inputs"]["audio"] = ["photo", 0]
    status, answer = noisy.post("/prompt", {"prompt": graph})
    assert status == 400
    assert answer["node_errors"]["speaker0"]["errors"][0]["type"] == "return_type_mismatch"


def test_preview_leaves_nothing_but_its_picture_in_temp(noisy: Server) -> None:
    def files(folder: str) -> set[Path]:
        return set((noisy.base / folder).rglob("*"))

    before = {folder: files(folder) for folder in ("temp", "output", "input")}
    noisy.run(listen("mono_48k.wav", starts=(0.8,)))
    assert len(files("temp") - before["temp"]) == 1
    assert files("output") == before["output"]
    assert files("input") == before["input"]
