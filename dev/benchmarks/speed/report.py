"""The tables of one run, kept as JSON and as Markdown; written again after every row."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from .measure import Spread

_NOTHING = "-"


class Column(NamedTuple):
    """One figure of every row.

    Attributes:
        key: Its name in the rows.
        heading: With the unit.
        digits: After the point.
        factor: From the row's unit to the heading's.
    """

    key: str
    heading: str
    digits: int = 3
    factor: float = 1.0

    def cell(self, value: Any) -> str:
        """Show a value; of several calls the median, and the least and most in brackets."""
        if value is None:
            return _NOTHING
        if isinstance(value, bool):
            return "yes" if value else "no"
        if isinstance(value, Spread):
            low, high = self.cell(float(value.least)), self.cell(float(value.most))
            return f"{self.cell(float(value.median))} ({low} to {high})"
        if isinstance(value, int | float):
            value = value * self.factor
            small = 0 < abs(value) < 10**-self.digits
            return f"{value:.2g}" if small else f"{value:.{self.digits}f}"
        return str(value).replace("|", "\\|").replace("\n", " ")


@dataclass
class Table:
    """What one module measured.

    Attributes:
        name: On the command line.
        title: What it shows.
        columns: Of the rows.
        rows: Column keys, and further figures for the JSON, to values.
        notes: Said below the table.
        error: Why it ended early, if it did.
        seconds: How long it took.
        changed: Called after every row.
    """

    name: str
    title: str
    columns: tuple[Column, ...]
    rows: list[dict[str, Any]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    error: str | None = None
    seconds: float = 0.0
    changed: Callable[[], None] = lambda: None

    def add(self, **figures: Any) -> None:
        """Add a row."""
        self.rows.append(figures)
        self.changed()

    def markdown(self) -> str:
        """Give heading, rows and notes."""
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

    def plain(self) -> dict[str, Any]:
        """Give everything for JSON."""
        rows = [{key: _plain(value) for key, value in row.items()} for row in self.rows]
        return {
            "title": self.title,
            "rows": rows,
            "notes": self.notes,
            "error": self.error,
            "seconds": self.seconds,
        }


@dataclass
class Report:
    """All tables of a run.

    Attributes:
        machine: Where and when.
        scale: The sizes, in words.
        path: Of the files, without suffix; nothing is written if it is `None`.
        tables: So far.
    """

    machine: Mapping[str, Any]
    scale: str
    path: Path | None
    tables: list[Table] = field(default_factory=list)

    def markdown(self) -> str:
        """Give the whole page."""
        facts = ", ".join(f"{name} {value}" for name, value in self.machine.items() if value)
        parts = [f"# {self.scale}", f"Random weights. {facts}."]
        return "\n\n".join([*parts, *(table.markdown() for table in self.tables)]) + "\n"

    def write(self) -> None:
        """Write both files anew."""
        if self.path is None:
            return
        tables = {table.name: table.plain() for table in self.tables}
        report = {"machine": dict(self.machine), "scale": self.scale, "tables": tables}
        text = json.dumps(report, indent=1) + "\n"
        self.path.with_name(self.path.name + ".json").write_text(text, encoding="utf-8")
        self.path.with_name(self.path.name + ".md").write_text(self.markdown(), encoding="utf-8")


def _plain(value: Any) -> Any:
    return value._asdict() if isinstance(value, Spread) else value
