"""Block-wise streaming: one block on the device at a time, the masters untouched.

The meta device stands in for a card: it is another device than the CPU, and every machine has it.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from comfyui_multitalk.standalone.request import Offload
from comfyui_multitalk.standalone.streaming import place, stream_blocks, weight_bytes

CARD = torch.device("meta")


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)
        self.register_buffer("packed", torch.arange(8, dtype=torch.uint8))

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x)


class Transformer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.before = nn.Linear(4, 4)
        self.scale = nn.Parameter(torch.ones(4))
        self.blocks = nn.ModuleList(Block() for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        x = self.before(x) * self.scale
        for block in self.blocks:
            x = block(x)
        return x


def _devices(model: nn.Module) -> set[str]:
    return {tensor.device.type for tensor in (*model.parameters(), *model.buffers())}


def _blocks_on_card(model: Transformer) -> list[int]:
    return [i for i, block in enumerate(model.blocks) if _devices(block) == {"meta"}]


def test_streaming_lends_one_block_at_a_time() -> None:
    model = Transformer()
    stream_blocks(model, CARD)
    assert model.before.weight.is_meta
    assert model.scale.is_meta
    seen = []
    for block in model.blocks:
        block.linear.register_forward_hook(lambda *_: seen.append(_blocks_on_card(model)))
    model(torch.zeros(2, 4, device=CARD))
    assert seen == [[0], [1], [2]]
    assert _devices(model.blocks) == {"cpu"}


def test_streaming_keeps_the_weights() -> None:
    model = Transformer()
    before = {name: tensor.clone() for name, tensor in model.blocks.state_dict().items()}
    addresses = [tensor.data_ptr() for tensor in model.blocks.parameters()]
    stream_blocks(model, CARD)
    model(torch.zeros(2, 4, device=CARD))
    after = model.blocks.state_dict()
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())
    assert [tensor.data_ptr() for tensor in model.blocks.parameters()] == addresses


def test_streaming_takes_a_block_back_after_an_error() -> None:
    model = Transformer()
    stream_blocks(model, CARD)

    def stop(*_: object) -> None:
        raise RuntimeError

    model.blocks[1].linear.register_forward_pre_hook(stop)
    with pytest.raises(RuntimeError):
        model(torch.zeros(2, 4, device=CARD))
    assert _devices(model.blocks) == {"cpu"}


@pytest.mark.parametrize(("offload", "on_card"), [("none", True), ("blocks", False)])
def test_place_follows_the_choice(offload: Offload, on_card: bool) -> None:
    model = Transformer()
    streamed = place(model, CARD, offload=offload, num_tokens=1, width=4)
    assert streamed is not on_card
    assert _devices(model.blocks) == ({"meta"} if on_card else {"cpu"})


def test_place_streams_nothing_on_a_cpu() -> None:
    model = Transformer()
    assert not place(model, torch.device("cpu"), offload="blocks", num_tokens=1, width=4)
    assert not model.blocks[0]._forward_pre_hooks


def test_weight_bytes_counts_packed_weights() -> None:
    assert weight_bytes(Block()) == 4 * (16 + 4) + 8


@pytest.mark.gpu
@pytest.mark.parametrize(("num_tokens", "streamed"), [(1, False), (10**12, True)])
def test_place_chooses_by_free_memory(num_tokens: int, streamed: bool) -> None:
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    device = torch.device("cuda")
    torch.manual_seed(0)
    model, x = Transformer(), torch.rand(2, 4)
    expected = model(x)
    assert place(model, device, offload="auto", num_tokens=num_tokens, width=4) is streamed
    assert torch.allclose(model(x.to(device)).cpu(), expected, atol=1e-6)
