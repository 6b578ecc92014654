"""Where the models of a run lie, by a plan; and the next plan, where the card is full after all.

The estimate of `memory` cannot know what else takes the card's memory while a video is made. So
the two that need most of it, a segment's sampling and the VAE, begin anew under a leaner plan when
memory runs out. The noise is drawn again from the same state: it is the same video.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Generator, Tensor

from ..multitalk_core.config import SamplingConfig
from ..multitalk_core.errors import MultiTalkError
from ..multitalk_core.method.sampler import OnSolverStep, SegmentModel, solve
from ..multitalk_core.model.dit import MultiTalkModel
from .memory import PLANS, Plan
from .streaming import stream_blocks
from .vae import WanVAE

_log = logging.getLogger(__name__)

ResultT = TypeVar("ResultT")


class Placement:
    """The transformer and the VAE on a device: a `Solver` and a `VideoVAE` that keep to a plan.

    Attributes:
        plan: What is followed now.
    """

    def __init__(
        self,
        transformer: MultiTalkModel,
        vae: WanVAE,
        *,
        device: torch.device,
        plan: Plan,
        may_change: bool,
    ) -> None:
        """Bring the transformer to the device.

        Args:
            transformer: Loaded in main memory.
            vae: The video autoencoder.
            device: Where both compute.
            plan: What to follow.
            may_change: Whether the next plan is taken when memory runs out.
        """
        self._transformer = transformer
        self._vae = vae
        self._device = device
        self._may_change = may_change
        self.plan = plan
        if not plan.streamed:
            transformer.to(device)
        self._follow(plan, streams_already=False)

    def solve(
        self,
        noise: Tensor,
        model: SegmentModel,
        *,
        config: SamplingConfig,
        generator: Generator,
        on_step: OnSolverStep,
    ) -> Tensor:
        """Sample a segment, from its start again if memory runs out."""
        drawn = generator.get_state()

        def sample() -> Tensor:
            generator.set_state(drawn)
            return solve(noise, model, config=config, generator=generator, on_step=on_step)

        return self._attempt(
            sample, what=f"sampling segment {model.index + 1}", needs=lambda plan: plan.streamed
        )

    def encode(self, video: Tensor) -> Tensor:
        """Encode as a `VideoVAE`."""
        return self._attempt(
            lambda: self._vae.encode(video), what="encoding frames", needs=lambda plan: plan
        )

    def decode(self, latents: Tensor) -> Tensor:
        """Decode as a `VideoVAE`."""
        return self._attempt(
            lambda: self._vae.decode(latents), what="decoding frames", needs=lambda plan: plan
        )

    def _attempt(
        self, work: Callable[[], ResultT], *, what: str, needs: Callable[[Plan], object]
    ) -> ResultT:
        """Do work; if memory runs out, once more under the next plan that changes its needs."""
        if not self._may_change:
            return work()
        with contextlib.suppress(torch.OutOfMemoryError):
            return work()
        # only here are the tensors of the failed work gone, which the error held
        self._step_down(what, needs)
        try:
            return work()
        except torch.OutOfMemoryError as reason:
            raise _too_little(what) from reason

    def _step_down(self, what: str, needs: Callable[[Plan], object]) -> None:
        before = self.plan
        following = PLANS[PLANS.index(before) + 1 :]
        leaner = [plan for plan in following if needs(plan) != needs(before)]
        if not leaner:
            raise _too_little(what)
        self.plan = leaner[0]
        _log.warning(
            "The card's memory ran out while %s; that begins anew with %s.", what, self.plan.words
        )
        self._follow(self.plan, streams_already=before.streamed)

    def _follow(self, plan: Plan, *, streams_already: bool) -> None:
        if plan.streamed and not streams_already:
            stream_blocks(self._transformer, self._transformer.blocks, self._device)
        if plan.tiled:
            self._vae.use_tiles()
            _log.info("the VAE works in tiles, which changes the picture a little")
        if self._device.type == "cuda":
            torch.cuda.empty_cache()


def _too_little(what: str) -> MultiTalkError:
    return MultiTalkError(
        f"The card's memory ran out while {what}, and no plan needs less of it. Give a smaller "
        "--size or fewer --segment-frames, or end what else uses the card."
    )
