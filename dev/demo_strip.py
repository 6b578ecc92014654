"""Shows that the demo's lips follow its voice: frames over the waveform and the mouth's opening.

    python -m comfyui_multitalk.dev.demo_strip output/demo.mp4 output/demo.png [docs/demo.gif]

The third argument is the video as a small GIF.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import av
import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ..multitalk_core.config import FPS
from ..multitalk_core.inputs.voices import Recording, prepare_voice
from ..nodes.drawing.strip import Curve, draw_strip
from ..standalone.media import read_voice
from .draw_cartoons import PORTRAIT
from .train_tiny.articulation import SAMPLE_RATE, articulation
from .train_tiny.mouth import WIDE_OPEN, correlation, opening

_PREVIEW_SIDE = 192  # pixels
_PREVIEW_EVERY = 2  # frames
_PREVIEW_COLOURS = 255


def main(arguments: Sequence[str] | None = None) -> int:
    """Draw the strip and, if asked for, the preview; return the exit code."""
    words = sys.argv[1:] if arguments is None else list(arguments)
    if len(words) not in (2, 3):
        sys.stderr.write("usage: demo_strip VIDEO STRIP.png [PREVIEW.gif]\n")
        return 2
    video = Path(words[0])
    frames, voice = _frames(video), read_voice(video)
    wanted, seen = curves(frames, voice)
    strip = draw_strip(
        frames,
        waveform=voice.waveform,
        sample_rate=voice.sample_rate,
        fps=FPS,
        curves=(Curve("mouth asked for by the voice", wanted), Curve("mouth measured", seen)),
    )
    Image.fromarray(strip.numpy()).save(words[1], optimize=True)
    sys.stdout.write(
        f"{words[1]}: lips follow the voice with r = {correlation(wanted, seen):.2f}\n"
    )
    if len(words) == 3:
        _save_preview(frames, Path(words[2]))
    return 0


def curves(frames: Tensor, voice: Recording) -> tuple[Tensor, Tensor]:
    """Give how far the mouth should be open and how far it is, from 0 to 1.

    Args:
        frames: The demo's video, `(T, H, W, 3)` uint8.
        voice: Its sound.

    Returns:
        Two curves `(T,)`.
    """
    heard = prepare_voice(voice)
    length = len(frames) * SAMPLE_RATE // FPS
    heard = torch.nn.functional.pad(heard, (0, max(0, length - len(heard))))[:length]
    wanted = torch.from_numpy(articulation(heard.numpy(), len(frames))[:, 0])
    height, width = frames.shape[1:3]
    mouth = PORTRAIT.mouths((height, width))[0]
    seen = opening(frames.permute(3, 0, 1, 2) / 255, mouth) / WIDE_OPEN
    return wanted, seen.clamp(0, 1)


def _frames(video: Path) -> Tensor:
    with av.open(str(video)) as container:
        pictures = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    return torch.from_numpy(np.stack(pictures))


def _save_preview(frames: Tensor, path: Path) -> None:
    side = (_PREVIEW_SIDE, round(_PREVIEW_SIDE * frames.shape[1] / frames.shape[2]))
    pictures = [
        Image.fromarray(frame.numpy()).resize(side, Image.Resampling.BICUBIC)
        for frame in frames[::_PREVIEW_EVERY]
    ]
    some = np.concatenate([np.asarray(picture) for picture in pictures[::4]])
    palette = Image.fromarray(some).quantize(_PREVIEW_COLOURS, kmeans=2)
    flat = [picture.quantize(palette=palette, dither=Image.Dither.NONE) for picture in pictures]
    duration = 1000 * _PREVIEW_EVERY // FPS  # milliseconds
    flat[0].save(path, save_all=True, append_images=flat[1:], duration=duration, loop=0)


if __name__ == "__main__":
    sys.exit(main())
