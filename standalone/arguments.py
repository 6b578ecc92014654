"""The command line of `multitalk`: arguments to a `Request`."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn, get_args

from ..multitalk_core.config import Method, SamplingConfig
from ..multitalk_core.errors import InputError
from ..multitalk_core.geometry import Box, Size
from ..multitalk_core.inputs.timeline import Mode
from ..multitalk_core.model.backends import AttentionName
from ..wan_gguf_loader.ops import Precision
from .manifest import model_sets
from .request import (
    NEGATIVE_PROMPT,
    Lora,
    ModelFiles,
    Offload,
    Preset,
    Request,
    SpeakerFiles,
    default_sampling,
)

_Kind = Callable[[str], object] | tuple[str, ...] | None

_MAX_STRENGTH = 100
"""Largest strength of a LoRA, as in ComfyUI."""


class _Once(argparse.Action):
    """Stores a value, and refuses a second one instead of dropping the first."""

    _given = False

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: object,
        option_string: str | None = None,
    ) -> None:
        if self._given:
            raise argparse.ArgumentError(self, "may be given only once")
        self._given = True
        setattr(namespace, self.dest, values)


class _Parser(argparse.ArgumentParser):
    """Reports a mistake on one line."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.register("action", None, _Once)

    def error(self, message: str) -> NoReturn:
        raise InputError(f"{message}. See `{self.prog} --help`.")


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Parse the command line; `command` of the result names the subcommand.

    Raises:
        InputError: If an argument is unknown, missing or malformed.
    """
    parser = _Parser(prog="multitalk", description="A photo and a voice to a talking video.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    generate = commands.add_parser("generate", help="make a video", formatter_class=_Help)
    inspect = commands.add_parser("inspect", help="say what generate does with a weights file")
    inspect.add_argument("file", type=Path, metavar="FILE", help="GGUF or safetensors file")
    inspect.add_argument("--json", action="store_true", help="write JSON to standard output")
    _add_download(commands.add_parser("download", help="get a set of model files"))
    _add_doctor(commands.add_parser("doctor", help="say what is missing, and how to get it"))
    _add_inputs(generate)
    _add_files(generate)
    _add_sampling(generate)
    _add_fast(generate)
    _add_run(generate)
    return parser.parse_args(arguments)


def build_request(options: argparse.Namespace) -> Request:
    """Turn the parsed arguments of `generate` into a request.

    Raises:
        InputError: If they do not fit together, or a setting is out of range.
    """
    given = {name: value for name, value in vars(options).items() if value is not None}
    defaults = default_sampling(options.method, options.preset, size=options.size)
    return Request(
        **_fields_of(Request, vars(options)),
        speakers=_speakers(options),
        files=ModelFiles(**_fields_of(ModelFiles, vars(options)), loras=tuple(options.lora)),
        sampling=dataclasses.replace(defaults, **_fields_of(SamplingConfig, given)),
    )


def _fields_of(kind: type, values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values that a dataclass has fields for."""
    names = {field.name for field in dataclasses.fields(kind)}
    return {name: value for name, value in values.items() if name in names}


class _Help(argparse.ArgumentDefaultsHelpFormatter):
    """Shows a default only where there is one."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        return super()._get_help_string(action) if action.default else action.help


class _Group:
    """A group of options under a title in the help."""

    def __init__(self, parser: argparse.ArgumentParser, title: str) -> None:
        self._group = parser.add_argument_group(title)

    def add(
        self, names: str, kind: _Kind, help: str, metavar: str | None = None, **more: Any
    ) -> None:
        """Add an option of the type `kind`, or with these choices; None means a switch."""
        if kind is None:
            more["action"] = "store_true"
        else:
            more |= {"metavar": metavar, ("choices" if isinstance(kind, tuple) else "type"): kind}
        self._group.add_argument(*names.split(), help=help, **more)

    def add_many(self, names: str, kind: _Kind, help: str, metavar: str, **more: Any) -> None:
        """Add an option that may be given several times."""
        self.add(names, kind, help, metavar, action="append", default=[], **more)


# fmt: off
def _add_inputs(parser: argparse.ArgumentParser) -> None:
    group = _Group(parser, "what the video shows")
    add, many = group.add, group.add_many
    add("--image", Path, "photo of the speakers", "PHOTO", required=True)
    many("--audio", Path, "recording of a voice; once per speaker", "VOICE")
    many("--mask", Path, "mask of a speaker, white on black; once per --audio, in the same order",
         "FILE", dest="regions")
    many("--box", _box, "box around a speaker, in place of a mask, in pixels of the photo",
         "LEFT,TOP,RIGHT,BOTTOM", dest="regions")
    many("--start", float, "silence before a voice; once per --audio, in the same order", "SECONDS")
    add("--mode", get_args(Mode), "voices at once, or one after another", default="together")
    add("--prompt", _text, "what the video shows", "TEXT", required=True)
    add("--negative-prompt", _text, "what the video must not show", "TEXT", default=NEGATIVE_PROMPT)
    add("--size", _size, "a table of sizes, exact pixels, or the longest side in pixels",
        "480p|720p|WxH|LONGEST", default="480p")
    add("-o --output", Path, "the .mp4 to write", "VIDEO", required=True)


def _add_files(parser: argparse.ArgumentParser) -> None:
    group = _Group(parser, "weights (GGUF or safetensors)")
    add = group.add
    add("--base", Path, "Wan2.1 image-to-video", "FILE", required=True)
    add("--adapter", Path, "MultiTalk or InfiniteTalk; not for a base that has it", "FILE")
    add("--wav2vec", Path, "Wav2Vec2", "FILE", required=True, dest="wav2vec2")
    add("--vae", Path, "Wan2.1 VAE", "FILE", required=True)
    add("--text-encoder", Path, "UMT5 with its tokenizer", "FILE", required=True)
    add("--clip-vision", Path, "CLIP ViT-H", "FILE", required=True)
    group.add_many("--lora", _lora, "a LoRA of the base; may be given several times",
                   "FILE:STRENGTH")


def _add_sampling(parser: argparse.ArgumentParser) -> None:
    add, defaults = _Group(parser, "sampling").add, SamplingConfig()
    add("--method", get_args(Method), "the method the weights were trained for",
        default=defaults.method)
    add("--preset", get_args(Preset),
        "quick is for a distilled LoRA; the options below override it", default="quality")
    add("--steps", int, "steps per segment (40, quick and flashtalk 4)", "N")
    add("--shift", float, "shift of the schedule (7, at 720p 11, quick 2, flashtalk 5)", "X")
    add("--text-guidance", float,
        "scale of the text guidance; 1 turns it off (5, quick and flashtalk 1)", "X")
    add("--audio-guidance", float,
        "scale of the audio guidance; 1 turns it off (4, quick 2, flashtalk 1)", "X")
    add("--audio-strength", float, "multiplier of the audio layers", "X",
        default=defaults.audio_strength)
    add("--segment-frames", int,
        "frames sampled at once: a multiple of 4, plus 1 (81, flashtalk 33)", "N")
    add("--motion-frames", int,
        "frames repeated from the previous segment: a multiple of 4, plus 1 (25, infinitetalk 9, "
        "flashtalk 5)", "N")
    add("--seed", _seed, "seed of all noise, 0 to 2^64 - 1", "N", default=42)


def _add_fast(parser: argparse.ArgumentParser) -> None:
    group = _Group(parser, "fast modes, off by default (docs/speed.md says what they cost)")
    defaults = SamplingConfig()
    for name, text in (
        ("text_guidance_start", "share of the steps, 0 to 1, at which the text guidance begins"),
        ("text_guidance_end", "share of the steps at which the text guidance ends"),
        ("audio_guidance_start", "share of the steps at which the audio guidance begins"),
        ("audio_guidance_end", "share of the steps at which the audio guidance ends"),
        ("step_cache",
         "reuse the model's last output while its estimated change is below X, such as 0.05"),
    ):
        flag, default = f"--{name.replace('_', '-')}", getattr(defaults, name)
        group.add(flag, float, text, "X", default=default)


def _add_run(parser: argparse.ArgumentParser) -> None:
    add = _Group(parser, "how it runs").add
    add("--device", str, "cuda, cuda:1, cpu ... (a CUDA card if there is one)", "NAME")
    add("--dtype", ("float32", "bfloat16"), "type of the computation (bfloat16, on a CPU float32)")
    add("--offload", get_args(Offload),
        "none keeps the transformer on the card; blocks streams it and the text encoder from "
        "main memory, block by block; auto chooses what fits, with a tiled VAE if need be",
        default="auto")
    add("--precision", get_args(Precision),
        "int8 uses 8-bit matrix products: faster and less exact", default="exact")
    add("--attention", get_args(AttentionName),
        "attention backend among video tokens; flash is flash-attn-4, which auto chooses on a "
        "Hopper card if it is installed; sage is SageAttention, less exact", default="auto")
    add("--json", None, "write a summary as JSON to standard output")
    add("--quiet", None, "no progress bar")


def _add_download(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("set", nargs="?", choices=tuple(model_sets()), metavar="SET", help="see --list")
    add("--list", action="store_true", help="list the sets, or the files of SET; get nothing")
    add("--to", type=Path, metavar="FOLDER", help="put all files into this folder")
    add("--comfyui", type=Path, metavar="FOLDER", help="put them into this ComfyUI's folders")


def _add_doctor(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("files", nargs="*", type=Path, metavar="FILE", help="weights files to check")
    add("--models", type=Path, metavar="FOLDER",
        help="folder to look for weights in (that of ComfyUI, if it is found)")
# fmt: on


def _speakers(options: argparse.Namespace) -> tuple[SpeakerFiles, ...]:
    voices: list[Path] = options.audio
    if not voices:
        raise InputError("There is no voice. Give at least one with --audio FILE.")
    for name, values in (("masks and boxes", options.regions), ("starts", options.start)):
        if len(values) > len(voices):
            raise InputError(
                f"There are {len(values)} {name} for {len(voices)} voices. "
                "Give at most one per --audio."
            )
    missing = [None] * len(voices)
    starts = (options.start + [0.0] * len(voices))[: len(voices)]
    return tuple(map(SpeakerFiles, voices, [*options.regions, *missing], starts))


def _argument(convert: Callable[[str], object]) -> Callable[[str], object]:
    """Turn an `InputError` into argparse's error, which names the argument."""

    def converted(text: str) -> object:
        try:
            return convert(text)
        except InputError as reason:
            raise argparse.ArgumentTypeError(str(reason)) from reason

    return converted


def _whole_numbers(text: str, separator: str, count: int) -> tuple[int, ...] | None:
    parts = text.split(separator)
    if len(parts) != count or not all(part.strip().isascii() for part in parts):
        return None
    try:
        return tuple(int(part) for part in parts)
    except ValueError:
        return None


@_argument
def _text(text: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError as reason:
        raise InputError("it holds bytes that are not UTF-8; give it in UTF-8") from reason
    return text


@_argument
def _seed(text: str) -> int:
    numbers = _whole_numbers(text, ",", 1)
    if numbers is None or not 0 <= numbers[0] < 2**64:
        raise InputError(f"{text!r} is no seed; give a whole number from 0 to 2^64 - 1")
    return numbers[0]


@_argument
def _box(text: str) -> Box:
    numbers = _whole_numbers(text, ",", 4)
    if numbers is None:
        raise InputError(
            f"{text!r} is no box; give left,top,right,bottom in pixels, as 10,20,90,99"
        )
    return Box(*numbers)


@_argument
def _size(text: str) -> str | Size | int:
    if text in ("480p", "720p"):
        return text
    if (sides := _whole_numbers(text.lower(), "x", 2)) and min(sides) > 0:
        return Size(height=sides[1], width=sides[0])
    if (longest := _whole_numbers(text, ",", 1)) and longest[0] > 0:
        return longest[0]
    raise InputError(
        f"{text!r} is no size; give 480p, 720p, WIDTHxHEIGHT such as 832x480, or the longest side"
    )


@_argument
def _lora(text: str) -> Lora:
    path, colon, strength = text.rpartition(":")
    try:
        factor = float(strength)
    except ValueError:
        return Lora(Path(text), 1.0)  # no strength, and a colon would be part of the name
    if not colon or not path or not abs(factor) <= _MAX_STRENGTH:
        raise InputError(
            f"{text!r} is no LoRA; give FILE:STRENGTH, such as distilled.safetensors:1.0, with a "
            f"strength from -{_MAX_STRENGTH} to {_MAX_STRENGTH}"
        )
    return Lora(Path(path), factor)
