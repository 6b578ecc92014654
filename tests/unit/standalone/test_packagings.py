"""Encoders and VAE of the command in every packaging: the weights of the plain files."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch
from diffusers import AutoencoderKLWan
from safetensors.torch import load_file, save_file
from torch import Tensor

from comfyui_multitalk.standalone.encoders import (
    TextEncoder,
    VisionEncoder,
    load_image_encoder,
    load_text_encoder,
)
from comfyui_multitalk.standalone.request import ModelFiles
from comfyui_multitalk.standalone.vae import load_vae
from comfyui_multitalk.standalone.weights import OpenFiles
from comfyui_multitalk.tests.support import spellings
from comfyui_multitalk.tests.support.spellings import Tensors
from comfyui_multitalk.tools.gguf_writer import Entry, write_gguf
from comfyui_multitalk.wan_gguf_loader.errors import GGUFError
from comfyui_multitalk.wan_gguf_loader.files import open_weights

if TYPE_CHECKING:
    from comfyui_multitalk.dev.make_tiny import TinySet

CPU = torch.device("cpu")


def _text(path: Path) -> TextEncoder:
    with open_weights(path, part="text_encoder") as file:
        return load_text_encoder(file, device=CPU, dtype=torch.float32)


def _image(path: Path) -> VisionEncoder:
    with open_weights(path, part="clip_vision") as file:
        return load_image_encoder(file, device=CPU, dtype=torch.float32)


def _accepted(tiny: TinySet, **changed: Path) -> OpenFiles:
    """The command takes the file for what it is."""
    files = ModelFiles(
        base=tiny.base,
        adapter=tiny.adapter,
        loras=(),
        wav2vec2=tiny.wav2vec2,
        vae=tiny.vae,
        text_encoder=tiny.text_encoder,
        clip_vision=tiny.clip_vision,
    )
    return OpenFiles(replace(files, **changed))


@pytest.mark.parametrize(
    ("names", "tokenizer"),
    [
        (["umt5-xxl-enc-bf16.safetensors"], "spiece.model"),
        (["umt5-xxl-enc-bf16.safetensors"], "google/umt5-xxl/spiece.model"),
        (
            [f"text_encoder/model-0000{n}-of-00002.safetensors" for n in (1, 2)],
            "tokenizer/spiece.model",
        ),
    ],
    ids=["beside", "wan", "diffusers"],
)
def test_text_file_in_wans_names_takes_the_tokenizer_beside_it(
    tmp_path: Path,
    tiny: TinySet,
    caplog: pytest.LogCaptureFixture,
    names: list[str],
    tokenizer: str,
) -> None:
    tensors = load_file(tiny.text_encoder)
    for path in (*(tmp_path / name for name in names), tmp_path / tokenizer):
        path.parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / tokenizer).write_bytes(tensors["spiece_model"].numpy().tobytes())
    spelled = list(spellings.wan_umt5(tensors).items())
    for number, name in enumerate(names):
        save_file(dict(spelled[number :: len(names)]), tmp_path / name)
    ours, theirs = _text(tmp_path / names[0]), _text(tiny.text_encoder)
    assert torch.equal(ours.encode(["two talk"])[0], theirs.encode(["two talk"])[0])
    assert not caplog.messages
    _accepted(tiny, text_encoder=tmp_path / names[0])


def test_text_file_with_a_prefix_and_the_embedding_twice_is_read_without_a_warning(
    tmp_path: Path, tiny: TinySet, caplog: pytest.LogCaptureFixture
) -> None:
    tensors = load_file(tiny.text_encoder)
    tensors["encoder.embed_tokens.weight"] = tensors["shared.weight"].clone()
    tokenizer = tensors.pop("spiece_model")
    prefix = spellings.prefixed("text_encoders.umt5xxl.transformer.")
    path = tmp_path / "checkpoint.safetensors"
    save_file(prefix(tensors) | {"text_encoders.spiece_model": tokenizer}, path)
    ours, theirs = _text(path), _text(tiny.text_encoder)
    assert torch.equal(ours.encode(["two talk"])[0], theirs.encode(["two talk"])[0])
    assert not caplog.messages


@pytest.mark.parametrize("type", ["I8", "F16"])
def test_text_gguf_takes_the_tokenizer_from_a_tensor(
    tmp_path: Path, tiny: TinySet, type: str
) -> None:
    """In `transformers`' names, and as bytes or numbers of another type."""
    tensors = load_file(tiny.text_encoder)
    tokenizer = tensors["spiece_model"]
    stored = tokenizer.view(torch.int8) if type == "I8" else tokenizer.half()
    tensors["spiece_model"] = stored
    path = tmp_path / "umt5.gguf"
    entries = [
        Entry(name, tuple(tensor.shape), type if name == "spiece_model" else "F16")
        for name, tensor in tensors.items()
    ]
    write_gguf(path, entries, list(tensors.values()), metadata={"general.architecture": "pig"})
    ours, theirs = _text(path), _text(tiny.text_encoder)
    assert torch.equal(ours.encode(["two talk"])[0], theirs.encode(["two talk"])[0])


def test_tokenizer_of_another_text_encoder_beside_the_file_is_refused(
    tmp_path: Path, tiny: TinySet
) -> None:
    tensors = load_file(tiny.text_encoder)
    tokenizer = tensors["spiece_model"].numpy().tobytes()
    spelled = spellings.wan_umt5(tensors)
    spelled["token_embedding.weight"] = torch.zeros(3000, 64)
    save_file(spelled, tmp_path / "umt5.safetensors")
    (tmp_path / "spiece.model").write_bytes(tokenizer)
    with pytest.raises(GGUFError, match=r"spiece\.model: .*umt5\.safetensors has 3000 words"):
        _text(tmp_path / "umt5.safetensors")
    (tmp_path / "spiece.model").write_bytes(b"<html>not found</html>")
    with pytest.raises(GGUFError, match=r"spiece\.model: .*22 bytes\) cannot be read"):
        _text(tmp_path / "umt5.safetensors")


def _without_final_norm(tensors: Mapping[str, Tensor]) -> Tensors:
    return {name: tensor for name, tensor in tensors.items() if "post_layernorm" not in name}


@pytest.mark.parametrize(
    "spell",
    [
        spellings.open_clip,
        spellings.wan_clip,
        spellings.hugging_face_clip,
        spellings.bare_clip,
        spellings.prefixed("image_encoder."),
        _without_final_norm,
    ],
    ids=["open_clip", "wan", "hugging_face", "bare", "prefix", "no_final_norm"],
)
def test_image_file_in_every_spelling_gives_the_same_tokens_without_a_warning(
    tmp_path: Path, tiny: TinySet, caplog: pytest.LogCaptureFixture, spell: spellings.Spell
) -> None:
    path = tmp_path / "clip.safetensors"
    save_file(spell(load_file(tiny.clip_vision)), path, metadata={"num_heads": "4"})
    picture = torch.rand(1, 3, 48, 80) * 2 - 1
    assert torch.equal(_image(path).encode(picture), _image(tiny.clip_vision).encode(picture))
    assert not caplog.messages
    _accepted(tiny, clip_vision=path)


@pytest.mark.parametrize(
    "pack",
    [spellings.plain_fp8, spellings.scaled_fp8, spellings.int8],
    ids=["plain_fp8", "scaled_fp8", "int8"],
)
def test_quantised_files_give_what_their_decoded_values_give(
    tmp_path: Path, tiny: TinySet, caplog: pytest.LogCaptureFixture, pack: spellings.Spell
) -> None:
    packed, plain = tmp_path / "packed.safetensors", tmp_path / "plain.safetensors"
    text, image = pack(load_file(tiny.text_encoder)), pack(load_file(tiny.clip_vision))
    save_file(text, packed)
    save_file(spellings.decoded(text), plain)
    ours, theirs = _text(packed), _text(plain)
    assert torch.equal(ours.encode(["two people talk"])[0], theirs.encode(["two people talk"])[0])
    _accepted(tiny, text_encoder=packed)
    save_file(image, packed, metadata={"num_heads": "4"})
    save_file(spellings.decoded(image), plain, metadata={"num_heads": "4"})
    picture = torch.rand(1, 3, 48, 80) * 2 - 1
    assert torch.equal(_image(packed).encode(picture), _image(plain).encode(picture))
    _accepted(tiny, clip_vision=packed)
    assert not caplog.messages


@pytest.mark.parametrize("pack", [spellings.scaled_fp8, spellings.int8], ids=["fp8", "int8"])
@pytest.mark.parametrize("part", ["wav2vec2", "vae"])
def test_quantised_voice_encoder_and_vae_have_their_decoded_values(
    tmp_path: Path, tiny: TinySet, part: str, pack: spellings.Spell
) -> None:
    """Convolutions too."""
    tensors = pack(load_file(getattr(tiny, part)))
    paths = tmp_path / "packed.safetensors", tmp_path / "plain.safetensors"
    for path, content in zip(paths, (tensors, spellings.decoded(tensors)), strict=True):
        save_file(content, path, metadata={"num_heads": "4"})
    ours, expected = (
        _vae(path) if part == "vae" else _accepted(tiny, wav2vec2=path).load_wav2vec2().state_dict()
        for path in paths
    )
    assert all(torch.equal(ours[name], expected[name]) for name in expected)


@pytest.mark.parametrize(
    ("part", "layer"),
    [
        ("text_encoder", "encoder.block.0.layer.0.SelfAttention.q"),
        ("clip_vision", "vision_model.encoder.layers.0.mlp.fc1"),
        ("wav2vec2", "wav2vec2.encoder.layers.0.attention.q_proj"),
        ("vae", "conv1"),
    ],
)
def test_scale_of_an_unknown_name_is_refused(
    tmp_path: Path, tiny: TinySet, part: str, layer: str
) -> None:
    path = tmp_path / "odd.safetensors"
    tensors = load_file(getattr(tiny, part)) | {f"{layer}.rescale": torch.tensor(0.5)}
    save_file(tensors, path, metadata={"num_heads": "4"})
    files = _accepted(tiny, **{part: path})
    loads = {"text_encoder": _text, "clip_vision": _image, "vae": _vae}
    with pytest.raises(GGUFError, match=r"^odd\.safetensors: .*rescale.*would be wrong"):
        files.load_wav2vec2() if part == "wav2vec2" else loads[part](path)


def _vae(path: Path) -> dict[str, Tensor]:
    with open_weights(path, part="vae") as file:
        return load_vae(file, device=CPU, dtype=torch.float32).model.state_dict()


def test_diffusers_names_of_the_vae_are_those_of_its_class(tiny: TinySet) -> None:
    with torch.device("meta"):
        names = AutoencoderKLWan(base_dim=32, z_dim=16).state_dict()
    assert spellings.diffusers_vae(load_file(tiny.vae)).keys() == names.keys()


def _in_a_checkpoint(tensors: Mapping[str, Tensor]) -> Tensors:
    base = {"model.diffusion_model.blocks.0.self_attn.q.weight": torch.ones(2, 2)}
    return base | spellings.prefixed("first_stage_model.")(tensors)


@pytest.mark.parametrize(
    "spell",
    [
        spellings.prefixed("model."),
        spellings.prefixed("vae."),
        _in_a_checkpoint,
        spellings.diffusers_vae,
        lambda tensors: spellings.prefixed("vae.")(spellings.diffusers_vae(tensors)),
    ],
    ids=["model", "vae", "checkpoint", "diffusers", "diffusers_prefix"],
)
def test_vae_in_every_spelling_has_the_same_weights(
    tmp_path: Path, tiny: TinySet, spell: spellings.Spell
) -> None:
    path = tmp_path / "vae.safetensors"
    save_file(spell(load_file(tiny.vae)), path)
    ours, expected = _vae(path), _vae(tiny.vae)
    assert ours.keys() == expected.keys()
    assert all(torch.equal(ours[name], expected[name]) for name in expected)
    _accepted(tiny, vae=path)


def test_vae_in_gguf_has_the_same_weights(tmp_path: Path, tiny: TinySet) -> None:
    tensors = {name: tensor.half() for name, tensor in load_file(tiny.vae).items()}
    path, plain = tmp_path / "vae.gguf", tmp_path / "vae.safetensors"
    save_file(tensors, plain)
    entries = [Entry(name, tuple(tensor.shape), "F16") for name, tensor in tensors.items()]
    write_gguf(path, entries, list(tensors.values()), metadata={"general.architecture": "pig"})
    ours, expected = _vae(path), _vae(plain)
    assert all(torch.equal(ours[name], expected[name]) for name in expected)
