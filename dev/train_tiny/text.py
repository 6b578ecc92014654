"""Stage `text`: a tiny UMT5 and its tokenizer that recognise colours of hair and wall.

    python -m comfyui_multitalk.dev.train_tiny text --out DIR

Through linear heads that are dropped afterwards, every output token learns to predict the first and
the second person's hair, the wall, and its own word. Some pairs of colours never occur in training;
the printed figure is measured on those. Class, file format and special ids are UMT5's. The stage
also encodes all sentences of `faces.prompts` for the training of the transformer.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np
import sentencepiece
import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import UMT5Config, UMT5EncoderModel

from ...standalone.encoders import load_text_encoder
from ...wan_gguf_loader.files import open_weights
from ..make_tiny import TinySet
from ..tiny import encoders as untrained
from ..tiny.save import save_weights
from .faces import BACKGROUND, HAIR, prompts
from .prompt_table import FILE_NAME as PROMPTS_FILE
from .prompt_table import save_prompts

STEPS = 1500
SEED = 5
NUM_HEADS = 4

_TEXT_DIM = 64
_NUM_PIECES = 1200
_BATCH = 64
_RATE = 3e-3
_WORD_WEIGHT = 0.3
_NONE = 0  # the class of what a sentence does not tell
_TEMPLATES = (
    "{one} in front of a {wall} wall, talking",
    "{one} in front of a {wall} wall",
    "{one} talking, {wall} background",
    "{wall} wall, {one}",
    "{one} speaks to the camera; the wall behind is {wall}.",
    "A portrait of {one} before a {wall} background, soft light",
    "The background is {wall}. {one}, looking straight ahead",
    "{one}, talking",
    "In the video {one} is talking.",
    "a room with a {wall} wall",
)
_PEOPLE = (
    "a person with {hair} hair",
    "a person with {hair} hair",
    "a woman with long {hair} hair",
    "a {hair}-haired man",
    "a girl who has {hair} hair and a {shirt} shirt",
    "a boy with short {hair} hair",
    "someone in a {shirt} jacket, hair {hair}",
)


class Example(NamedTuple):
    """A sentence and the colours it names."""

    text: str
    labels: tuple[int, int, int]
    """First hair, second hair, wall: 0 for nothing, else 1 + index into the colours."""


def sentencepiece_model() -> bytes:
    """Train the tokenizer on a page of our own text and on sentences about colours."""
    rng = np.random.default_rng(SEED)
    lines = [*untrained.page(), *prompts(1)]
    lines += [describe(rng, held_out=False).text for _ in range(1500)]
    return untrained.sentencepiece_model(lines, num_pieces=_NUM_PIECES)


def is_held_out(first: int, wall: int) -> bool:
    """Tell whether training never sees this pair of colours, given as 1 + index."""
    return (first + wall) % 5 == 0


def describe(rng: np.random.Generator, *, held_out: bool) -> Example:
    """Make a sentence about one or two people, with or without held-out pairs of colours."""
    hairs, walls = tuple(HAIR), tuple(BACKGROUND)
    while True:
        first, second = (int(1 + rng.integers(len(hairs))) for _ in range(2))
        wall = int(1 + rng.integers(len(walls)))
        if is_held_out(first, wall) == held_out:
            break
    template = str(rng.choice(_TEMPLATES))
    number = 1 + int(rng.random() < 0.4)
    people = [
        str(rng.choice(_PEOPLE)).format(hair=hairs[hair - 1], shirt=str(rng.choice(walls)))
        for hair in (first, second)[:number]
    ]
    text = template.format(one=" and ".join(people), wall=walls[wall - 1])
    tells_people, tells_wall = "{one}" in template, "{wall}" in template
    labels = (
        first if tells_people else _NONE,
        second if tells_people and number == 2 else _NONE,
        wall if tells_wall else _NONE,
    )
    return Example(text, labels)


def config(vocab_size: int) -> UMT5Config:
    """Give the sizes: two layers of 64 channels."""
    return UMT5Config(
        vocab_size=vocab_size,
        d_model=_TEXT_DIM,
        d_kv=16,
        d_ff=128,
        num_layers=2,
        num_heads=NUM_HEADS,
        feed_forward_proj="gated-gelu",
        dropout_rate=0.0,
    )


def train(tokenizer: bytes, *, steps: int) -> UMT5EncoderModel:
    """Train the encoder on sentences generated during training."""
    torch.manual_seed(SEED)
    pieces = sentencepiece.SentencePieceProcessor(model_proto=tokenizer)
    vocab_size = pieces.get_piece_size()
    model = UMT5EncoderModel(config(vocab_size))
    num_classes = (1 + len(HAIR), 1 + len(HAIR), 1 + len(BACKGROUND), vocab_size)
    heads = nn.ModuleList(nn.Linear(_TEXT_DIM, number) for number in num_classes)
    parameters = [*model.parameters(), *heads.parameters()]
    optimiser = torch.optim.AdamW(parameters, lr=_RATE, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
    page = untrained.page()
    for step in range(steps):
        rng = np.random.default_rng([SEED, step])
        batch = [describe(rng, held_out=False) for _ in range(_BATCH - 8)]
        batch += [Example(str(rng.choice(page)), (_NONE,) * 3) for _ in range(8)]
        loss = _loss(model, heads, pieces, batch)
        optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimiser.step()
        schedule.step()
        if (step + 1) % 250 == 0:
            sys.stdout.write(f"step {step + 1}  loss {loss.item():.3f}\n")
            sys.stdout.flush()
    return model.requires_grad_(False).eval()


def _loss(
    model: UMT5EncoderModel,
    heads: nn.ModuleList,
    pieces: sentencepiece.SentencePieceProcessor,
    batch: list[Example],
) -> Tensor:
    tokens = _padded(pieces, [example.text for example in batch])
    real = tokens != 0
    states = model(input_ids=tokens, attention_mask=real.long()).last_hidden_state[real]
    of_sentence = torch.arange(len(batch))[:, None].expand_as(tokens)[real]
    labels = torch.tensor([example.labels for example in batch])[of_sentence]
    total = _WORD_WEIGHT * functional.cross_entropy(heads[3](states), tokens[real])
    for i_label in range(3):
        total = total + functional.cross_entropy(heads[i_label](states), labels[:, i_label])
    return total


def _padded(pieces: sentencepiece.SentencePieceProcessor, texts: list[str]) -> Tensor:
    """Give token ids `(B, L)`: the sentence, the end mark, zeros."""
    rows = [torch.tensor([*pieces.encode(text), pieces.eos_id()]) for text in texts]
    return nn.utils.rnn.pad_sequence(rows, batch_first=True)


def probe(
    model: UMT5EncoderModel, tokenizer: bytes, *, seed: int = SEED, count: int = 3000
) -> tuple[float, ...]:
    """Fit a linear probe on the end mark's token, and score it on held-out pairs of colours.

    Args:
        model: The encoder.
        tokenizer: Its tokenizer.
        seed: Chooses the sentences.
        count: Sentences the probe is fitted on; it is scored on a fifth as many.

    Returns:
        Share of right answers about first hair, second hair and wall.
    """
    pieces = sentencepiece.SentencePieceProcessor(model_proto=tokenizer)
    rng = np.random.default_rng([seed, 99])

    def ends(number: int, *, held_out: bool) -> tuple[Tensor, Tensor]:
        examples = [describe(rng, held_out=held_out) for _ in range(number)]
        tokens = _padded(pieces, [example.text for example in examples])
        real = tokens != 0
        states = model(input_ids=tokens, attention_mask=real.long()).last_hidden_state
        last = states[torch.arange(number), real.sum(dim=1) - 1]
        return last, torch.tensor([example.labels for example in examples])

    known, known_labels = ends(count, held_out=False)
    unseen, unseen_labels = ends(count // 5, held_out=True)
    inputs = functional.pad(known, (0, 1), value=1.0).double()
    scores = []
    for i_label in range(3):
        wanted = functional.one_hot(known_labels[:, i_label]).double()
        weights = torch.linalg.lstsq(inputs, wanted).solution
        told = (functional.pad(unseen, (0, 1), value=1.0).double() @ weights).argmax(dim=1)
        scores.append(float((told == unseen_labels[:, i_label]).double().mean()))
    return tuple(scores)


def save(folder: Path, model: UMT5EncoderModel, tokenizer: bytes) -> None:
    """Write the encoder with its tokenizer inside, like ComfyUI's files, and the prompts."""
    weights = {
        name: value for name, value in model.state_dict().items() if "embed_tokens" not in name
    }
    weights["spiece_model"] = torch.frombuffer(bytearray(tokenizer), dtype=torch.uint8)
    path = TinySet(folder).text_encoder
    save_weights(path, weights, num_heads=NUM_HEADS)
    with open_weights(path) as file:
        encoder = load_text_encoder(file, device=torch.device("cpu"), dtype=torch.float32)
    said = ("", *prompts(1), *prompts(2))
    save_prompts(folder / PROMPTS_FILE, dict(zip(said, encoder.encode(list(said)), strict=True)))


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the number of steps."""
    parser.add_argument("--steps", type=int, default=STEPS, help="steps of training in all")


def run(arguments: argparse.Namespace) -> None:
    """Write the text encoder and the prompts into `--out`, and print the probe's figures."""
    torch.set_num_threads(1)
    tokenizer = sentencepiece_model()
    model = train(tokenizer, steps=arguments.steps)
    save(arguments.out, model, tokenizer)
    first, second, wall = probe(model, tokenizer)
    sys.stdout.write(
        f"colours told of unseen pairs: hair {first:.3f}, second person's {second:.3f}, "
        f"wall {wall:.3f}\n"
    )
