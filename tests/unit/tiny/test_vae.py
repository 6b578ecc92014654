"""The tiny autoencoder: what hosts compute from its file, bounded memory, scaled latents."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from comfyui_multitalk.dev.tiny import vae as graph
from comfyui_multitalk.dev.train_tiny.vae import TinyVAE, load_vae
from comfyui_multitalk.standalone.vae import load_vae as load_standalone
from comfyui_multitalk.wan_gguf_loader.files import open_weights

WIDTH = 8
LENGTHS = (1, 5, 17)


@pytest.fixture(scope="module")
def model() -> TinyVAE:
    """Give an autoencoder every part of which does something, as after training."""
    torch.manual_seed(21)
    model = TinyVAE(WIDTH)
    spatial = model.spatial_weights()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if not parameter.requires_grad:
                continue
            last = parameter[:, :, -1] if name in spatial else parameter
            last += 0.1 * torch.randn_like(last)
    model.whiten(torch.randn(16), torch.rand(16) + 0.5)
    return model.eval()


@pytest.fixture(scope="module")
def file(model: TinyVAE, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Give its file."""
    path = tmp_path_factory.mktemp("vae") / "vae.safetensors"
    save_file({name: value.contiguous() for name, value in model.state_dict().items()}, path)
    return path


def _video(frames: int) -> Tensor:
    return torch.randn(1, 3, frames, 32, 40, generator=torch.Generator().manual_seed(22))


def _distance(one: Tensor, other: Tensor) -> float:
    return float((one - other).norm() / other.norm())


def test_tiny_vae_has_the_names_and_shapes_of_the_released_file(model: TinyVAE) -> None:
    expected = {name: value.shape for name, value in graph.vae(seed=1).items()}
    assert {name: value.shape for name, value in model.state_dict().items()} == expected


@pytest.mark.parametrize("frames", LENGTHS)
@torch.no_grad()
def test_tiny_vae_gives_what_the_command_computes_from_its_file(
    model: TinyVAE, file: Path, frames: int
) -> None:
    with open_weights(file) as weights:
        standalone = load_standalone(weights, device=torch.device("cpu"), dtype=torch.float32)
    latents = model.encode(_video(frames))
    assert latents.shape == (1, 16, (frames + 3) // 4, 4, 5)
    assert _distance(latents, standalone.encode(_video(frames))) < 1e-5
    pictures = model.decode(latents).clamp(-1, 1)
    assert pictures.shape == (1, 3, frames, 32, 40)
    assert _distance(pictures, standalone.decode(latents)) < 1e-5


@torch.no_grad()
def test_tiny_vae_read_back_gives_the_same(model: TinyVAE, file: Path) -> None:
    assert torch.equal(load_vae(file).encode(_video(5)), model.encode(_video(5)))


@torch.no_grad()
def test_whiten_scales_latents_and_leaves_pictures(model: TinyVAE, file: Path) -> None:
    fresh = load_vae(file)
    latents = fresh.encode(_video(17))
    pictures = fresh.decode(latents)
    fresh.whiten(latents.mean(dim=(0, 2, 3, 4)), latents.std(dim=(0, 2, 3, 4)))
    scaled = fresh.encode(_video(17))
    assert scaled.mean(dim=(0, 2, 3, 4)).abs().max() < 1e-4
    assert (scaled.std(dim=(0, 2, 3, 4)) - 1).abs().max() < 1e-4
    assert _distance(fresh.decode(scaled), pictures) < 1e-5


@torch.no_grad()
def test_latents_forget_what_is_long_past(model: TinyVAE) -> None:
    video = _video(65)
    other = video.clone()
    other[:, :, 0] = 0
    changed = (model.encode(video) - model.encode(other)).abs().amax(dim=(0, 1, 3, 4))
    assert changed[0] > 0
    assert (changed[9:] == 0).all()


@torch.no_grad()
def test_pictures_forget_latents_that_are_long_past(model: TinyVAE) -> None:
    latents = model.encode(_video(65))
    other = latents.clone()
    other[:, :, 0] = 0
    changed = (model.decode(latents) - model.decode(other)).abs().amax(dim=(0, 1, 3, 4))
    assert changed[0] > 0
    assert (changed[33:] == 0).all()


def test_new_tiny_vae_repeats_a_picture() -> None:
    torch.manual_seed(23)
    still = _video(1).expand(-1, -1, 17, -1, -1)
    with torch.no_grad():
        model = TinyVAE(WIDTH)
        frames = model.decode(model.encode(still))
    assert _distance(frames, frames[:, :, :1].expand_as(frames)) < 1e-5


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("encoder.conv1.weight", "encoder.conv1 looks back"),
        ("decoder.middle.1.proj.bias", "decoder.middle.1 is in use"),
    ],
    ids=["past", "attention"],
)
def test_load_vae_of_a_model_that_uses_more_says_where(
    file: Path, tmp_path: Path, name: str, part: str
) -> None:
    weights = load_file(file)
    weights[name].view(-1)[0] = 1.0
    save_file(weights, tmp_path / "other.safetensors")
    with pytest.raises(ValueError, match=part):
        load_vae(tmp_path / "other.safetensors")
