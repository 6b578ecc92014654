"""Where weights and LoRA factors are, with torch's meta device in the place of a card.

It computes shapes only, but refuses what a card refuses: tensors of two devices in one operation.
"""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any, NamedTuple

import comfy.model_patcher
import comfy_aimdo.host_buffer
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from comfyui_multitalk.dev.zoo.variants import variants
from comfyui_multitalk.nodes.host import model, patcher
from comfyui_multitalk.tests.host.inside.scene import (
    ADAPTER,
    BASE,
    CPU,
    Scene,
    distance,
    torch_attention,
    weight_of,
    with_attention,
    with_lora,
)

CARD = torch.device("meta")
MODULATION = "diffusion_model.blocks.0.modulation"
NORM = "diffusion_model.blocks.0.norm3.weight"
SHARES = {"whole": 1e32, "part": 0.8, "nothing": 0.0}


class Transfers(TorchDispatchMode):
    """Counts the bytes that go from main memory to the card."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        copies = {"aten::to": 0, "aten::_to_copy": 0, "aten::copy_": 1}
        name = func._schema.name
        if name in copies and result.device == CARD:
            source = args[copies[name]]
            self.bytes += source.nbytes if source.device == CPU else 0
        return result


def forward(patcher: Any) -> int:
    """Call the network on the card; give the bytes sent to it."""
    options = patcher.model_options["transformer_options"]
    net = patcher.model.diffusion_model
    config = net.config
    inputs = (
        torch.empty(1, 36, 3, 8, 10, device=CARD),
        torch.empty(1, device=CARD),
        torch.empty(1, 9, config.text_dim, device=CARD),
        torch.empty(1, 257, config.image_dim, device=CARD),
    )
    windows = torch.empty(1, 9, 5, config.audio.layers, config.audio.channels, device=CARD)
    audio = net.project_audio(windows)
    with Transfers() as transfers:
        net(*inputs, None, options, audio=audio)
    return transfers.bytes


class Placed(NamedTuple):
    """Bytes of a MODEL that was loaded in part."""

    whole: int
    loaded: int
    sent: int


@functools.cache
def place(share: str, kind: str) -> Placed:
    """Load a share of a MODEL and run it twice; unload it, and run it again."""
    here = model.load_adapter(model.load_base(BASE), ADAPTER)
    here = with_attention(with_lora(here) if kind == "lora" else here, torch_attention)
    here.load_device = CARD
    net = here.model.diffusion_model
    before = {name: weight.data_ptr() for name, weight in net.named_parameters()}
    here.partially_load(CARD, extra_memory=SHARES[share] * here.model_size() + 0.1)
    forward(here)
    sent = forward(here)
    loaded = [weight.nbytes for weight in net.parameters() if weight.device == CARD]
    here.partially_unload(CPU, memory_to_free=1e12)
    forward(here)
    whole = sum(weight.nbytes for weight in net.parameters())
    after = dict(net.named_parameters())
    assert sum(weight.nbytes for weight in after.values() if weight.device == CARD) < 0.05 * whole
    assert all(w.data_ptr() == before[name] for name, w in after.items() if w.device == CPU)
    return Placed(whole, sum(loaded), sent)


@pytest.mark.parametrize("kind", ["plain", "lora"])
@pytest.mark.parametrize("share", SHARES)
def test_model_runs_wherever_its_weights_are_and_unloads_to_where_they_were(
    share: str, kind: str
) -> None:
    placed = place(share, kind)
    if share == "whole":
        assert placed.loaded == placed.whole
    elif share == "part":
        assert 0.5 * placed.whole < placed.loaded < 0.9 * placed.whole
    else:
        assert placed.loaded < 0.05 * placed.whole  # norms and modulation


def factors_of(lora: Any) -> int:
    """Count the bytes of LoRA factors."""
    changes = [change.weights[:2] for ((_, change, *_),) in lora.patches.values()]
    return sum(factor.nbytes for factors in changes for factor in factors)


def test_lora_factors_travel_only_with_weights_that_travel(base: Any) -> None:
    factors = factors_of(with_lora(base))
    sent = {share: place(share, "lora").sent - place(share, "plain").sent for share in SHARES}
    assert sent["whole"] == 0
    assert sent["nothing"] == factors
    assert sent["part"] < 0.5 * factors


def test_lora_factors_count_as_part_of_the_model(base: Any) -> None:
    lora = with_lora(base)
    assert lora.model_size() - base.model_size() == factors_of(lora) > 0
    assert lora.clone().clone().model_size() == lora.model_size()


class OnCPU(comfy.model_patcher.ModelPatcherDynamic):
    """ComfyUI's dynamic patcher on the CPU, where it would give way to the other one."""

    def __new__(cls, *_args: Any, **_options: Any) -> Any:
        return object.__new__(cls)

    def partially_unload(self, *_args: Any, **_options: Any) -> Any:
        return self.restore_loaded_backups()


class NoPins:
    """Pinned memory where there is no card: none."""

    size = 0

    def __init__(self, *_sizes: int) -> None:
        """Take what comfy-aimdo's class takes."""


@pytest.fixture
def dynamic(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Give the base under ComfyUI's dynamic patcher."""
    # comfy-aimdo's library is there with a card only
    monkeypatch.setattr(comfy_aimdo.host_buffer, "HostBuffer", NoPins)
    net = model.load_base(BASE).model
    made = patcher._patcher_class(OnCPU)(net, load_device=CPU, offload_device=CPU)
    patcher._set_factory(made)
    return made


def test_dynamic_patcher_gives_what_the_other_gives(
    scene: Scene, base: Any, dynamic: Any, plain: torch.Tensor
) -> None:
    generator = torch.Generator().manual_seed(4)
    width = base.model.diffusion_model.dim
    change = 0.2 * torch.randn(1, 6, width, generator=generator)
    norm = 0.2 * torch.randn(width, generator=generator)

    def edited(one: Any) -> Any:
        clone = one.clone()
        clone.add_patches({MODULATION: ("diff", (change,)), NORM: ("diff", (norm,))})
        return clone

    lora = with_lora(dynamic)
    assert dynamic.is_dynamic()
    assert lora.is_dynamic()
    assert torch.equal(scene.sample(dynamic), plain)
    assert distance(scene.sample(lora), scene.sample(with_lora(base))) < 1e-6
    assert distance(scene.sample(edited(dynamic)), scene.sample(edited(base))) < 1e-6
    assert torch.equal(scene.sample(dynamic), plain)


def test_clone_without_dynamic_memory_is_a_model_on_the_same_weights(
    scene: Scene, base: Any, dynamic: Any, plain: torch.Tensor
) -> None:
    delegate = with_lora(dynamic).clone(disable_dynamic=True)
    assert not delegate.is_dynamic()
    assert delegate.model is not dynamic.model
    assert weight_of(delegate).data_ptr() == weight_of(dynamic).data_ptr()
    assert distance(scene.sample(delegate), scene.sample(with_lora(base))) < 1e-6
    assert torch.equal(scene.sample(dynamic), plain)


def test_scaled_fp8_base_stays_packed_and_travels_packed(tmp_path: Path) -> None:
    titles = {"base": "Comfy-Org `fp8_scaled`", "adapter": "Kijai `fp8_e4m3fn_scaled_KJ`"}
    written = {}
    for family, title in titles.items():
        (tmp_path / family).mkdir()
        row = next(v for v in variants() if v.family == family and v.name.startswith(title))
        written[family] = row.write(tmp_path / family).path
    here = model.load_adapter(model.load_base(written["base"]), written["adapter"])
    assert weight_of(here).dtype == torch.uint8
    here = with_attention(here, torch_attention)
    here.load_device = CARD
    here.partially_load(CARD, extra_memory=0.1)
    net = here.model.diffusion_model
    waiting = sum(weight.nbytes for weight in net.parameters() if weight.device == CPU)
    assert forward(here) <= 1.01 * waiting  # each byte once
