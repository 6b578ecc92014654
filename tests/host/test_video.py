"""The sampler's video through ComfyUI's own nodes: every codec, its parts, and the strip of it."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import av
import numpy as np
import numpy.typing as npt
import pytest
import torch
from PIL import Image

from comfyui_multitalk.nodes.drawing.strip import draw_strip
from comfyui_multitalk.tests.host import graphs, sounds

if TYPE_CHECKING:
    from comfyui_multitalk.tests.support.comfyui import Server

pytestmark = pytest.mark.host

RATE = 48_000
NUM_FRAMES = 16  # 0.61 s of sound in clip.wav
SAVES = {
    "mp4": {"format": "mp4", "codec": "h264"},
    "mp4 encoded again": {
        "format": "mp4",
        "codec": "h264",
        "format.codec.encoding": "re-encode",
        "format.codec.encoding.crf": 30.0,
        "format.codec.encoding.color_space": "auto",
    },
    "mkv": {"format": "mkv", "codec": "av1"},
    "webm": {"format": "webm", "codec": "av1"},
}


class Film(NamedTuple):
    """What is in a video file."""

    pictures: npt.NDArray[np.uint8]
    sound: npt.NDArray[np.float32]
    """`(C, N)`."""
    rate: int
    fps: Fraction


class Made(NamedTuple):
    """One run of the sampler, and all that was made of it."""

    server: Server
    history: dict[str, Any]

    def files(self, node: str, kind: str = "images") -> list[Path]:
        """Give the files a node made, in order."""
        found = self.history["outputs"][node][kind]
        return [self.server.base / f["type"] / f["subfolder"] / f["filename"] for f in found]

    def pictures(self, node: str) -> npt.NDArray[np.uint8]:
        """Give the pictures a node shows, `(T, H, W, 3)`."""
        return np.stack([np.asarray(Image.open(file)) for file in self.files(node)])


@pytest.fixture(scope="module")
def made(server: Server) -> Made:
    """Run the sampler once and hand its outputs to every node that takes them."""
    sounds.add_sounds(server.base / "input")
    graph = graphs.short(seed=70, longest_side=96)
    graphs.node(graph, "LoadAudio")["inputs"]["audio"] = "clip.wav"
    sampler = next(key for key, node in graph.items() if node["class_type"] == "MTK_Sampler")
    for key in [key for key, node in graph.items() if node["class_type"] == "SaveVideo"]:
        del graph[key]
    for name, inputs in offered(server).items():
        graph[name] = {
            "class_type": "SaveVideo",
            "inputs": {
                "video": [sampler, 2],
                "filename_prefix": "video/codecs",
                "format.codec": inputs["codec"],
                "format.codec.encoding": "auto",
                **inputs,
            },
        }
    for key, kind, name, source in (
        ("parts", "GetVideoComponents", "video", [sampler, 2]),
        ("strip", "MTK_PreviewStrip", "video", [sampler, 2]),
        ("frames", "PreviewImage", "images", [sampler, 0]),
        ("sound", "PreviewAudio", "audio", [sampler, 1]),
        ("parts' frames", "PreviewImage", "images", ["parts", 0]),
        ("parts' sound", "PreviewAudio", "audio", ["parts", 1]),
        ("parts' fps", "PreviewAny", "source", ["parts", 2]),
    ):
        graph[key] = {"class_type": kind, "inputs": {name: source}}
    history = server.run(graph)
    assert history["status"]["status_str"] == "success", history["status"]
    return Made(server, history)


def offered(server: Server) -> dict[str, dict[str, Any]]:
    """Give the ways to save that this ComfyUI offers; older ones know mp4 alone."""
    schema = str(server.get("/object_info/SaveVideo"))
    return SAVES if "webm" in schema else {"mp4": SAVES["mp4"]}


def read(path: Path) -> Film:
    """Decode a video file."""
    with av.open(str(path)) as file:
        stream = file.streams.video[0]
        fps = stream.average_rate
        pictures = [frame.to_ndarray(format="rgb24") for frame in file.decode(stream)]
    with av.open(str(path)) as file:
        rate = file.streams.audio[0].rate
        frames = [*file.decode(audio=0)]
        sound = np.concatenate([frame.to_ndarray() for frame in frames], axis=1)
        if not frames[0].format.is_planar:
            sound = sound.reshape(-1, frames[0].layout.nb_channels).T
    return Film(np.stack(pictures), sound, rate, fps)


@pytest.mark.parametrize("name", SAVES)
def test_saved_video_has_every_frame_and_the_sound_of_its_length(made: Made, name: str) -> None:
    if name not in made.history["outputs"]:
        pytest.skip("This ComfyUI saves mp4 only.")
    (path,) = made.files(name)
    assert path.suffix == f".{SAVES[name]['format']}"
    film = read(path)
    assert film.fps == 25
    assert film.pictures.shape == (NUM_FRAMES, 96, 96, 3)
    assert film.rate == RATE
    length = NUM_FRAMES * RATE // 25
    # AAC and Opus come in blocks
    assert length <= film.sound.shape[1] <= length + 2 * 1024
    left, right = np.sqrt((film.sound[:, :length] ** 2).mean(axis=1))
    assert left > 100 * max(right, 1e-5)  # the voice is on the left channel alone
    error = np.abs(film.pictures.astype(int) - made.pictures("frames")).mean()
    assert error < 24  # noise, coded


def test_frames_and_sound_are_the_videos_parts(made: Made) -> None:
    frames = made.pictures("frames")
    assert frames.shape == (NUM_FRAMES, 96, 96, 3)
    assert np.array_equal(frames, made.pictures("parts' frames"))
    sound, part = (made.files(node, "audio")[0] for node in ("sound", "parts' sound"))
    assert made.history["outputs"]["parts' fps"]["text"] == ["25.0"]
    with av.open(str(sound)) as file, av.open(str(part)) as other:
        heard, again = (
            np.concatenate([frame.to_ndarray() for frame in f.decode(audio=0)], axis=1)
            for f in (file, other)
        )
        assert file.streams.audio[0].rate == RATE
    assert heard.size == 2 * NUM_FRAMES * RATE // 25
    assert np.array_equal(heard, again)


def test_strip_shows_the_frames_over_their_sound(made: Made) -> None:
    waveform, rate = sounds.read(made.server.base / "input" / "clip.wav")
    frames = torch.from_numpy(made.pictures("frames"))
    expected = draw_strip(frames, waveform=torch.from_numpy(waveform), sample_rate=rate, fps=25)
    (picture,) = made.pictures("strip")
    assert picture.shape == tuple(expected.shape)
    assert np.abs(picture.astype(int) - expected.numpy()).mean() < 0.6  # PNGs of frames round down
    silent = draw_strip(frames, waveform=None, sample_rate=1, fps=25)
    assert np.abs(picture.astype(int) - silent.numpy()).mean() > 1.5


def test_strip_of_a_video_without_sound_says_so(server: Server) -> None:
    history = server.run(
        {
            "photo": {"class_type": "LoadImage", "inputs": {"image": "portrait.png"}},
            "film": {"class_type": "CreateVideo", "inputs": {"images": ["photo", 0], "fps": 8}},
            "strip": {"class_type": "MTK_PreviewStrip", "inputs": {"video": ["film", 0]}},
        }
    )
    (picture,) = Made(server, history).pictures("strip")
    with Image.open(graphs.ROOT / "workflows" / "inputs" / "portrait.png") as image:
        frames = torch.from_numpy(np.array(image.convert("RGB")))[None]
    expected = draw_strip(frames, waveform=None, sample_rate=1, fps=8)
    assert np.abs(picture.astype(int) - expected.numpy()).mean() < 0.6
