"""Rotary positions: the grid's and the speakers' labels."""

from __future__ import annotations

import pytest
import torch

from comfyui_multitalk.multitalk_core.geometry import GridSize
from comfyui_multitalk.multitalk_core.model import lrope

CPU = torch.device("cpu")


def test_lrope_two_speakers_label_ranges_do_not_overlap() -> None:
    looks = torch.rand(3, 400, generator=torch.Generator().manual_seed(0))
    positions = lrope.label_positions(looks)
    winner = looks.argmax(0)
    first, second, background = (positions[winner == i] for i in range(3))
    assert first.min() >= 0
    assert first.max() <= 4
    assert second.min() >= 20
    assert second.max() <= 24
    assert (background == 12).all()


def test_label_positions_spread_over_all_tokens_of_a_speaker() -> None:
    looks = torch.tensor([[0.2, 0.6, 1.0, 0.0], [0.1, 0.1, 0.1, 0.1], [0.0, 0.0, 0.0, 0.0]])
    torch.testing.assert_close(
        lrope.label_positions(looks), torch.tensor([0.8, 2.4, 4.0, 20.0]), atol=1e-5, rtol=0
    )


def test_label_positions_batch_is_each_alone() -> None:
    looks = torch.rand(2, 3, 50, generator=torch.Generator().manual_seed(0))
    looks[1] *= 7
    alone = torch.stack([lrope.label_positions(one) for one in looks])
    assert torch.equal(lrope.label_positions(looks), alone)


def test_audio_positions_stand_in_the_middle_of_each_speaker() -> None:
    assert lrope.audio_positions(2, device=CPU).tolist() == [2, 2, 22, 22]


def test_rotate_label_products_depend_on_the_distance_only() -> None:
    q, k = torch.randn(2, 1, 1, 1, 32, generator=torch.Generator().manual_seed(0))

    def product(q_position: float, k_position: float) -> torch.Tensor:
        turned = [
            lrope.rotate(x, lrope.label_rotation(torch.tensor([p]), head_dim=32))
            for x, p in ((q, q_position), (k, k_position))
        ]
        return (turned[0] * turned[1]).sum()

    torch.testing.assert_close(product(3.0, 2.0), product(23.0, 22.0), atol=1e-5, rtol=0)
    assert (product(3.0, 2.0) - product(3.0, 22.0)).abs() > 0.1


def test_rotate_in_stretches_equals_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.randn(2, 24, 3, 16, generator=torch.Generator().manual_seed(0))
    rotation = lrope.grid_rotation(GridSize(2, 3, 4), head_dim=16, device=CPU)
    at_once = lrope.rotate(x, rotation)
    monkeypatch.setattr(lrope, "_CHUNK_BYTES", 4 * 2 * 3 * 16 * 5)
    assert torch.equal(lrope.rotate(x, rotation), at_once)


def test_rotate_per_batch_positions_turn_each_by_its_own() -> None:
    x = torch.randn(2, 5, 3, 16, generator=torch.Generator().manual_seed(0))
    positions = torch.rand(2, 5, generator=torch.Generator().manual_seed(1)) * 24
    together = lrope.rotate(x, lrope.label_rotation(positions, head_dim=16))
    for i_item in range(2):
        alone = lrope.rotate(
            x[i_item : i_item + 1], lrope.label_rotation(positions[i_item], head_dim=16)
        )
        assert torch.equal(together[i_item], alone[0])


def test_rotate_keeps_dtype_and_rounds_once() -> None:
    x = torch.randn(1, 24, 2, 16, generator=torch.Generator().manual_seed(0)).bfloat16()
    rotation = lrope.grid_rotation(GridSize(2, 3, 4), head_dim=16, device=CPU)
    assert torch.equal(lrope.rotate(x, rotation), lrope.rotate(x.float(), rotation).bfloat16())


def test_grid_rotation_first_token_does_not_turn_and_columns_come_last() -> None:
    rotation = lrope.grid_rotation(GridSize(2, 3, 4), head_dim=24, device=CPU)
    frames, height, width = (len(axis) for axis in lrope.axis_frequencies(24))
    assert rotation.cos.shape == (24, 12)
    assert (rotation.cos[0] == 1).all()
    next_column, next_row, next_frame = rotation.sin[1], rotation.sin[4], rotation.sin[12]
    assert (next_column[: frames + height] == 0).all()
    assert (next_column[-width:] != 0).all()
    assert (next_row[:frames] == 0).all()
    assert (next_row[-width:] == 0).all()
    assert (next_frame[:frames] != 0).all()
