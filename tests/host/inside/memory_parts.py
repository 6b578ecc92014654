"""Where weights and LoRA factors are, with torch's meta device in the place of a card.

It computes shapes only, but refuses what a card refuses: tensors of two devices in one operation.
"""

from __future__ import annotations

from typing import Any

from lora_parts import with_lora
from model_parts import torch_attention, with_attention
from scene import ADAPTER, BASE, CPU, KEY, Scene, distance

# isort: split
import comfy.model_patcher
import comfy.utils
import comfy_aimdo.host_buffer
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from comfyui_multitalk.nodes.host import model, patcher

CARD = torch.device("meta")
MODULATION = "diffusion_model.blocks.0.modulation"
NORM = "diffusion_model.blocks.0.norm3.weight"


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


def forward(patcher: Any) -> tuple[int, str]:
    """Call the network on the card; give the bytes sent to it and what went wrong."""
    options = patcher.model_options["transformer_options"]
    net = patcher.model.diffusion_model
    config = net.config
    inputs = (
        torch.empty(1, 36, 3, 8, 10, device=CARD),
        torch.empty(1, device=CARD),
        torch.empty(1, 9, config.text_dim, device=CARD),
        torch.empty(1, 257, config.image_dim, device=CARD),
    )
    voices = {}
    try:
        if config.audio is not None:
            windows = (1, 9, 5, config.audio.layers, config.audio.channels)
            voices["audio"] = net.project_audio(torch.empty(windows, device=CARD))
        with Transfers() as transfers:
            net(*inputs, None, options, **voices)
    except RuntimeError as error:
        return 0, str(error)
    return transfers.bytes, ""


def on_card(patcher: Any) -> Any:
    """Give a clone whose card is the meta device."""
    clone = with_attention(patcher, torch_attention)
    clone.load_device = CARD
    return clone


def low_vram(_scene: Scene) -> dict[str, Any]:
    """The MODEL wholly on the card, a part of it, and nothing that can stay out; then unloaded."""
    result = {}
    for name, share in {"whole": None, "part": 0.8, "nothing": 0.0}.items():
        for kind in ("plain", "lora"):
            loaded = model.load_adapter(model.load_base(BASE), ADAPTER)
            result[f"{name} {kind}"] = placed(
                on_card(with_lora(loaded) if kind == "lora" else loaded), share
            )
    return result


def placed(here: Any, share: float | None) -> dict[str, Any]:
    """Load a share of a MODEL, run it twice, unload it and run it again."""
    weights = dict(here.model.diffusion_model.named_parameters())
    resting = {name: weight.data_ptr() for name, weight in weights.items()}
    budget = 1e32 if share is None else share * here.model_size() + 0.1
    here.partially_load(CARD, extra_memory=budget)
    _, first = forward(here)
    sent, second = forward(here)
    loaded = dict(here.model.diffusion_model.named_parameters())
    here.partially_unload(CPU, memory_to_free=1e12)
    _, freed = forward(here)
    back = dict(here.model.diffusion_model.named_parameters())
    return {
        "failures": [failure for failure in (first, second, freed) if failure],
        "sent": sent,
        "loaded": sum(p.nbytes for p in loaded.values() if p.device == CARD),
        "all": sum(p.nbytes for p in loaded.values()),
        "unloaded_in_place": all(
            back[name].data_ptr() == resting[name] for name in back if back[name].device == CPU
        ),
        "left": sum(p.nbytes for p in back.values() if p.device == CARD),
    }


def room_for_factors(_scene: Scene) -> dict[str, Any]:
    """LoRA factors count where ComfyUI asks how large a model is; clones do not add up."""
    base = model.load_base(BASE)
    lora = with_lora(base)
    factors = sum(
        tensor.nbytes for patches in lora.patches.values() for tensor in patches[0][1].weights[:2]
    )
    return {
        "larger": lora.model_size() - base.model_size(),
        "factors": factors,
        "clones": lora.clone().clone().model_size() - lora.model_size(),
    }


class OnCPU(comfy.model_patcher.ModelPatcherDynamic):
    """ComfyUI's dynamic patcher where it would put itself aside; on the CPU it has no cache."""

    def __new__(cls, *_args: Any, **_options: Any) -> Any:
        return object.__new__(cls)

    def partially_unload(self, *_args: Any, **_options: Any) -> Any:
        return self.restore_loaded_backups()


class NoPins:
    """Pinned memory where there is no card: none."""

    size = 0

    def __init__(self, *_sizes: int) -> None:
        """Take what comfy-aimdo's class takes."""


def dynamic(scene: Scene) -> dict[str, Any]:
    """The dynamic patcher's own loading, on the CPU, against the other one."""
    comfy_aimdo.host_buffer.HostBuffer = NoPins  # its library is there with a card only
    base = model.load_base(BASE)
    expected, expected_lora = scene.sample(base), scene.sample(with_lora(base))
    change = 0.2 * torch.randn(1, 6, base.model.diffusion_model.dim)
    norm = 0.2 * torch.randn(base.model.diffusion_model.dim)

    def edited(one: Any) -> Any:
        clone = one.clone()
        clone.add_patches({MODULATION: ("diff", (change,)), NORM: ("diff", (norm,))})
        return clone

    expected_parts = scene.sample(edited(base))
    net = model.load_base(BASE).model
    mine = patcher._patcher_class(OnCPU)(net, load_device=CPU, offload_device=CPU)
    patcher._remember_twin(mine)
    lora = with_lora(mine)
    delegate = lora.clone(disable_dynamic=True)
    return {
        "is_dynamic": mine.is_dynamic() and lora.is_dynamic(),
        "plain": torch.equal(scene.sample(mine), expected),
        "lora": distance(scene.sample(lora), expected_lora),
        "norm_and_modulation": distance(scene.sample(edited(mine)), expected_parts),
        "removed": torch.equal(scene.sample(mine), expected),
        "delegate_is_dynamic": delegate.is_dynamic(),
        "delegate": distance(scene.sample(delegate), expected_lora),
        "delegate_shares": comfy.utils.get_attr(delegate.model, KEY).data_ptr()
        == comfy.utils.get_attr(mine.model, KEY).data_ptr(),
        "delegate_is_its_own": delegate.model is not mine.model,
        "after_delegate": torch.equal(scene.sample(mine), expected),
    }


PARTS = {"low_vram": low_vram, "room_for_factors": room_for_factors, "dynamic": dynamic}
