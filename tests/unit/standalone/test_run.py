"""One run of the command: which plan it follows, and that a long video needs no more memory."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import Tensor

from comfyui_multitalk.multitalk_core.engine import Step
from comfyui_multitalk.multitalk_core.errors import InputError
from comfyui_multitalk.multitalk_core.geometry import Size
from comfyui_multitalk.multitalk_core.model.attention import attend
from comfyui_multitalk.multitalk_core.model.backends import Backend
from comfyui_multitalk.standalone import memory
from comfyui_multitalk.standalone import run as command
from comfyui_multitalk.standalone.arguments import build_request, parse
from comfyui_multitalk.standalone.encoders import load_text_encoder
from comfyui_multitalk.standalone.memory import RESIDENT, STREAMED, TILED, Plan
from comfyui_multitalk.standalone.request import Request
from comfyui_multitalk.standalone.weights import OpenFiles
from comfyui_multitalk.tests.support.command import arguments, tone, write_voice
from comfyui_multitalk.tests.support.live_memory import LiveMemory

if TYPE_CHECKING:
    from comfyui_multitalk.dev.make_tiny import TinySet

BF16 = torch.bfloat16
SIZE = Size(480, 832)


@pytest.fixture
def request_of(tmp_path: Path, tiny: TinySet, repository: Path) -> Any:
    """Give a function that makes a request for a voice of some seconds."""

    def make(seconds: float = 0.5, **options: str) -> Request:
        return build_request(
            parse(
                arguments(
                    tiny, image=repository / "workflows" / "inputs" / "portrait.png",
                    audio=write_voice(tmp_path / f"{seconds}.wav", tone(seconds)),
                    output=tmp_path / "out.mp4", **options,
                )
            )
        )  # fmt: skip

    return make


def _plan(request: Request, device: str) -> Plan:
    return command._plan(
        OpenFiles(request.files), request, size=SIZE, device=torch.device(device), dtype=BF16
    )


@pytest.mark.parametrize(
    ("offload", "device", "expected"),
    [
        ("auto", "cpu", RESIDENT),
        ("blocks", "cpu", RESIDENT),
        ("none", "cuda", RESIDENT),
        ("blocks", "cuda", STREAMED),
    ],
)
def test_plan_without_a_choice(request_of: Any, offload: str, device: str, expected: Plan) -> None:
    assert _plan(request_of(offload=offload), device) == expected


@pytest.mark.parametrize(
    ("offload", "streamed"), [("blocks", True), ("none", False), ("auto", False)]
)
def test_offload_streams_the_text_encoder_too(
    request_of: Any, monkeypatch: pytest.MonkeyPatch, offload: str, streamed: bool
) -> None:
    asked = []

    def load(*arguments: Any, **options: Any) -> Any:
        asked.append(options["streamed"])
        return load_text_encoder(*arguments, **options)

    monkeypatch.setattr(command, "load_text_encoder", load)
    request = request_of(offload=offload)
    command._encode_text(
        OpenFiles(request.files), request, device=torch.device("cpu"), dtype=torch.float32
    )
    assert asked == [streamed]


def test_plan_follows_the_free_memory_of_the_card(
    request_of: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory, "free_bytes", lambda device: 10**12)
    assert _plan(request_of(), "cuda") == RESIDENT
    monkeypatch.setattr(memory, "free_bytes", lambda device: 10**6)
    with pytest.raises(InputError, match="smaller --size"):
        _plan(request_of(), "cuda")


def test_run_reports_the_plan_that_it_followed(
    request_of: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert not command.run(request_of()).streamed
    monkeypatch.setattr(command, "_plan", lambda *_, **__: TILED)
    summary = command.run(request_of())
    assert (summary.streamed, summary.tiled) == (True, True)


def test_run_has_the_attention_that_was_asked_for(
    request_of: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Any] = []
    tokens: list[int] = []

    def recording(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        tokens.append(q.shape[1])
        return attend(q, k, v)

    def choose(*given: Any, **where: Any) -> Backend:
        asked.append((*given, *where.values()))
        return Backend("found", recording)

    monkeypatch.setattr(command, "video_attention", choose)
    summary = command.run(request_of(attention="sage"))
    assert asked == [("sage", torch.device("cpu"), torch.float32)]
    assert set(tokens) == {3 * 2 * 2}  # 9 frames of 32x32
    assert summary.attention == "found"


def _peak(request: Request, num_segments: int) -> int:
    """Give the most bytes of tensors alive at once from the second segment on."""
    memory = LiveMemory()

    def watch(step: Step) -> None:
        assert step.num_segments == num_segments
        if step.segment == 1:
            memory.peak = 0

    with memory:
        command.run(request, on_step=watch)
    return memory.peak


def test_run_of_more_segments_needs_no_more_memory(request_of: Any) -> None:
    """But for what is heard: features, and the sound itself."""
    sampling = {"size": "96x96", "segment_frames": "9", "motion_frames": "5"}
    short, long = request_of(0.5, **sampling), request_of(1.1, **sampling)
    frames = (1.1 - 0.5) * 25
    features = OpenFiles(short.files).config.audio
    heard = frames * features.layers * features.channels * 4 + (1.1 - 0.5) * 48_000 * 4 * 4
    assert _peak(long, 6) - _peak(short, 2) < heard + 1e4
    assert frames * 96 * 96 * 3 * 4 > 3 * heard  # a video that is kept would be seen
