"""Element-wise work: Triton's against the plain formulas; interpreted where there is no card."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from comfyui_multitalk.multitalk_core.model import elementwise, residual
from comfyui_multitalk.multitalk_core.model.lrope import Rotation

pytest.importorskip("triton", reason="needs Triton: pip install triton")
kernels = pytest.importorskip("comfyui_multitalk.multitalk_core.model.kernels.elementwise")

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
HEADS, WIDTH = 5, 160  # the width is no power of two


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def distance(a: Tensor, b: Tensor) -> float:
    return float((a.cpu().float() - b).norm() / b.norm())


@pytest.mark.parametrize("shape", [(WIDTH,), (2, 1, WIDTH)], ids=["one", "each"])
def test_kernel_normalizes_as_torch(shape: tuple[int, ...]) -> None:
    x, gain, shift = normal(2, 7, WIDTH) + 3, normal(*shape, seed=1), normal(*shape, seed=2)
    expected = elementwise.normalize(x, gain=gain, shift=shift, eps=1e-6)
    result = kernels.normalize(x.to(DEVICE), gain=gain.to(DEVICE), shift=shift.to(DEVICE), eps=1e-6)
    assert distance(result, expected) < 1e-6


def test_kernel_rms_norm_is_torch_s() -> None:
    x, weight = normal(2, 7, WIDTH), normal(WIDTH, seed=1)
    expected = elementwise.rms_norm(x, weight=weight, eps=1e-6)
    result = kernels.rms_norm(x.to(DEVICE), weight=weight.to(DEVICE), eps=1e-6)
    assert distance(result, expected) < 1e-6


@pytest.mark.parametrize("batch", [(), (2,)], ids=["one", "each"])
def test_kernel_rotates_as_torch(batch: tuple[int, ...]) -> None:
    x, weight = normal(2, 7, WIDTH), normal(WIDTH, seed=1)
    angles = 3 * normal(*batch, 7, WIDTH // HEADS // 2, seed=2)
    rotation = Rotation(angles.cos(), angles.sin())
    expected = elementwise.rms_norm_rotated(
        x, weight=weight, eps=1e-6, num_heads=HEADS, rotation=rotation
    )
    cos, sin = (table.to(DEVICE) for table in rotation)
    result = kernels.rms_norm(x.to(DEVICE), weight=weight.to(DEVICE), eps=1e-6, cos=cos, sin=sin)
    assert distance(result.unflatten(-1, (HEADS, -1)), expected) < 1e-6


def test_kernel_turns_without_the_norm() -> None:
    x, angles = normal(2, 7, WIDTH), normal(2, 7, WIDTH // HEADS // 2, seed=2)
    expected = elementwise.turn(
        x.unflatten(-1, (HEADS, -1)), Rotation(angles.cos(), angles.sin())
    ).flatten(2)
    cos, sin = angles.cos().to(DEVICE), angles.sin().to(DEVICE)
    result = kernels.rms_norm(x.to(DEVICE), weight=None, eps=0.0, cos=cos, sin=sin)
    assert distance(result, expected) < 1e-6


def test_kernel_adds_gated_as_torch() -> None:
    x, y, gate = normal(2, 7, WIDTH), normal(2, 7, WIDTH, seed=1), normal(2, 1, WIDTH, seed=2)
    result = x.to(DEVICE, copy=True)
    residual.Stream(x).add_(y, gate=gate)
    kernels.add_gated(result, y.to(DEVICE), gate=gate.to(DEVICE))
    assert distance(result, x) < 1e-6


def test_what_is_added_in_another_dtype_keeps_the_rest_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """A host's layer may give float32, which the kernel would take for pairs of bfloat16."""
    monkeypatch.setattr(residual, "kernels_for", lambda x: kernels)
    y = normal(1, 3, WIDTH, seed=1).bfloat16()
    results = []
    for added in (y, y.float()):
        x, rest = residual.cut(normal(1, 3, WIDTH))
        with torch.no_grad():
            residual.Stream(x.to(DEVICE), rest.to(DEVICE)).add_(added.to(DEVICE))
        results.append(residual.joined(x, rest))
    if DEVICE == "cpu":  # where they were overwritten, not copied
        assert distance(results[1], results[0]) < 1e-4


@pytest.mark.parametrize("gated", [True, False])
def test_kernel_keeps_the_rest_of_bfloat16_as_torch(gated: bool) -> None:
    x, rest = residual.cut(normal(2, 7, WIDTH))
    y = normal(2, 7, WIDTH, seed=1).bfloat16()
    gate = normal(2, 1, WIDTH, seed=2) if gated else 0.3
    made, left = x.to(DEVICE, copy=True), rest.to(DEVICE, copy=True)
    given = gate.to(DEVICE) if isinstance(gate, Tensor) else gate
    kernels.add_with_residual(made, y.to(DEVICE), gate=given, residual=left)
    with torch.no_grad():
        residual.Stream(x, rest).add_(y, gate=gate)
    whole = residual.joined(x, rest)
    assert distance(residual.joined(made.cpu(), left.cpu()), whole) < 1e-4
    assert (left.cpu() != rest).float().mean() < 0.01  # a product and a sum may round as one


def test_rest_of_bfloat16_is_four_bits_more() -> None:
    value = torch.cat((normal(4096), 1e-30 * normal(64), torch.tensor([0.0, -0.0, 255.75, -3.0])))
    x, rest = residual.cut(value)
    assert torch.equal(x, value.bfloat16())
    whole = residual.joined(x, rest)
    assert distance(whole[:4096], value[:4096]) < 1.2e-4
    assert 16 * distance(whole[:4096], value[:4096]) > 0.9 * distance(x[:4096], value[:4096])
    assert abs(float((whole - value)[:4096].mean())) < 3e-6  # no drift
    assert residual.cut(torch.tensor([torch.inf, -torch.inf]))[0].isinf().all()


def test_many_small_additions_are_not_lost_in_bfloat16() -> None:
    """As those of a transformer's blocks: each is rounded off where no rest is kept."""
    parts = [0.1 * normal(2, 7, WIDTH, seed=seed).bfloat16() for seed in range(160)]
    exact = torch.stack([part.float() for part in parts]).sum(dim=0)
    errors = []
    for keeps in (True, False):
        x = torch.zeros(2, 7, WIDTH, dtype=torch.bfloat16)
        rest = residual.cut(x.float())[1] if keeps else None
        with torch.no_grad():
            for part in parts:
                residual.Stream(x, rest).add_(part)
        errors.append(distance(x.float(), exact))
    assert errors[0] < 0.004
    assert errors[1] > 2 * errors[0]


@pytest.mark.parametrize("records", [True, False], ids=["grad", "no grad"])
def test_pure_and_in_place_work_do_not_depend_on_the_grad_mode(records: bool) -> None:
    x, y = normal(1, 3, 4), normal(1, 3, 4, seed=1)
    before = x.clone()
    with torch.set_grad_enabled(records):
        activated = elementwise.gelu(x)
        assert torch.equal(x, before)
        residual.Stream(x).add_(y)
        assert torch.equal(x, before + y)
        assert elementwise.gelu_(before) is before
    assert torch.equal(before, activated)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@torch.no_grad()
def test_card_uses_the_kernels_and_agrees_with_the_cpu() -> None:
    x, gate = normal(2, 7, WIDTH), normal(2, 1, WIDTH, seed=2)
    expected = elementwise.normalize(x, gain=gate, shift=gate, eps=1e-6)
    result = elementwise.normalize(x.cuda(), gain=gate.cuda(), shift=gate.cuda(), eps=1e-6)
    assert elementwise.kernels_for(result) is kernels
    assert distance(result, expected) < 1e-6
