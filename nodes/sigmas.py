"""MultiTalk Sigmas: upstream's schedule for ComfyUI's own samplers."""

from __future__ import annotations

from comfy_api.latest import io

from .host.sampling import upstream_sigmas
from .settings import schedule_inputs


class MultiTalkSigmas(io.ComfyNode):
    """MultiTalk Sigmas."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="MTK_Sigmas",
            display_name="MultiTalk Sigmas",
            category="MultiTalk",
            description=(
                "Creates MultiTalk's own noise schedule for SamplerCustomAdvanced with the euler "
                "sampler. The same steps and shift as in MultiTalk Sampler give the same latents. "
                "With another sampler use BasicScheduler instead."
            ),
            search_aliases=["multitalk", "infinitetalk", "scheduler", "flow shift"],
            inputs=schedule_inputs(),
            outputs=[
                io.Sigmas.Output(
                    display_name="sigmas", tooltip="The noise levels, for SamplerCustomAdvanced."
                )
            ],
        )

    @classmethod
    def execute(cls, steps: int, shift: float) -> io.NodeOutput:
        return io.NodeOutput(upstream_sigmas(steps, shift=shift))
