"""The tiny text encoder's tokenizer, its sentences and its file."""

from __future__ import annotations

from pathlib import Path

import pytest
import sentencepiece
import torch
from transformers import UMT5EncoderModel

from comfyui_multitalk.dev.make_tiny import TinySet
from comfyui_multitalk.dev.train_tiny import text
from comfyui_multitalk.dev.train_tiny.faces import BACKGROUND, HAIR, prompts
from comfyui_multitalk.dev.train_tiny.prompt_table import FILE_NAME, load_prompts
from comfyui_multitalk.standalone.encoders import load_text_encoder
from comfyui_multitalk.wan_gguf_loader.files import open_weights


@pytest.fixture(scope="module")
def tokenizer() -> bytes:
    return text.sentencepiece_model()


@pytest.fixture(scope="module")
def pieces(tokenizer: bytes) -> sentencepiece.SentencePieceProcessor:
    return sentencepiece.SentencePieceProcessor(model_proto=tokenizer)


@pytest.mark.parametrize(
    "prompt", [*prompts(1)[:3], prompts(2)[100], "Käse, 你好, 🙂 and 3.5 zebras", ""]
)
def test_tokenizer_gives_any_prompt_back(
    pieces: sentencepiece.SentencePieceProcessor, prompt: str
) -> None:
    assert pieces.decode(pieces.encode(prompt)) == prompt


@pytest.mark.parametrize("colour", sorted({*HAIR, *BACKGROUND}))
def test_tokenizer_has_every_colour_as_one_piece(
    pieces: sentencepiece.SentencePieceProcessor, colour: str
) -> None:
    assert len(pieces.encode(colour)) == 1


def test_tokenizer_has_the_special_ids_of_umt5(
    pieces: sentencepiece.SentencePieceProcessor,
) -> None:
    assert (pieces.pad_id(), pieces.eos_id(), pieces.unk_id(), pieces.bos_id()) == (0, 1, 2, -1)


def test_training_sentences_leave_the_held_out_pairs_out() -> None:
    for seed in range(300):
        seen = text.describe(text.np.random.default_rng(seed), held_out=False)
        unseen = text.describe(text.np.random.default_rng(seed), held_out=True)
        for example, expected in ((seen, False), (unseen, True)):
            first, _, wall = example.labels
            if first and wall:
                assert text.is_held_out(first, wall) == expected


def test_training_sentence_says_what_its_labels_tell() -> None:
    for seed in range(300):
        said, labels = text.describe(text.np.random.default_rng(seed), held_out=False)
        words = said.replace("-", " ").lower()
        for label, colours in zip(labels, (HAIR, HAIR, BACKGROUND), strict=True):
            assert not label or tuple(colours)[label - 1] in words


def test_text_file_is_read_by_the_command_and_the_table_holds_its_tokens(
    tmp_path: Path, tokenizer: bytes, pieces: sentencepiece.SentencePieceProcessor
) -> None:
    torch.manual_seed(0)
    model = UMT5EncoderModel(text.config(pieces.get_piece_size())).eval()
    text.save(tmp_path, model, tokenizer)
    with open_weights(TinySet(tmp_path).text_encoder) as file:
        encoder = load_text_encoder(file, device=torch.device("cpu"), dtype=torch.float32)
    table = load_prompts(tmp_path / FILE_NAME)
    assert table.keys() == {"", *prompts(1), *prompts(2)}
    for prompt in ("", prompts(1)[5], prompts(2)[9]):
        (tokens,) = encoder.encode([prompt])
        assert tokens.shape == (1, len(pieces.encode(prompt)) + 1, 64)
        assert table[prompt].dtype == torch.float32
        assert (table[prompt] - tokens[0]).norm() < 1e-3 * tokens.norm()
    assert not list(tmp_path.glob("*.part"))


def test_training_moves_the_encoder_the_same_way_each_time(tokenizer: bytes) -> None:
    one, two, longer = (text.train(tokenizer, steps=steps).state_dict() for steps in (1, 1, 2))
    name = "encoder.block.0.layer.0.SelfAttention.q.weight"
    assert torch.equal(one[name], two[name])
    assert not torch.equal(one[name], longer[name])
