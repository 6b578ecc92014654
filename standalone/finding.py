"""A line of `multitalk doctor`."""

from __future__ import annotations

from typing import Literal, NamedTuple


class Finding(NamedTuple):
    """One thing that was looked at.

    Attributes:
        level: `ok`; `note` works at a price; `bad` keeps a video from being made.
        subject: What was looked at.
        text: What was found.
        fix: What to do about it; empty if there is nothing to do.
    """

    level: Literal["ok", "note", "bad"]
    subject: str
    text: str
    fix: str = ""

    @property
    def is_bad(self) -> bool:
        """Whether it keeps a video from being made."""
        return self.level == "bad"

    def line(self) -> str:
        """Write it as one line."""
        fix = f". Fix: {self.fix}" if self.fix else ""
        return f"{self.level:4}  {self.subject}: {self.text}{fix}"


def ok(subject: str, text: str) -> Finding:
    """Say that something is as it should be."""
    return Finding("ok", subject, text)


def note(subject: str, text: str, fix: str) -> Finding:
    """Say what works at a price."""
    return Finding("note", subject, text, fix)


def bad(subject: str, text: str, fix: str) -> Finding:
    """Say what keeps a video from being made."""
    return Finding("bad", subject, text, fix)
