"""What came of a variant, and whether it is what must come."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import NamedTuple

from torch import Tensor

from .files import Loads, Refused


class Result(NamedTuple):
    """The outcome of one path.

    Attributes:
        text: For the table: the largest relative error of a tensor, or "refused".
        problem: What is wrong with it; empty if it is as it must be.
    """

    text: str
    problem: str = ""


def refused(message: str, outcome: Loads | Refused) -> Result:
    """Judge a refusal."""
    if isinstance(outcome, Loads):
        return Result("refused", f"refused: {message}")
    if not re.search(outcome.words, message):
        return Result("refused", f"the message lacks {outcome.words!r}: {message}")
    return Result("refused")


def compared(loaded: Mapping[str, Tensor], outcome: Loads | Refused) -> Result:
    """Judge loaded tensors."""
    if isinstance(outcome, Refused):
        return Result("loads", "loads, but must be refused")
    missing = sorted(outcome.values.keys() - loaded.keys())
    if missing:
        return Result("loads", f"{len(missing)} tensors are not in the model, such as {missing[0]}")
    errors = {name: error(loaded[name], value) for name, value in outcome.values.items()}
    worst = max(errors, key=errors.__getitem__)
    text = f"{errors[worst]:.0e}" if errors[worst] else "0"
    if not errors[worst] <= outcome.tolerance:
        return Result(text, f"{worst} is off by {errors[worst]:.2e}")
    return Result(text)


def error(loaded: Tensor, expected: Tensor) -> float:
    """Give the relative norm of the difference; infinity for another shape.

    A tensor that is kept in fewer bits is compared with the values rounded to them.
    """
    if loaded.shape != expected.shape:
        return float("inf")
    expected = expected.to(loaded.dtype)
    difference = (loaded.float() - expected.float()).norm()
    return float(difference / expected.float().norm()) if difference else float(difference)
