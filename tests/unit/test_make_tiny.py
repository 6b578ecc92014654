"""The tiny set: released names and formats, the same bytes every time, values of order one."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch
from gguf import GGUFReader
from safetensors import safe_open
from safetensors.torch import load_file
from sentencepiece import SentencePieceProcessor

from comfyui_multitalk.dev.make_tiny import main, make_tiny
from comfyui_multitalk.dev.tiny import vae, wan
from comfyui_multitalk.multitalk_core.model.audio_tokens import AudioContext
from comfyui_multitalk.multitalk_core.model.dit import MultiTalkModel

if TYPE_CHECKING:
    from comfyui_multitalk.dev.make_tiny import TinySet


def test_make_tiny_twice_gives_the_same_bytes(tiny: TinySet, tmp_path: Path) -> None:
    again = make_tiny(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(f.name for f in again.files)
    for first, second in zip(tiny.files, again.files, strict=True):
        assert first.read_bytes() == second.read_bytes(), first.name


def test_make_tiny_if_missing_leaves_a_complete_set_alone(tiny: TinySet, tmp_path: Path) -> None:
    for file in tiny.files:
        (tmp_path / file.name).write_bytes(b"mine")
    assert main([str(tmp_path), "--if-missing"]) == 0
    assert all((tmp_path / file.name).read_bytes() == b"mine" for file in tiny.files)


def test_tiny_base_mixes_types_around_a_patch_embedding_of_five_dimensions(tiny: TinySet) -> None:
    reader = GGUFReader(tiny.base)
    tensors = {tensor.name: tensor for tensor in reader.tensors}
    types = {tensor.tensor_type.name for tensor in reader.tensors}
    assert {"Q4_K", "Q6_K", "F16", "F32"} <= types
    assert tensors["patch_embedding.weight"].shape.tolist() == [2, 2, 1, 36, 256]
    assert reader.fields["wan.attention.head_count"].contents() == 4


def test_tiny_vae_has_the_names_and_shapes_of_wan(repository: Path) -> None:
    golden = repository / "tests" / "parity" / "golden" / "vae_tiny.safetensors"
    parts = ("conv1.", "conv2.", "encoder.", "decoder.")
    with safe_open(golden, framework="pt") as file:
        names = [name for name in file.keys() if name.startswith(parts)]  # noqa: SIM118
        wanted = {name: tuple(file.get_slice(name).get_shape()) for name in names}
    assert {name: tuple(value.shape) for name, value in vae.vae(seed=0).items()} == wanted


def test_tiny_tokenizer_has_the_special_ids_of_umt5_and_writes_any_script(tiny: TinySet) -> None:
    model = load_file(tiny.text_encoder)["spiece_model"].numpy().tobytes()
    pieces = SentencePieceProcessor(model_proto=model)
    assert (pieces.pad_id(), pieces.eos_id(), pieces.unk_id()) == (0, 1, 2)
    assert 500 < pieces.get_piece_size() <= 2000
    text = "A woman is talking, 色调艳丽"
    assert pieces.decode(pieces.encode(text)) == text


def test_tiny_transformer_keeps_values_of_order_one() -> None:
    base, adapter = wan.base_and_adapter(seed=0)
    model = MultiTalkModel(wan.CONFIG)
    model.load_state_dict({**base, **adapter})
    generator = torch.Generator().manual_seed(0)

    def noise(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator)

    with torch.no_grad():
        velocity = model(
            noise(1, 16, 2, 4, 4),
            torch.tensor([700.0]),
            condition=noise(1, 20, 2, 4, 4),
            text=noise(1, 3, 64),
            image=noise(1, 257, 64),
            audio=AudioContext(model.project_audio(noise(1, 5, 5, 12, 32))),
        )
    assert 0.5 < velocity.std() < 2


@pytest.mark.parametrize("name", ["base", "adapter", "lora", "vae", "wav2vec2", "clip_vision"])
def test_tiny_file_is_small(tiny: TinySet, name: str) -> None:
    assert 10_000 < getattr(tiny, name).stat().st_size < 4_000_000
