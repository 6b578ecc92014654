"""The tiny CLIP vision tower: one file, two readers, and what it is asked to tell."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import CLIPVisionModelWithProjection

from comfyui_multitalk.dev.make_tiny import TinySet
from comfyui_multitalk.dev.tiny.save import save_weights
from comfyui_multitalk.dev.train_tiny import vision
from comfyui_multitalk.dev.train_tiny.vision_tower import encode_photos, load_vision
from comfyui_multitalk.standalone.encoders import load_image_encoder
from comfyui_multitalk.wan_gguf_loader.files import open_weights


@pytest.mark.parametrize("people", [1, 2])
def test_plain_tower_sees_what_the_command_sees(tmp_path: Path, people: int) -> None:
    torch.manual_seed(0)
    model = CLIPVisionModelWithProjection(vision.config())
    path = TinySet(tmp_path).clip_vision
    save_weights(path, model.state_dict(), num_heads=vision.NUM_HEADS)
    with open_weights(path) as file:
        encoder = load_image_encoder(file, device=torch.device("cpu"), dtype=torch.float32)
    photos, _ = vision.photos(2, people=people, seed=0)
    expected = torch.cat([encoder.encode(photo[None]) for photo in photos])
    seen = encode_photos(load_vision(tmp_path), photos)
    assert seen.shape == (2, 257, 64)
    assert (seen - expected).norm() < 1e-5 * expected.norm()


def test_attributes_of_one_person_are_told_twice_and_of_two_in_order() -> None:
    _, alone = vision.photos(3, people=1, seed=1)
    _, pair = vision.photos(3, people=2, seed=1)
    for faces, left, right in ((alone, 0, 0), (pair, 0, 1)):
        told = vision.attributes(faces)
        assert tuple(told) == vision.ATTRIBUTES
        assert torch.equal(told["hair"], torch.cat((faces.hair[:, left], faces.hair[:, right]), 1))


def test_patch_colours_are_those_of_the_quarters() -> None:
    pixels = torch.zeros(1, 3, 224, 224)
    pixels[:, 1, 14:21, 35:42] = 1.0  # upper right quarter of the patch in row 1, column 2
    colours = vision.patch_colours(pixels)
    assert colours.shape == (1, 256, 12)
    green, upper_right = 1, 1
    assert colours.nonzero().tolist() == [[0, 1 * 16 + 2, green * 4 + upper_right]]


def test_photos_of_a_seed_are_the_same_again() -> None:
    once, again, other = (vision.photos(2, people=1, seed=seed)[0] for seed in (4, 4, 5))
    assert torch.equal(once, again)
    assert not torch.equal(once, other)
