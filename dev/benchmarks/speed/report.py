"""Tables of measured rows, written as one JSON and one Markdown file."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from .measure import Spread


class Column(NamedTuple):
    """A figure that the Markdown table shows.

    Attributes:
        key: Its name in the rows.
        heading: Heading, with the unit.
        digits: Digits after the point.
        factor: Converts the row's unit to the heading's.
    """

    key: str
    heading: str
    digits: int = 3
    factor: float = 1.0

    def cell(self, value: Any) -> str:
        """Format a value; of several calls the median, with the least and the most in brackets."""
        if value is None:
            return "-"
        if isinstance(value, bool):
            return "yes" if value else "no"
        if isinstance(value, Spread):
            low, high = self.cell(value.least), self.cell(value.most)
            return f"{self.cell(value.median)} ({low} to {high})"
        if isinstance(value, int | float):
            value = value * self.factor
            small = 0 < abs(value) < 10**-self.digits
            return f"{value:.2g}" if small else f"{value:.{self.digits}f}"
        return str(value).replace("|", "\\|").replace("\n", " ")


@dataclass
class Table:
    """What one module measured.

    Attributes:
        name: Name on the command line.
        title: What it shows.
        columns: What the Markdown shows; rows may hold more for the JSON.
        rows: Figures by the keys of the columns.
        notes: Sentences below the table.
        error: Traceback, if the measurement failed.
        seconds: How long it took.
    """

    name: str
    title: str = ""
    columns: tuple[Column, ...] = ()
    rows: list[dict[str, Any]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    error: str | None = None
    seconds: float = 0.0

    def add(self, **figures: Any) -> None:
        """Add a row."""
        self.rows.append(figures)

    def markdown(self) -> str:
        """Format heading, rows and notes."""
        lines = [f"## {self.name}: {self.title}", ""]
        lines.append(f"| {' | '.join(column.heading for column in self.columns)} |")
        lines.append("|---" * len(self.columns) + "|")
        for row in self.rows:
            cells = (column.cell(row.get(column.key)) for column in self.columns)
            lines.append(f"| {' | '.join(cells)} |")
        lines += [line for note in self.notes for line in ("", note)]
        if self.error:
            lines += ["", "Failed:", "", "```", self.error.strip(), "```"]
        return "\n".join([*lines, "", f"({self.seconds:.0f} s)"])


def write(path: Path, machine: Mapping[str, Any], scale: str, tables: Sequence[Table]) -> None:
    """Write `path.json` and `path.md`."""
    facts = ", ".join(f"{name} {value}" for name, value in machine.items() if value)
    parts = [f"# {scale}", f"Random weights. {facts}.", *(one.markdown() for one in tables)]
    shown = {
        table.name: {
            key: value for key, value in vars(table).items() if key not in ("name", "columns")
        }
        for table in tables
    }
    report = {"machine": dict(machine), "scale": scale, "tables": shown}
    text = json.dumps(report, indent=1, default=dataclasses.asdict) + "\n"
    path.with_name(path.name + ".json").write_text(text, encoding="utf-8")
    path.with_name(path.name + ".md").write_text("\n\n".join(parts) + "\n", encoding="utf-8")
