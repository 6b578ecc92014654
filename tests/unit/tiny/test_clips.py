"""Drawn clips: who says what, where, and what the talker is told of it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from comfyui_multitalk.dev.train_tiny import clips as clips_module
from comfyui_multitalk.dev.train_tiny import dataset
from comfyui_multitalk.dev.train_tiny.clips import (
    SIZES,
    Clips,
    Speech,
    draw_clips,
    region_tokens,
    speak,
)
from comfyui_multitalk.dev.train_tiny.faces import prompts
from comfyui_multitalk.dev.train_tiny.features import SILENCE, VoiceFeatures
from comfyui_multitalk.dev.train_tiny.motion import smooth_noise
from comfyui_multitalk.dev.train_tiny.mouth import correlation, opening
from comfyui_multitalk.dev.train_tiny.vae import TinyVAE
from comfyui_multitalk.multitalk_core.method.conditioning import encode_known

FRAMES = 9


def _voices() -> dict[str, VoiceFeatures]:
    """Give two voices whose features tell the frame they belong to, and silence."""
    generator = torch.Generator().manual_seed(0)
    voices = {}
    for number, name in enumerate(("a", "b")):
        curve = smooth_noise((2,), frames=150, hertz=3.0, generator=generator).T.contiguous()
        curve[:, 0] = (0.5 + 0.4 * curve[:, 0]).clamp(0.02, 1)
        curve[60:72] = 0
        features = 1000 * number + torch.arange(150.0)[:, None, None].expand(150, 2, 3)
        voices[name] = VoiceFeatures(features, curve)
    return voices | {SILENCE: VoiceFeatures(torch.full((20, 2, 3), -1.0), torch.zeros(20, 2))}


def _draw(count: int, *, people: int, moving: bool = False, seed: int = 0) -> Clips:
    return draw_clips(
        count,
        people=people,
        num_frames=FRAMES,
        moving=moving,
        speech=Speech(_voices(), ["a", "b"]),
        generator=torch.Generator().manual_seed(seed),
    )


def test_clips_each_speaker_moves_the_mouth_at_its_place() -> None:
    """In a picture of two, speakers stand in any order and are told apart by the mask."""
    clips = _draw(4, people=2, moving=True, seed=3)
    assert {tuple(order) for order in clips.order.tolist()} == {(0, 1), (1, 0)}
    frames = (clips.video[:, :, -FRAMES:] + 1) / 2
    for i_clip in range(4):
        for speaker, place in enumerate(clips.order[i_clip].tolist()):
            box = torch.tensor((14.0 + 96 * place, 66.0, 82.0 + 96 * place, 104.0))
            wanted = clips.opening[i_clip, speaker]
            if wanted.std() > 0.1:
                assert correlation(opening(frames[i_clip], box), wanted) > 0.8


def test_region_of_each_speaker_is_at_its_place() -> None:
    """Half of the pictures have loose face boxes, half the default halves."""
    faces = torch.tensor(((20.0, 30, 76, 100), (116, 30, 172, 100))).expand(20, 2, 4)
    order = torch.tensor(((0, 1), (1, 0))).repeat(10, 1)
    generator = torch.Generator().manual_seed(0)
    masks = region_tokens(faces, order, size=SIZES[2], generator=generator)
    assert len({tuple(mask.flatten().tolist()) for mask in masks}) > 4
    for mask, places in zip(masks.view(20, 3, 8, 12), order.tolist(), strict=True):
        for region, place in zip(mask[:2], places, strict=True):
            columns = region.any(dim=0).nonzero()[:, 0]
            assert (float(columns.float().mean()) > 5.5) == (place == 1)
        assert bool((mask.sum(dim=0) == 1).all())


def test_clips_somebody_is_silent_in_half_of_the_pairs() -> None:
    speech, generator = Speech(_voices(), ["a", "b"]), torch.Generator().manual_seed(0)
    _, curves = speak(60, 2, 33, speech=speech, generator=generator)
    shut = (curves[..., 0] == 0).all(dim=2)
    assert not shut.all(dim=1).any()
    assert 20 < int(shut.any(dim=1).sum()) < 40
    assert 5 < int(shut[:, 0].sum()) < int(shut.any(dim=1).sum()) - 5


def test_clips_features_belong_to_the_frames_of_the_mouth() -> None:
    speech, generator = Speech(_voices(), ["a", "b"]), torch.Generator().manual_seed(0)
    features, curves = speak(20, 1, FRAMES, speech=speech, generator=generator)
    assert features.shape == (20, 1, FRAMES + 4, 2, 3)
    checked = 0
    for heard, curve in zip(features[:, 0], curves[:, 0, 8:], strict=True):
        number, start = divmod(int(heard[2, 0, 0]), 1000)
        if heard[0, 0, 0] >= 0 and bool((heard.diff(dim=0) == 1).all()) and curve.any():
            assert torch.equal(curve, _voices()["ab"[number]].articulation[start : start + FRAMES])
            checked += 1
    assert checked > 10


def test_clips_painted_wall_starts_as_the_photo_and_ends_as_the_prompt() -> None:
    clips = _draw(6, people=1)
    assert 0 < int(clips.painted.sum()) < 6
    change = (clips.video[:, :, -1] - clips.video[:, :, 0])[:, :, :8, :8].abs().mean(dim=(1, 2, 3))
    assert bool(((change > 0.05) == clips.painted).all())
    assert set(clips.prompts) <= set(prompts(people=1))


def test_clips_begin_with_a_mouth_that_no_voice_moves() -> None:
    """Half of the mouths are shut in the photo, whatever is said then."""
    clips = _draw(8, people=1)
    first = [
        float(opening((clip[:, :1] + 1) / 2, torch.tensor((30.0, 64.0, 98.0, 104.0)))[0])
        for clip in clips.video
    ]
    talking = clips.opening[:, 0, 0] > 0.3
    assert sum(value < 0.02 for value, speaks in zip(first, talking, strict=True) if speaks) > 1


@pytest.fixture(scope="module")
def encoders() -> dataset.Encoders:
    torch.manual_seed(0)
    vae = TinyVAE(4).requires_grad_(False).eval()
    for parameter in vae.parameters():
        if parameter.ndim > 2 and parameter.shape[-1] > 1:
            parameter.normal_(std=0.1)
    table = {"": torch.ones(1, 6)}
    table |= {text: torch.full((3, 6), 2.0) for text in (*prompts(people=1), *prompts(people=2))}
    return dataset.Encoders(
        vae=vae, photos=lambda photo: photo.mean((1, 2, 3))[:, None, None].expand(-1, 257, 5),
        prompts=table,
    )  # fmt: skip


@pytest.mark.parametrize("moving", [False, True])
def test_encoded_clips_are_conditioned_as_in_use(
    encoders: dataset.Encoders, *, moving: bool
) -> None:
    """The condition is that of `multitalk_core.conditioning` for the frames that are known."""
    clips = _draw(2, people=1, moving=moving)
    found = dataset.encode_clips(clips, encoders, moving=moving)
    known = clips.video[:, :, :1]
    if moving:
        past = clips.video[:, :, : clips_module.PREFIX_FRAMES + clips_module.MOTION_FRAMES]
        known = encoders.vae.decode(encoders.vae.encode(past))[:, :, -5:].clamp(-1, 1)
    for i_clip in range(2):
        expected, mask = encode_known(encoders.vae, known[i_clip : i_clip + 1], num_frames=FRAMES)
        assert torch.allclose(found["condition"][i_clip].float(), expected[0], atol=2e-2)
        assert int(found["known"][i_clip]) == int(mask[0, 0, :, 0, 0].sum())
    start = int(found["known"][0])
    apart = (found["latents"] - found["condition"])[:, :, :start].float().abs().max()
    assert apart < 2e-2  # what is known is the beginning of the clip


def test_cache_gives_batches_as_the_model_takes_them(
    encoders: dataset.Encoders, tmp_path: Path
) -> None:
    folder = tmp_path / "latents"
    folder.mkdir()
    save_file({"text": dataset.text_tensor(encoders.prompts)}, folder / "text.safetensors")
    for people in (1, 2):
        shards = dataset.encode_shards(
            people=people, num_clips=4, per_shard=2, num_frames=FRAMES,
            speech=Speech(_voices(), ["a", "b"]), encoders=encoders,
            generator=torch.Generator().manual_seed(10 * people), device=torch.device("cpu"),
        )  # fmt: skip
        for number, shard in enumerate(shards):
            shard["painted"] = torch.tensor([True, False])
            save_file(shard, folder / f"people{people}-{number:04d}.safetensors")
    cache = dataset.Cache(tmp_path, device=torch.device("cpu"))
    assert (cache.size(1), cache.size(2), cache.text_len) == (4, 4, 8)
    batch = cache.draw(16, people=2, generator=torch.Generator().manual_seed(0), wordless=1.0)
    assert batch.latents.shape == (16, 16, 3, 16, 24)
    assert batch.condition.shape == (16, 20, 3, 16, 24)
    assert batch.windows.shape == (16, 2, FRAMES, 5, 2, 3)
    middles, sides = batch.windows[:, :, 1:, 2], batch.windows[:, :, :-1, 3]
    assert torch.equal(middles, sides)  # the window's centre belongs to its frame
    moving = batch.condition[:, 0, 1, 0, 0] == 1
    assert set(moving.tolist()) == {True, False}
    assert torch.equal(batch.held[:, 0, 1, 0, 0] == 1, moving)
    assert not batch.held[~moving].any()
    empty = batch.text[:, 1].abs().sum(dim=1) == 0
    assert empty.any() and not empty.all()  # the prompt stays where it alone tells the wall
