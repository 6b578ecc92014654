"""What came of damaged files, counted."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any


@dataclass(slots=True)
class Report:
    """Counts of one run over one kind of files.

    Attributes:
        kind: Of the files.
        seed: Of the random numbers.
        cases: Damaged files.
        seconds: Time that it took.
        counts: Of `loads`, `refused`, `foreign`, `slow`, `large`, `unnamed` and `crash`.
        slowest: Seconds of the slowest case.
        largest: Most bytes that a case took beyond its file.
        findings: Each kind of finding with the file of its first case.
    """

    kind: str
    seed: int
    cases: int = 0
    seconds: float = 0.0
    counts: Counter[str] = field(default_factory=Counter)
    slowest: float = 0.0
    largest: int = 0
    findings: dict[str, str] = field(default_factory=dict)

    @property
    def is_clean(self) -> bool:
        """Whether nothing was found."""
        return not self.findings

    def add(self, part: dict[str, Any]) -> None:
        """Add the counts of a worker."""
        self.cases += part["cases"]
        self.counts.update(part["counts"])
        self.slowest = max(self.slowest, part["slowest"])
        self.largest = max(self.largest, part["largest"])
        self.findings = {**part["findings"], **self.findings}

    def lines(self) -> str:
        """Give the report as text."""
        names = ("loads", "refused", "foreign", "slow", "large", "unnamed", "crash")
        counts = ", ".join(f"{name} {self.counts[name]:,}" for name in names)
        head = (
            f"{self.kind}: {self.cases:,} cases in {self.seconds:.0f} s (seed {self.seed}): "
            f"{counts}; slowest {self.slowest:.2f} s, largest {self.largest / 1e6:.0f} MB"
        )
        return "\n".join((head, *(f"  {what}: {file}" for what, file in self.findings.items())))
