"""UMT5 and CLIP vision built from shapes, held to what `transformers` itself gives."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor
from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection, UMT5Config
from transformers import UMT5EncoderModel as Umt5

from comfyui_multitalk.multitalk_core.errors import WeightsError
from comfyui_multitalk.multitalk_core.inputs.photo import resize_for_clip
from comfyui_multitalk.standalone.encoders import (
    TextEncoder,
    VisionEncoder,
    clean_prompt,
    load_image_encoder,
    load_text_encoder,
)
from comfyui_multitalk.tests.support.umt5_gguf import write_gguf_text_encoder
from comfyui_multitalk.wan_gguf_loader.errors import GGUFError
from comfyui_multitalk.wan_gguf_loader.files import open_weights

if TYPE_CHECKING:
    from comfyui_multitalk.dev.make_tiny import TinySet

CPU = torch.device("cpu")


def _text(path: Path) -> TextEncoder:
    with open_weights(path) as file:
        return load_text_encoder(file, device=CPU, dtype=torch.float32)


def _image(path: Path) -> VisionEncoder:
    with open_weights(path) as file:
        return load_image_encoder(file, device=CPU, dtype=torch.float32)


def _tensors(path: Path) -> dict[str, Tensor]:
    with safe_open(path, framework="pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118


@pytest.fixture(scope="module")
def text_encoder(tiny: TinySet) -> TextEncoder:
    return _text(tiny.text_encoder)


def test_text_equals_the_prompt_padded_to_512_under_a_mask(text_encoder: TextEncoder) -> None:
    """Upstream pads to 512, masks, and cuts to the real length."""
    prompt = "a woman talks to the camera"
    ids = text_encoder.tokenize(prompt)
    padded = torch.zeros(1, 512, dtype=torch.long)
    padded[:, : ids.shape[1]] = ids
    with torch.inference_mode():
        states = text_encoder.model(input_ids=padded, attention_mask=(padded != 0).long())
    expected = states.last_hidden_state[:, : ids.shape[1]]
    (ours,) = text_encoder.encode([prompt])
    assert (ours - expected).norm() / expected.norm() < 1e-5


def test_text_streamed_block_by_block_is_the_same_each_time(
    tiny: TinySet, text_encoder: TextEncoder
) -> None:
    with open_weights(tiny.text_encoder) as file:
        streamed = load_text_encoder(file, device=CPU, dtype=torch.float32, streamed=True)
    prompts = ["a woman talks", "static"]
    for _ in range(2):
        for ours, expected in zip(
            streamed.encode(prompts), text_encoder.encode(prompts), strict=True
        ):
            assert torch.equal(ours, expected)
        assert not streamed.model.encoder.block[0]._forward_pre_hooks


def test_text_sizes_come_from_shapes(tmp_path: Path, tiny: TinySet) -> None:
    """Another width, head count, depth and number of buckets than those of the tiny set."""
    torch.manual_seed(0)
    config = UMT5Config(
        vocab_size=3000, d_model=48, d_kv=10, d_ff=72, num_layers=3, num_heads=6,
        relative_attention_num_buckets=16,
    )  # fmt: skip
    theirs = Umt5(config).eval()
    tensors = dict(theirs.state_dict())
    tensors.pop("encoder.embed_tokens.weight", None)
    tensors["spiece_model"] = _tensors(tiny.text_encoder)["spiece_model"]
    path = tmp_path / "umt5.safetensors"
    save_file({name: tensor.clone() for name, tensor in tensors.items()}, path)
    ours = _text(path)
    assert type(ours.model) is Umt5
    ids = ours.tokenize("two people talk")
    with torch.inference_mode():
        expected = theirs(input_ids=ids).last_hidden_state
    assert torch.allclose(ours.encode(["two people talk"])[0], expected, atol=1e-6)


def test_text_encoder_in_gguf_gives_the_same_tokens_and_encodings(
    tmp_path: Path, tiny: TinySet
) -> None:
    """Equal to the decoded weights in safetensors, bit for bit."""
    packed, plain = tmp_path / "umt5.gguf", tmp_path / "umt5.safetensors"
    write_gguf_text_encoder(packed, tiny.text_encoder)
    with open_weights(packed) as file:
        decoded = file.weights()
    save_file(decoded | {"spiece_model": _tensors(tiny.text_encoder)["spiece_model"]}, plain)
    ours, theirs = _text(packed), _text(plain)
    prompt = "a woman talks to the camera,  \uff26\uff55ll width, \xbd \xe9migr\xe9; \u65e5\u672c"
    assert torch.equal(ours.tokenize(prompt), theirs.tokenize(prompt))
    assert torch.equal(ours.encode([prompt])[0], theirs.encode([prompt])[0])


@pytest.mark.parametrize("key", ["scores", "token_type", "tokens"])
def test_text_encoder_in_gguf_with_a_damaged_tokenizer_is_refused(
    tmp_path: Path, tiny: TinySet, key: str
) -> None:
    packed = tmp_path / "umt5.gguf"
    write_gguf_text_encoder(packed, tiny.text_encoder)
    old = f"tokenizer.ggml.{key}".encode()
    packed.write_bytes(packed.read_bytes().replace(old, old[:-1] + b"x"))
    with pytest.raises(GGUFError, match=r"umt5\.gguf: .*tokenizer"):
        _text(packed)


def test_text_longer_than_512_tokens_is_cut_before_the_end_mark_and_said(
    text_encoder: TextEncoder, caplog: pytest.LogCaptureFixture
) -> None:
    text_encoder.tokenize("talking " * 60)
    assert not caplog.messages
    ids = text_encoder.tokenize("talking " * 600)
    (said,) = caplog.messages
    assert re.fullmatch(
        r"The prompt 'talking talking .*'... has \d+ tokens; the model reads 512\.", said
    )
    assert ids.shape == (1, 512)
    assert ids[0, -1] == 1
    assert (ids[0, :-1] != 1).all()


def test_text_of_an_empty_prompt_is_the_end_mark(text_encoder: TextEncoder) -> None:
    assert text_encoder.tokenize("").tolist() == [[1]]
    assert text_encoder.encode([""])[0].shape[1] == 1


def test_text_embedding_is_held_once(text_encoder: TextEncoder) -> None:
    model = text_encoder.model
    assert model.shared.weight is model.encoder.embed_tokens.weight


@pytest.mark.parametrize(
    ("prompt", "cleaned"),
    [
        ("  a \n\t b  ", "a b"),
        ("rock &amp;amp; roll &lt;live&gt;", "rock & roll <live>"),
        ("Café, 你好", "Café, 你好"),
    ],
)
def test_prompt_is_cleaned_as_upstream_does(prompt: str, cleaned: str) -> None:
    assert clean_prompt(prompt) == cleaned


def _drop(*names: str) -> Callable[[dict[str, Tensor]], None]:
    return lambda tensors: [tensors.pop(name) for name in names] and None


def _break_tokenizer(tensors: dict[str, Tensor]) -> None:
    tensors["spiece_model"] = tensors["spiece_model"][:100].clone()


def _shrink_vocabulary(tensors: dict[str, Tensor]) -> None:
    tensors["shared.weight"] = tensors["shared.weight"][:50].clone()


def _narrow_a_layer(tensors: dict[str, Tensor]) -> None:
    name = "encoder.block.1.layer.1.DenseReluDense.wo.weight"
    tensors[name] = tensors[name][:, :-1].clone()


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (_drop("spiece_model"), r"no tokenizer in this file .* Put spiece\.model of"),
        (_drop("shared.weight"), "lacks 'shared.weight'"),
        (_drop("encoder.final_layer_norm.weight"), "lacks 1 of"),
        (_break_tokenizer, "tokenizer inside .* cannot be read"),
        (_shrink_vocabulary, "belong together"),
        (_narrow_a_layer, r"wo.weight' has the shape \[64, 127\]"),
    ],
)
def test_text_file_that_does_not_fit_is_refused(
    tmp_path: Path, tiny: TinySet, damage: Callable[[dict[str, Tensor]], None], says: str
) -> None:
    tensors = _tensors(tiny.text_encoder)
    damage(tensors)
    save_file(tensors, tmp_path / "bad.safetensors")
    with pytest.raises((WeightsError, GGUFError), match=says) as error:
        _text(tmp_path / "bad.safetensors")
    assert str(error.value).startswith("bad.safetensors")


def _vision(**sizes: int) -> CLIPVisionModelWithProjection:
    torch.manual_seed(0)
    config = CLIPVisionConfig(
        **{"intermediate_size": 96, "num_hidden_layers": 3, "patch_size": 28, **sizes},
        image_size=224,
        hidden_act="gelu",
        projection_dim=8,
    )
    return CLIPVisionModelWithProjection(config).eval()


@pytest.mark.parametrize(
    ("width", "heads", "metadata"),
    [(128, 2, None), (64, 4, {"num_heads": "4"}), (1280, 16, None)],
)
def test_image_tokens_are_the_state_before_the_last_block(
    tmp_path: Path, width: int, heads: int, metadata: dict[str, str] | None
) -> None:
    theirs = _vision(hidden_size=width, num_attention_heads=heads)
    path = tmp_path / "clip.safetensors"
    tensors = {
        name if name.startswith(("vision_model.", "visual_")) else f"vision_model.{name}": tensor
        for name, tensor in theirs.state_dict().items()
    }
    save_file(tensors, path, metadata=metadata)
    ours = _image(path)
    assert ours.model.config.num_attention_heads == heads
    picture = torch.rand(1, 3, 48, 80) * 2 - 1
    # the same tower without its last block ends in the state that is wanted, before its final norm
    tower = theirs.vision_model
    tower.encoder.layers = tower.encoder.layers[:-1]
    with torch.inference_mode():
        expected = tower(pixel_values=resize_for_clip(picture)).last_hidden_state
    assert torch.allclose(ours.encode(picture), expected, atol=1e-5)


def test_image_file_for_another_picture_size_is_refused(tmp_path: Path) -> None:
    tensors = _vision(hidden_size=64, num_attention_heads=1).state_dict()
    name = next(name for name in tensors if name.endswith("position_embedding.weight"))
    tensors[name] = torch.zeros(145, 64)
    save_file(dict(tensors), tmp_path / "clip.safetensors")
    with pytest.raises(WeightsError, match="pictures of 336 pixels"):
        _image(tmp_path / "clip.safetensors")


def test_text_encoder_as_image_encoder_is_refused(tiny: TinySet) -> None:
    with pytest.raises(WeightsError, match="lacks 'vision_model"):
        _image(tiny.text_encoder)
