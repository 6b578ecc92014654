"""Frames and sound to an MP4: H.264 and AAC, the sound exactly as long as the picture.

The video is written to a temporary file beside the target and renamed when it is complete, so an
error or Ctrl-C leaves no partial video and never damages an older one.
"""

from __future__ import annotations

import contextlib
import errno
import os
import uuid
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import torch
from av.error import FFmpegError
from av.video.reformatter import ColorRange, Colorspace
from torch import Tensor
from torch.nn import functional

from ..multitalk_core.config import FPS
from ..multitalk_core.errors import InputError, MultiTalkError
from ..multitalk_core.geometry import Size
from ..multitalk_core.inputs.timeline import Sound

_BT709 = 1
"""FFmpeg's number of BT.709 as primaries and as transfer function."""
_QUALITY = "17"
"""Constant rate factor of x264: visually lossless."""
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class VideoWriter:
    """Writes one video; a context manager whose `write` takes the frames in order."""

    def __init__(self, path: Path, *, size: Size, sound: Sound) -> None:
        """Check the target; no file is created before the `with` block.

        Args:
            path: The video, ending in `.mp4`; its folder must exist.
            size: Size of the frames, even numbers of pixels.
            sound: Cut or padded with silence to the length of the picture.

        Raises:
            InputError: If no such file can be written.
        """
        require_target(path)
        self.path = path
        self.num_frames = 0
        # short, whatever the video's name; absolute, for FFmpeg takes what precedes a colon in a
        # relative name for a protocol
        self._draft = path.absolute().with_name(f".{uuid.uuid4().hex}.part")
        self._size = size
        self._waveform = sound.waveform[0].float().cpu()
        self._sample_rate = sound.sample_rate
        self._sent = 0

    def __enter__(self) -> VideoWriter:
        try:
            self._container = av.open(
                str(self._draft), "w", format="mp4", options={"movflags": "+faststart"}
            )
            self._video = self._add_video()
            self._audio = self._add_audio()
        except (OSError, FFmpegError) as reason:
            self._draft.unlink(missing_ok=True)
            raise self._failure(reason) from reason
        return self

    def write(self, frames: Tensor) -> None:
        """Append frames `(3, T, H, W)` in [-1, 1].

        Raises:
            MultiTalkError: If the disk is full or the file cannot be written.
        """
        pixels = ((frames.float().clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
        try:
            for picture in pixels.permute(1, 2, 3, 0).contiguous().cpu().numpy():
                self._write_picture(picture)
            self._write_sound(round(Fraction(self.num_frames * self._sample_rate, FPS)))
        except (OSError, FFmpegError) as reason:
            raise self._failure(reason) from reason

    def __exit__(self, kind: object, error: object, traceback: object) -> None:
        try:
            if error is None:
                self._finish()
        except (OSError, FFmpegError) as reason:
            raise self._failure(reason) from reason
        finally:
            with contextlib.suppress(OSError, FFmpegError):
                self._container.close()
            self._draft.unlink(missing_ok=True)

    def _finish(self) -> None:
        if not self.num_frames:
            raise MultiTalkError(f"{self.path.name} would have no frames; it was not written.")
        self._container.mux(self._video.encode(None))
        self._container.mux(self._audio.encode(None))
        self._container.close()
        with open(self._draft, "r+b") as file:
            os.fsync(file.fileno())  # a full disk may show only now
        os.replace(self._draft, self.path)

    def _add_video(self) -> Any:
        stream = self._container.add_stream("libx264", rate=FPS, options={"crf": _QUALITY})
        stream.height, stream.width = self._size
        stream.pix_fmt = "yuv420p"
        context = stream.codec_context
        context.color_range = ColorRange.MPEG
        context.colorspace = Colorspace.ITU709
        context.color_primaries = context.color_trc = _BT709
        return stream

    def _add_audio(self) -> Any:
        layout = "mono" if len(self._waveform) == 1 else "stereo"
        return self._container.add_stream("aac", rate=self._sample_rate, layout=layout)

    def _write_picture(self, picture: np.ndarray[Any, np.dtype[np.uint8]]) -> None:
        frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
        frame = frame.reformat(format="yuv420p", dst_colorspace=Colorspace.ITU709)
        frame.pts = self.num_frames
        frame.time_base = Fraction(1, FPS)
        self._container.mux(self._video.encode(frame))
        self.num_frames += 1

    def _write_sound(self, stop: int) -> None:
        if stop == self._sent:
            return
        part = self._waveform[:, self._sent : stop]
        part = functional.pad(part, (0, stop - self._sent - part.shape[1]))
        layout = self._audio.codec_context.layout.name
        frame = av.AudioFrame.from_ndarray(part.contiguous().numpy(), format="fltp", layout=layout)
        frame.sample_rate = self._sample_rate
        frame.pts = self._sent
        frame.time_base = Fraction(1, self._sample_rate)
        self._container.mux(self._audio.encode(frame))
        self._sent = stop

    def _failure(self, reason: OSError | FFmpegError) -> MultiTalkError:
        if reason.errno in _FULL:
            return MultiTalkError(
                f"The disk is full: {self.path} could not be written. Free some space in "
                f"{self.path.parent.resolve()}, or give another folder."
            )
        return MultiTalkError(f"{self.path} could not be written ({reason.strerror}).")


def require_target(path: Path) -> None:
    """Check that a video can be written to a path, before the long work.

    Raises:
        InputError: If the name does not end in `.mp4`, is a folder, or its folder is missing.
    """
    if path.suffix.lower() != ".mp4":
        raise InputError(f"The video {path.name!r} must end in '.mp4'. Give another name.")
    if os.path.isdir(path):
        raise InputError(f"{path} is a folder. Give the name of a file.")
    if not os.path.isdir(path.parent):
        raise InputError(f"There is no folder {path.parent}. Make it, or give another one.")
    try:
        os.lstat(path)
    except FileNotFoundError:
        pass
    except OSError as reason:  # in the first place a name that is too long for the file system
        raise InputError(
            f"No file can have the name {path.name!r}, of {len(os.fsencode(path.name))} bytes "
            f"({reason.strerror}). Give a shorter name."
        ) from reason
    if not os.access(path.parent, os.W_OK):
        raise InputError(f"The folder {path.parent} cannot be written to. Give another one.")
