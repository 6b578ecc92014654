"""Block swap: each block lent its weights in turn, the masters in main memory.

The meta device stands in for a card: it is another device than the CPU, and every machine has it.
Where numbers count the device is the CPU itself, which has no streams but the same two slots.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from comfyui_multitalk.multitalk_core.model.audio_tokens import AudioContext
from comfyui_multitalk.multitalk_core.model.dit import MultiTalkModel
from comfyui_multitalk.standalone.streaming import BlockStream, stream_blocks
from comfyui_multitalk.tests.support.transformer import small_inputs, small_model

CARD = torch.device("meta")
CPU = torch.device("cpu")


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)
        self.register_buffer("packed", torch.arange(7, dtype=torch.uint8))
        self.register_buffer("factor", torch.rand(3, 2, dtype=torch.bfloat16), persistent=False)
        self.register_buffer("nothing", torch.empty(0))

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x) + self.packed.sum() + self.factor.float().mean()


class Transformer(nn.Module):
    def __init__(self, num_blocks: int = 3) -> None:
        super().__init__()
        self.before = nn.Linear(4, 4)
        self.after = nn.Linear(4, 4)
        self.after.weight = self.before.weight
        self.scale = nn.Parameter(torch.ones(4))
        self.blocks = nn.ModuleList(Block() for _ in range(num_blocks))

    def forward(self, x: Tensor) -> Tensor:
        x = self.before(x) * self.scale
        for block in self.blocks:
            x = block(x)
        return self.after(x)


def _stream(model: nn.Module, device: torch.device) -> BlockStream:
    return stream_blocks(model, model.blocks, device)


def _devices(model: nn.Module) -> set[str]:
    return {tensor.device.type for tensor in (*model.parameters(), *model.buffers())}


def _storages(model: nn.Module) -> set[int]:
    tensors = (*model.parameters(), *model.buffers())
    return {tensor.untyped_storage().data_ptr() for tensor in tensors}


def _blocks_on_card(model: Transformer) -> list[int]:
    return [i for i, block in enumerate(model.blocks) if _devices(block) == {"meta"}]


def _before(block: Block, act: Callable[[], object]) -> None:
    block.linear.register_forward_pre_hook(lambda *_: act() and None)


@torch.no_grad()
def test_streaming_lends_one_block_at_a_time() -> None:
    model = Transformer()
    _stream(model, CARD)
    assert model.before.weight.is_meta
    assert model.scale.is_meta
    assert model.after.weight is model.before.weight
    seen: list[list[int]] = []
    for block in model.blocks:
        _before(block, lambda: seen.append(_blocks_on_card(model)))
    model(torch.zeros(2, 4, device=CARD))
    assert seen == [[0], [1], [2]]
    assert _devices(model.blocks) == {"cpu"}


def test_streaming_keeps_the_weights_in_one_stretch_a_block() -> None:
    model = Transformer()
    before = {name: tensor.clone() for name, tensor in model.blocks.state_dict().items()}
    _stream(model, CARD)
    masters = [*model.blocks.parameters(), *model.blocks.buffers()]
    assert [len(_storages(block)) for block in model.blocks] == [1, 1, 1]
    assert all(tensor.storage_offset() * tensor.itemsize % 256 == 0 for tensor in masters)
    model(torch.zeros(2, 4, device=CARD))
    after = model.blocks.state_dict()
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())
    assert all(
        new is old
        for new, old in zip(
            [*model.blocks.parameters(), *model.blocks.buffers()], masters, strict=True
        )
    )


@pytest.mark.parametrize("num_blocks", [0, 1, 2, 3])
@torch.no_grad()
def test_streaming_gives_what_the_whole_model_gives(num_blocks: int) -> None:
    torch.manual_seed(1)
    model = Transformer(num_blocks)
    inputs = [torch.rand(2, 4) for _ in range(3)]
    expected = [model(x) for x in inputs]
    _stream(model, CPU)
    assert all(torch.equal(model(x), y) for x, y in zip(inputs, expected, strict=True))


@torch.no_grad()
def test_streaming_copies_each_block_once_a_forward() -> None:
    model = Transformer()
    stream = _stream(model, CPU)
    counted = []
    for _ in range(3):
        model(torch.zeros(2, 4))
        counted.append(stream.copies)
    assert counted == [4, 7, 10]  # the first block of the next forward is on its way


@torch.no_grad()
def test_streaming_brings_the_next_block_while_one_computes() -> None:
    model = Transformer()
    stream = _stream(model, CPU)
    seen: list[int] = []
    for block in model.blocks:
        _before(block, lambda: seen.append(stream.copies))
    model(torch.zeros(2, 4))
    assert seen == [2, 3, 4]


@pytest.mark.parametrize("stopped", [0, 1, 2])
@pytest.mark.parametrize("reason", [RuntimeError, torch.OutOfMemoryError, KeyboardInterrupt])
@torch.no_grad()
def test_streaming_is_whole_after_an_interrupted_forward(
    stopped: int, reason: type[BaseException]
) -> None:
    torch.manual_seed(2)
    model, x = Transformer(), torch.rand(2, 4)
    expected = model(x)
    _stream(model, CPU)
    storages = _storages(model.blocks)

    def stop(*_: object) -> None:
        raise reason

    handle = model.blocks[stopped].linear.register_forward_pre_hook(stop)
    with pytest.raises(reason):
        model(x)
    if reason is not KeyboardInterrupt:
        assert _storages(model.blocks) == storages
    handle.remove()
    assert torch.equal(model(x), expected)
    assert torch.equal(model(x), expected)
    assert _storages(model.blocks) == storages


def _forward(model: MultiTalkModel, device: torch.device) -> Tensor:
    inputs = small_inputs(speakers=2)
    moved = inputs._replace(**{k: v.to(device) for k, v in inputs._asdict().items()})
    return model(
        moved.latents,
        moved.timestep,
        condition=moved.condition,
        text=moved.text,
        image=moved.image,
        audio=AudioContext(model.project_audio(moved.windows), moved.token_masks),
    )


@torch.no_grad()
def test_streaming_the_transformer_changes_no_bit() -> None:
    expected = _forward(small_model(), CPU)
    model = small_model()
    _stream(model, CPU)
    for _ in range(2):
        assert torch.equal(_forward(model, CPU), expected)


@pytest.fixture
def cuda() -> torch.device:
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    return torch.device("cuda", torch.cuda.current_device())


@pytest.mark.gpu
@torch.no_grad()
def test_streaming_on_a_card_changes_no_bit(cuda: torch.device) -> None:
    expected = _forward(small_model().to(cuda), cuda)
    model = small_model()
    _stream(model, cuda)
    assert all(parameter.is_pinned() for parameter in model.blocks.parameters())
    for _ in range(5):
        assert torch.equal(_forward(model, cuda), expected)


class Wide(nn.Module):
    """Blocks of 64 MiB each."""

    def __init__(self, num_blocks: int = 6) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(nn.Linear(4096, 4096, bias=False) for _ in range(num_blocks))

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x)
        return x


@pytest.mark.gpu
@torch.no_grad()
def test_streaming_holds_two_blocks_on_the_card(cuda: torch.device) -> None:
    model, x = Wide(), torch.rand(8, 4096, device=cuda)
    expected = Wide.forward(model.to(cuda), x)
    model.to("cpu")
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated(cuda)
    torch.cuda.reset_peak_memory_stats(cuda)
    _stream(model, cuda)
    for _ in range(3):
        assert torch.equal(model(x), expected)
    assert torch.cuda.max_memory_allocated(cuda) - before < 2.5 * 2**26


@pytest.mark.gpu
@torch.no_grad()
def test_streaming_copies_while_a_block_computes(cuda: torch.device) -> None:
    model, x = Wide(2), torch.rand(8, 4096, device=cuda)
    stream = _stream(model, cuda)
    model(x)
    torch.cuda.synchronize()
    computed = torch.cuda.Event()

    def work(*_: object) -> None:
        torch.cuda._sleep(2_000_000_000)  # about a second of the card's clock
        computed.record()

    model.blocks[0].register_forward_hook(work)
    model.blocks[0](x)
    copied = torch.cuda.Event()
    copied.record(stream.stream)
    copied.synchronize()
    assert not computed.query()
    torch.cuda.synchronize()


@pytest.mark.gpu
@torch.no_grad()
def test_streaming_is_right_however_late_the_copies_are(cuda: torch.device) -> None:
    model, x = Wide(3), torch.rand(8, 4096, device=cuda)
    expected = Wide.forward(model.to(cuda), x)
    model.to("cpu")
    stream = _stream(model, cuda)
    for _ in range(3):
        with torch.cuda.stream(stream.stream):
            torch.cuda._sleep(200_000_000)
        assert torch.equal(model(x), expected)
