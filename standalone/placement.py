"""An engine placed on a device by a memory plan, which changes the plan if the card is full.

The estimate of `memory` cannot know what else uses the card's memory. When memory runs out, the
segment starts again from its `SegmentState` with the transformer's blocks streamed; the state holds
the generator, so the video is the same. If the VAE runs out of memory while blocks are streamed, it
goes on in tiles.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator

import torch

from ..multitalk_core.config import SamplingConfig
from ..multitalk_core.engine import Engine, Finished, Step
from ..multitalk_core.errors import MultiTalkError
from ..multitalk_core.inputs.scene import Scene
from ..multitalk_core.method.sampler import EulerSampler
from ..multitalk_core.method.state import SegmentState
from ..multitalk_core.model.attention import Attends
from ..multitalk_core.model.dit import MultiTalkModel
from ..multitalk_core.protocols import ImageEncoder
from .memory import STREAMED, Plan
from .streaming import stream_blocks
from .vae import WanVAE

_log = logging.getLogger(__name__)


class PlacedEngine:
    """An engine whose parts are placed on a device by a memory plan.

    Attributes:
        streamed: Whether the transformer's blocks come from main memory one by one.
        tiled: Whether the VAE works in tiles.
    """

    def __init__(
        self,
        transformer: MultiTalkModel,
        vae: WanVAE,
        image_encoder: ImageEncoder,
        *,
        device: torch.device,
        dtype: torch.dtype,
        plan: Plan,
        may_change: bool,
        attends: Attends,
    ) -> None:
        """Move the transformer to the device as the plan says.

        It computes in `dtype`; `may_change` allows a plan of less memory when memory runs out.
        """
        self._engine = Engine(
            sampler=EulerSampler(transformer, dtype=dtype, attends=attends),
            vae=vae,
            image_encoder=image_encoder,
            device=device,
        )
        self._transformer = transformer
        self._vae = vae
        self._device = device
        self._may_change = may_change
        self.streamed = False
        if plan.tiled:
            vae.use_tiles()
        if plan.streamed:
            self._stream()
        else:
            transformer.to(device)

    @property
    def tiled(self) -> bool:
        """Whether the VAE works in tiles."""
        return self._vae.tiled

    def segments(
        self,
        scene: Scene,
        config: SamplingConfig,
        *,
        seed: int,
        on_step: Callable[[Step], None] | None = None,
    ) -> Iterator[Finished]:
        """Make a video as `Engine.segments` does, with less memory if it runs out.

        Raises:
            MultiTalkError: If the leanest plan needs too much memory, too.
        """
        state: SegmentState | None = None
        while True:
            rest = self._engine.segments(scene, config, seed=seed, state=state, on_step=on_step)
            try:
                for finished in rest:
                    yield finished
                    state = finished.state
                return
            except torch.OutOfMemoryError as reason:
                if not self._may_change:
                    raise
                number = 1 if state is None else state.num_done + 1
                if self.streamed:
                    raise MultiTalkError(
                        f"The card's memory ran out in segment {number}, and no plan needs less "
                        "of it. Give a smaller --size or fewer --segment-frames, or close other "
                        "programs that use the card."
                    ) from reason
            # Only here are the tensors of the failed work freed; the error referred to them.
            _log.warning(
                "The card's memory ran out in segment %d; the segment starts again with %s.",
                number,
                STREAMED.words,
            )
            self._stream()

    def _stream(self) -> None:
        stream_blocks(self._transformer, self._transformer.blocks, self._device)
        self.streamed = True
        self._vae.may_tile = self._may_change
        if self._device.type == "cuda":
            torch.cuda.empty_cache()
