"""The lines of the result: what was measured, and the target where there is one."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple


class Line(NamedTuple):
    """One figure. `shown` says what the ratio is of."""

    name: str
    value: float
    unit: str
    shown: str = ""
    at_least: float | None = None
    at_most: float | None = None
    aim: float | None = None

    @property
    def figure(self) -> str:
        """The figure, with two or three digits that count."""
        digits = 0 if self.value >= 20 else 1 if self.value >= 2 else 2
        return f"{self.value:.{digits}f} {self.unit}".strip()

    @property
    def target(self) -> str:
        """The target, with the aim beyond it."""
        if self.at_least is not None:
            return f"≥ {self.at_least:g}" + (f" (aim {self.aim:g})" if self.aim else "")
        return "" if self.at_most is None else f"≤ {self.at_most:g}"

    @property
    def verdict(self) -> str:
        """Whether the target was met, and by how much it was missed."""
        if self.at_least is not None:
            return "met" if self.value >= self.at_least else f"missed: {self.value / self.at_least:.0%} of it"
        if self.at_most is not None:
            return "met" if self.value <= self.at_most else f"missed: {self.value / self.at_most:.1f} times it"
        return ""


def text(line: Line) -> str:
    """Return the line for the terminal."""
    target = f"target {line.target}, {line.verdict}" if line.target else ""
    return f"{line.name:<92} {line.figure:>10}   {'; '.join(part for part in (target, line.shown) if part)}"


def markdown(lines: Iterable[Line]) -> str:
    """Return the lines as a table in Markdown."""
    rows = [f"| {ln.name} | {ln.figure} | {ln.target} | {ln.verdict} | {ln.shown} |" for ln in lines]
    return "\n".join(["| what | measured | target | | of |", "|---|---|---|---|---|", *rows])
