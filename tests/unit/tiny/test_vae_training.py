"""Training of the tiny autoencoder: data by step, learning, going on, and an honest gate."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from comfyui_multitalk.dev.train_tiny.__main__ import STAGES, main
from comfyui_multitalk.dev.train_tiny.checkpoint import (
    MAX_BYTES,
    load_checkpoint,
    save_checkpoint,
)
from comfyui_multitalk.dev.train_tiny.vae import TinyVAE, load_vae
from comfyui_multitalk.dev.train_tiny.vae_gate import Gate, evaluate, publish
from comfyui_multitalk.dev.train_tiny.vae_training import Batch, Trainer, draw_batch

CPU = torch.device("cpu")
PICTURES, CROPS, WHOLE = 0.1, 0.5, 0.9


def _trainer() -> Trainer:
    torch.manual_seed(31)
    return Trainer(TinyVAE(4), learning_rate=5e-3, ema=0.9)


def _batch(step: int = 1) -> Batch:
    """Give two small pictures; the whole ones take long."""
    batch = draw_batch(step, progress=PICTURES, pixels=50_000, device=CPU)
    return Batch(batch.frames[..., 32:96, 32:96], batch.weight[..., 32:96, 32:96])


@pytest.mark.parametrize(
    ("progress", "step", "shape"),
    [
        (PICTURES, 2, (4, 3, 1, 128, 128)),
        (PICTURES, 1, (2, 3, 1, 128, 192)),
        (CROPS, 1, (1, 3, 33, 64, 64)),
        (CROPS, 5, (2, 3, 1, 128, 192)),
        (WHOLE, 2, (1, 3, 33, 128, 128)),
    ],
    ids=["pictures", "pairs", "crops", "pictures-between", "whole"],
)
def test_draw_batch_goes_from_pictures_to_crops_to_whole_clips(
    progress: float, step: int, shape: tuple[int, ...]
) -> None:
    batch = draw_batch(step, progress=progress, pixels=66_000, device=CPU)
    assert batch.frames.shape == shape
    assert batch.weight.shape == (shape[0], 1, *shape[2:])
    assert torch.equal(
        batch.frames, draw_batch(step, progress=progress, pixels=66_000, device=CPU).frames
    )


def test_draw_batch_weighs_mouths_and_the_first_frame() -> None:
    weight = draw_batch(2, progress=WHOLE, pixels=1, device=CPU).weight
    assert weight[:, :, 1:].unique().tolist() == [1, 4]
    assert weight[:, :, 0].unique().tolist() == [3, 12]
    assert 0.01 < (weight[:, :, 1:] == 4).float().mean() < 0.15


def test_train_step_learns_and_leaves_the_past_out() -> None:
    trainer = _trainer()
    losses = [float(trainer.train_step(_batch(), progress=0.0)) for _ in range(25)]
    assert losses[-1] < 0.7 * losses[0]
    state = dict(trainer.model.named_parameters())
    for name in trainer.model.spatial_weights():
        assert not state[name][:, :, :-1].any(), name


def test_trainer_goes_on_from_its_checkpoint(tmp_path: Path) -> None:
    trainer, resumed = _trainer(), _trainer()
    for step in range(12):
        trainer.train_step(_batch(step), progress=0.0)
    trainer.save(tmp_path / "checkpoint.safetensors", seconds=7.5)
    assert resumed.load(tmp_path / "checkpoint.safetensors") == 7.5
    assert resumed.step == 12
    for one, other in ((trainer.model, resumed.model), (trainer.average, resumed.average)):
        for name, value in one.state_dict().items():
            torch.testing.assert_close(
                other.state_dict()[name], value, rtol=1e-3, atol=1e-4, msg=name
            )
    expected = float(trainer.train_step(_batch(12), progress=0.0))
    assert float(resumed.train_step(_batch(12), progress=0.0)) == pytest.approx(expected, rel=1e-2)


def test_checkpoint_of_a_resumed_trainer_is_the_one_it_read(tmp_path: Path) -> None:
    trainer, resumed = _trainer(), _trainer()
    for step in range(3):
        trainer.train_step(_batch(step), progress=0.0)
    trainer.save(tmp_path / "first", seconds=1.0)
    resumed.load(tmp_path / "first")
    resumed.save(tmp_path / "second", seconds=1.0)
    first, second = (load_checkpoint(tmp_path / name) for name in ("first", "second"))
    assert first[1] == second[1]
    assert {name.partition(".")[0] for name in first[0]} == {"weight", "average", "moment"}
    for name, value in first[0].items():
        torch.testing.assert_close(second[0][name], value, rtol=2e-3, atol=1e-6, msg=name)


def test_save_checkpoint_too_large_to_travel_says_so_and_writes_nothing(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="at most 14,000,000 can travel"):
        save_checkpoint(tmp_path / "a", {"w": torch.zeros(MAX_BYTES // 2 + 1)}, notes={})
    assert list(tmp_path.iterdir()) == []


def test_checkpoint_keeps_values_and_notes(tmp_path: Path) -> None:
    values = torch.linspace(-3, 3, 7)
    save_checkpoint(tmp_path / "a", {"w": values}, notes={"step": "3"})
    tensors, notes = load_checkpoint(tmp_path / "a")
    torch.testing.assert_close(tensors["w"], values, rtol=1e-3, atol=1e-3)
    assert notes == {"step": "3"}


def test_publish_scales_the_latents_of_drawn_clips(tmp_path: Path) -> None:
    trainer = _trainer()
    with torch.no_grad():
        trainer.model.encoder.head[2].weight.mul_(5)
        trainer.model.encoder.head[2].bias.add_(1)
    publish(trainer.model, tmp_path / "vae.safetensors", device=CPU)
    model = load_vae(tmp_path / "vae.safetensors")
    latents = model.encode(draw_batch(2, progress=WHOLE, pixels=1, device=CPU).frames)
    assert latents.mean().abs() < 0.3
    assert 0.6 < latents.std() < 1.5


class _Perfect(TinyVAE):
    """Keeps frames as they are: what the gate must call perfect."""

    def encode(self, video: torch.Tensor) -> torch.Tensor:
        return video

    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        return latents + 1e-4


def test_evaluate_passes_what_keeps_frames_and_fails_what_does_not() -> None:
    perfect = evaluate(_Perfect(4), num_clips=2, device=CPU)
    assert perfect.passed
    assert perfect.psnr > 60 and perfect.mouth_r_median > 0.98
    assert not evaluate(TinyVAE(4), num_clips=1, device=CPU).passed


@pytest.mark.parametrize("short", ["psnr", "psnr_first_frame", "mouth_r_median"])
def test_gate_misses_when_one_figure_does(short: str) -> None:
    figures = dict.fromkeys(Gate.__dataclass_fields__, 0.0)
    figures |= {"psnr": 31.0, "psnr_first_frame": 27.0, "mouth_r_median": 0.93}
    assert Gate(**figures).passed
    assert not Gate(**{**figures, short: figures[short] - 0.01}).passed


def test_command_without_a_stage_names_them(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["vae-of-mine", "--out", "nowhere"])
    assert "vae" in capsys.readouterr().err
    assert not Path("nowhere").exists()
    assert set(STAGES) >= {"voices", "vae", "base", "adapter", "export"}
