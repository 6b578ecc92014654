"""What a host may put into the blocks of one forward pass, as ComfyUI's nodes do.

With nothing given the transformer is upstream's. Used by `dit.MultiTalkModel.forward`.

Letters: B batch, N tokens.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from .attention import PLAIN, Attends
from .lrope import UNMOVED, Placement, Rotation


@dataclass(frozen=True, slots=True, eq=False)
class BlockCall:
    """A block about to run, as a host that stands around it sees it.

    Attributes:
        index: Of the block, from 0.
        run: The block; takes and gives what `x`, `steps`, `context` and `rotation` are here.
        x: Video tokens, `(B, N, dim)`.
        time: Embedded time step, `(B, dim)`, float32.
        steps: The same, projected for the six modulations, `(B, 6, dim)`, float32.
        context: Image and text tokens, `(B, 257 + text_len, dim)`.
        rotation: Of every video token.
    """

    index: int
    run: Callable[[Tensor, Tensor, Tensor, Rotation], Tensor]
    x: Tensor
    time: Tensor
    steps: Tensor
    context: Tensor
    rotation: Rotation

    def __call__(self) -> Tensor:
        """Run the block as it is."""
        return self.run(self.x, self.steps, self.context, self.rotation)


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Hooks:
    """What a host does in one forward pass.

    Attributes:
        attends: The attention backends.
        after_context: Called in each block with the tokens that have seen text and photo,
            `(B, N, dim)`; gives the tokens to go on with.
        around_block: Called for each block in place of the block; gives its tokens.
        placement: Where the token grid lies in the rotary positions.
    """

    attends: Attends = PLAIN
    after_context: Callable[[Tensor], Tensor] | None = None
    around_block: Callable[[BlockCall], Tensor] = BlockCall.__call__
    placement: Placement = UNMOVED


NO_HOOKS = Hooks()
