"""What one segment hands to the next, as a value that can be written to disk and read back.

Last step of each segment in `engine.Engine.segments`. Whoever keeps the last state of a run can go
on from it later, in another process or on another machine, and gets the same frames.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass

import torch
from torch import Tensor

from ..config import SamplingConfig
from ..errors import InputError

Settings = Mapping[str, str | float | None]


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class SegmentState:
    """A video after some of its segments. All tensors are on the CPU.

    Attributes:
        num_done: Segments that are done.
        motion_frames: Last frames of the segment before, `(1, 3, M, H, W)` float32 in [-1, 1].
        tail: Frames that the next segment's first ones crossfade with, `(3, M, H, W)`, likewise.
        generator: State of the generator that draws all noise, uint8.
        settings: All that the frames depend on, by name.
    """

    num_done: int
    motion_frames: Tensor
    tail: Tensor
    generator: Tensor
    settings: Settings

    def tensors(self) -> dict[str, Tensor]:
        """Give the state as named tensors, as a safetensors file holds them."""
        settings = json.dumps(dict(self.settings)).encode()
        return {
            "num_done": torch.tensor(self.num_done),
            "motion_frames": self.motion_frames.contiguous(),
            "tail": self.tail.contiguous(),
            "generator": self.generator,
            "settings": torch.frombuffer(bytearray(settings), dtype=torch.uint8),
        }

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor]) -> SegmentState:
        """Read what `tensors` gave.

        Raises:
            InputError: If it is something else.
        """
        try:
            return cls(
                num_done=int(tensors["num_done"]),
                motion_frames=tensors["motion_frames"],
                tail=tensors["tail"],
                generator=tensors["generator"],
                settings=json.loads(bytes(tensors["settings"].tolist())),
            )
        except (KeyError, RuntimeError, ValueError) as reason:
            raise InputError(
                f"This is no saved state of a video ({reason}). Start the video from its beginning."
            ) from reason

    def require(self, settings: Settings) -> None:
        """Check that the run that goes on has the settings of the run that stopped.

        Raises:
            InputError: If one differs; the message names it.
        """
        for name in sorted({*self.settings, *settings}):
            before, now = self.settings.get(name), settings.get(name)
            if before != now:
                raise InputError(
                    f"The saved state was made with another {name} ({before}; now {now}). Give the "
                    "same, or start the video from its beginning."
                )


def settings_of(config: SamplingConfig) -> dict[str, str | float | None]:
    """Give the sampling settings by name."""
    values = asdict(config)
    values["apg"] = None if config.apg is None else str(config.apg)
    return values
