"""What a user may expect of the engine, on a small transformer and stand-in encoders."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from comfyui_multitalk.dev.parity.sampler_run import tokens_of_entries
from comfyui_multitalk.multitalk_core.engine import Step
from comfyui_multitalk.multitalk_core.errors import InputError, MultiTalkError
from comfyui_multitalk.multitalk_core.geometry import Size
from comfyui_multitalk.multitalk_core.inputs.photo import prepare
from comfyui_multitalk.multitalk_core.inputs.scene import compose
from comfyui_multitalk.multitalk_core.inputs.speech import Speech
from comfyui_multitalk.multitalk_core.method.color import match_color_
from comfyui_multitalk.multitalk_core.method.segments import Segment
from comfyui_multitalk.multitalk_core.model.audio_tokens import AudioContext
from comfyui_multitalk.tests.support.film import (
    SAMPLING,
    SIZE,
    Film,
    half_masks,
    two_speakers,
    voices,
)
from comfyui_multitalk.tests.support.stand_ins import MeanVAE
from comfyui_multitalk.tests.support.transformer import AUDIO, small_model


def relative(ours: Tensor, theirs: Tensor) -> float:
    return float((ours - theirs).norm() / theirs.norm())


@pytest.mark.parametrize("num_frames", [1, 3, 9, 10, 13, 14])
def test_engine_video_is_as_long_as_the_sound(num_frames: int) -> None:
    video = Film(speech=Speech(features=voices(1), num_frames=num_frames)).video()
    assert video.shape == (3, num_frames, 32, 48)
    assert video.dtype == torch.float32
    assert float(video.abs().max()) <= 1.0


@pytest.mark.parametrize("method", ["multitalk", "infinitetalk"])
def test_engine_segments_fade_into_each_other(method: str) -> None:
    """The frames that both segments show go from the first's to the second's in equal steps."""
    film = Film(config=replace(SAMPLING, method=method))
    first, second = film.start()
    before, after = (decoded[0] for decoded in film.vae.decoded)
    assert torch.equal(first, before[:, :4])
    assert relative(after[:, :5], before[:, 4:]) > 0.01
    weights = (torch.arange(1, 6) / 6)[:, None, None]
    faded = (1 - weights) * before[:, 4:] + weights * after[:, :5]
    torch.testing.assert_close(second, torch.cat([faded, after[:, 5:8]], dim=1))


@pytest.mark.parametrize("method", ["multitalk", "infinitetalk"])
def test_engine_same_seed_twice_is_identical(method: str) -> None:
    config = replace(SAMPLING, method=method)
    first = Film(config=config).video()
    assert torch.equal(first, Film(config=config).video())
    assert not torch.equal(first, Film(config=config, seed=43).video())


def test_engine_leaves_its_inputs_and_the_global_generator_unchanged() -> None:
    film = two_speakers()
    inputs = [*film.speech.features, film.masks, film.text, film.negative_text, film.photo]
    before = [one.clone() for one in inputs if one is not None]
    state = torch.random.get_rng_state()
    film.video()
    assert all(torch.equal(a, b) for a, b in zip(before, inputs, strict=True))
    assert torch.equal(state, torch.random.get_rng_state())


def test_engine_what_the_caller_does_to_the_frames_does_not_reach_the_next_segment() -> None:
    expected = Film().video()
    parts = []
    for part in Film().start():
        parts.append(part.clone())
        part.zero_()
    assert torch.equal(torch.cat(parts, dim=1), expected)


def test_engine_leaves_the_gradient_mode_of_the_caller_alone() -> None:
    frames = Film(model=small_model().requires_grad_(True)).start()
    assert not next(frames).requires_grad
    assert torch.is_grad_enabled()


def test_engine_one_speaker_with_a_whole_mask_is_no_mask() -> None:
    whole = torch.stack([torch.ones(40, 60), torch.zeros(40, 60)]).bool()
    assert torch.equal(Film(masks=whole).video(), Film().video())


class _Painter:
    """A transformer that paints each speaker's region with that speaker's voice, and no more.

    The real one is not symmetric in its speakers: L-RoPE gives them labels 2 and 22.
    """

    def project_audio(self, windows: Tensor) -> Tensor:
        tokens = windows.mean(dim=(2, 3, 4))[:, ::4]
        return tokens.t()[None, :, :, None]

    def __call__(self, latents: Tensor, timestep: Tensor, **given: Any) -> Tensor:
        painted = latents.clone()
        contexts = given["audio"]
        masks = (contexts if isinstance(contexts, AudioContext) else contexts[0]).token_masks
        regions = masks[:-1].view(-1, 1, 2, 3).float()
        for entry, tokens in zip(painted, tokens_of_entries(contexts), strict=True):
            voices = tokens[:, :, 0]
            if voices.shape[1] > 1:
                loudness = (voices.t()[:, :, None, None] * regions).sum(dim=0)
                entry += loudness.repeat_interleave(2, dim=1).repeat_interleave(2, dim=2)
        return painted


def test_engine_swapping_speakers_and_masks_gives_the_same_video() -> None:
    swapped = Speech(features=voices(2)[::-1], num_frames=12)
    video = two_speakers(model=_Painter()).video()
    both = two_speakers(model=_Painter(), speech=swapped, masks=half_masks()[[1, 0, 2]]).video()
    torch.testing.assert_close(both, video)
    assert relative(two_speakers(model=_Painter(), speech=swapped).video(), video) > 0.01


def test_engine_each_voice_matters() -> None:
    video = two_speakers().video()
    first, second = voices(2)
    for features in ((first, -second), (-first, second)):
        changed = two_speakers(speech=Speech(features=features, num_frames=12)).video()
        assert relative(changed, video) > 1e-3


def test_engine_audio_strength_of_zero_hears_nothing() -> None:
    deaf = replace(SAMPLING, audio_strength=0.0)
    other = Speech(features=(voices(2)[1],), num_frames=12)
    assert torch.equal(Film(config=deaf).video(), Film(config=deaf, speech=other).video())


def test_engine_text_guidance_of_one_needs_no_negative_text() -> None:
    config = replace(SAMPLING, text_guidance=1.0)
    without = Film(config=config, negative_text=None).video()
    assert torch.equal(without, Film(config=config).video())


def test_engine_passes_leave_out_what_their_names_say() -> None:
    given: list[tuple[int, int, bool]] = []

    class Listener(_Painter):
        def __call__(self, latents: Tensor, timestep: Tensor, **kwargs: Any) -> Tensor:
            audio = tokens_of_entries(kwargs["audio"])
            for text, tokens in zip(kwargs["text"], audio, strict=True):
                length = int(text.any(dim=1).sum())  # shorter prompts end in zeros
                given.append((length, tokens.shape[-2], bool(tokens.any())))
            return latents

    two_speakers(model=Listener(), config=replace(SAMPLING, steps=1)).video()
    full, without_text, unconditional = (4, 2, True), (6, 2, True), (6, 1, False)
    assert given == [full, without_text, unconditional] * 2
    given.clear()
    two_speakers(model=Listener(), config=replace(SAMPLING, steps=1, text_guidance=1.0)).video()
    assert given == [full, (4, 1, False)] * 2


def test_speech_windows_of_segments_are_cut_from_those_of_the_whole() -> None:
    speech = Speech(features=voices(2, num_frames=30), num_frames=25)
    whole = speech.windows(Segment(0, 25, slice(0, 25)))
    part = speech.windows(Segment(8, 21, slice(5, 13)))
    assert whole.shape == (2, 25, 5, AUDIO.layers, AUDIO.channels)
    assert torch.equal(part, whole[:, 8:21])


def test_engine_steps_are_reported_in_order() -> None:
    seen: list[Step] = []
    Film(on_step=seen.append).video()
    assert [(s.segment, s.num_segments, s.step, s.num_steps) for s in seen] == [
        (0, 2, 0, 2),
        (0, 2, 1, 2),
        (1, 2, 0, 2),
        (1, 2, 1, 2),
    ]
    assert all(s.latents.shape == (1, 16, 3, 4, 6) for s in seen)


def test_engine_last_preview_is_the_decoded_latent() -> None:
    seen: list[Step] = []
    video = Film(on_step=seen.append, speech=Speech(features=voices(1), num_frames=9)).video()
    torch.testing.assert_close(MeanVAE().decode(seen[-1].latents)[0], video)


def test_engine_on_step_that_raises_cancels() -> None:
    class CancelledError(Exception):
        pass

    def cancel(step: Step) -> None:
        if step.segment == 1:
            raise CancelledError

    frames = Film(on_step=cancel).start()
    assert next(frames).shape[1] == 4
    with pytest.raises(CancelledError):
        next(frames)
    assert list(frames) == []


def test_engine_multitalk_looks_at_the_last_frames_before() -> None:
    film = Film()
    film.video()
    assert [one.shape[2] for one in film.vae.encoded] == [9, 9]
    known, first = film.vae.encoded[1], film.vae.decoded[0]
    assert torch.equal(known[:, :, :5], first[:, :, 4:])
    assert not known[:, :, 5:].any()
    assert torch.equal(film.image_encoder.seen[1], first[:, :, 8])


def test_engine_infinitetalk_looks_at_the_photo_and_holds_the_motion_frames() -> None:
    film = Film(config=replace(SAMPLING, method="infinitetalk"))
    film.video()
    encoded = film.vae.encoded
    assert [one.shape[2] for one in encoded] == [9, 1, 9, 5]
    assert torch.equal(encoded[0], encoded[2])
    assert torch.equal(encoded[3], film.vae.decoded[0][:, :, 4:])
    assert torch.equal(*film.image_encoder.seen)


def test_engine_infinitetalk_asks_for_the_picture_at_each_segment() -> None:
    photo = Film().photo
    asked: list[int] = []

    def picture(frame: int) -> Tensor:
        asked.append(frame)
        return photo if frame == 0 else 255 - photo

    config = replace(SAMPLING, method="infinitetalk")
    film = Film(config=config, photo=picture)
    film.video()
    assert asked == [0, 4]
    first, second = (film.vae.encoded[call][:, :, 0] for call in (0, 2))
    torch.testing.assert_close(second, -first, atol=0.01, rtol=0)  # resized in steps of 2 / 255


def test_engine_flashtalk_stays_with_the_first_picture_and_one_speaker() -> None:
    photo = Film().photo
    asked: list[int] = []

    def picture(frame: int) -> Tensor:
        asked.append(frame)
        return photo

    config = replace(SAMPLING, method="flashtalk", text_guidance=1.0, audio_guidance=1.0)
    film = Film(config=config, photo=picture)
    film.video()
    assert asked == [0]
    assert [one.shape[2] for one in film.vae.encoded] == [9, 1, 9, 5]
    with pytest.raises(InputError, match="FlashTalk animates one speaker"):
        two_speakers(config=config).video()


def test_engine_colours_are_matched_before_the_frames_are_taken_over() -> None:
    film = Film(config=replace(SAMPLING, color_match=1.0))
    video = film.video()
    matched = match_color_(
        film.vae.decoded[0].clone(), prepare(film.photo, size=SIZE), strength=1.0
    )
    assert torch.equal(film.vae.encoded[1][:, :, :5], matched[:, :, 4:])
    assert torch.equal(video[:, :4], matched[0, :, :4])
    assert relative(Film().video(), video) > 0.1


def test_engine_bfloat16_stays_near_float32() -> None:
    exact = two_speakers().video()
    assert (
        relative(two_speakers(dtype=torch.bfloat16, model=small_model().bfloat16()).video(), exact)
        < 0.05
    )


class _Breaking:
    """A transformer that turns to NaN in a given call."""

    def __init__(self, call: int) -> None:
        self.model, self.calls, self.call = small_model(), 0, call
        self.project_audio = self.model.project_audio

    def __call__(self, *args: Any, **given: Any) -> Tensor:
        self.calls += 1
        velocity: Tensor = self.model(*args, **given)
        return velocity * float("nan") if self.calls == self.call else velocity


def test_engine_nan_latents_are_a_clear_error() -> None:
    frames = Film(model=_Breaking(call=3)).start()
    next(frames)
    with pytest.raises(MultiTalkError, match=r"step 1 of 2 are not finite .*bfloat16"):
        next(frames)


def test_engine_nan_frames_are_a_clear_error() -> None:
    class BrokenVAE(MeanVAE):
        def decode(self, latents: Tensor) -> Tensor:
            return super().decode(latents) / 0.0

    with pytest.raises(MultiTalkError, match="frames of segment 1 are not finite"):
        Film(vae=BrokenVAE()).video()


@pytest.mark.parametrize(
    ("film", "message"),
    [
        pytest.param(Film(negative_text=None), "needs a negative prompt", id="negative-text"),
        pytest.param(two_speakers(masks=None), "2 speakers need 3 masks", id="no-masks"),
        pytest.param(two_speakers(masks=half_masks()[:2]), "but 2 were given", id="too-few-masks"),
    ],
)
def test_engine_inputs_that_do_not_fit_are_said(film: Film, message: str) -> None:
    with pytest.raises(InputError, match=message):
        film.video()


def test_compose_refuses_a_size_that_is_no_multiple_of_16() -> None:
    with pytest.raises(InputError, match="48x30 is not a multiple of 16"):
        compose(Film().photo, [None], size=Size(30, 48))


def test_compose_says_that_a_single_speakers_region_has_no_effect(
    caplog: pytest.LogCaptureFixture,
) -> None:
    picture = compose(Film().photo, [torch.ones(40, 60)], size=SIZE)
    assert picture.token_masks is None
    assert "is ignored" in caplog.text


def test_engines_in_two_threads_make_the_videos_they_make_alone() -> None:
    films = [two_speakers(seed=1), two_speakers(seed=2, config=replace(SAMPLING, steps=3))]
    alone = [film.video() for film in films]
    with ThreadPoolExecutor(2) as pool:
        together = list(pool.map(Film.video, films))
    assert all(torch.equal(a, b) for a, b in zip(alone, together, strict=True))


@pytest.mark.parametrize(
    ("features", "message"),
    [
        pytest.param((), "no speaker", id="none"),
        pytest.param((torch.zeros(9, 2, 8), torch.zeros(9, 3, 8)), "different sizes", id="sizes"),
        pytest.param((torch.full((9, 2, 8), float("nan")),), "speaker 1 hold NaN", id="nan"),
    ],
)
def test_speech_that_cannot_be_used_is_said(features: tuple[Tensor, ...], message: str) -> None:
    with pytest.raises(InputError, match=message):
        Speech(features=features, num_frames=5)
