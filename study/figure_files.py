"""What all figures have: looks that tell arms apart, and the files of a figure with the data that are drawn in it."""

from __future__ import annotations

import csv
import io
import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.figure import Figure

from trainables.stage import StageKind

# Okabe and Ito, "Color Universal Design" (2008), without yellow, which white paper swallows. Neighbours are far apart
# for colour-blind readers, too.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#E69F00", "#CC79A7", "#000000", "#56B4E9")
LINES = ("-", "--", ":", "-.")
MARKERS = ("o", "s", "^", "D", "v")
PIXELS_PER_INCH = 150

# How a figure is saved beside its SVG, by the format.
BESIDE_SVG: dict[str, dict[str, Any]] = {"pdf": {"metadata": {"CreationDate": None}}, "png": {"dpi": PIXELS_PER_INCH}}

# How bars of each kind of stage are drawn.
BARS: dict[str, dict[str, Any]] = {
    kind: {"facecolor": colour, "hatch": hatch, "edgecolor": "white"}
    for kind, colour, hatch in zip(get_args(StageKind), COLOURS, ("", "//", r"\\", "xx", "--", "||"), strict=False)
}

Value = str | int | float | None  # of a CSV file; None is empty


@dataclass(frozen=True)
class Look:
    """How an arm is drawn; arms next to each other differ in all three."""

    colour: str
    line: str
    marker: str


@dataclass(frozen=True)
class Drawn:
    """A figure, and the points in it: a row each, below columns that name their units."""

    figure: Figure
    columns: tuple[str, ...]
    rows: Sequence[tuple[Value, ...]]


def looks(names: Iterable[str]) -> dict[str, Look]:
    """A look for each name, in the order of the names; 140 of them are different."""
    cycles = zip(itertools.cycle(COLOURS), itertools.cycle(LINES), itertools.cycle(MARKERS), strict=False)
    return {name: Look(*look) for name, look in zip(names, cycles, strict=False)}


def save(drawn: Drawn, path: Path) -> str:
    """Write the figure beside `path` as SVG, PDF, PNG and CSV, and close it; returns the SVG element."""
    svg = io.StringIO()
    drawn.figure.draw_without_rendering()
    drawn.figure.set_layout_engine(None)  # it is laid out now, once for all files
    # Text stays text in SVG, fonts are embedded as TrueType in PDF, and names in the SVG are the same each time.
    with matplotlib.rc_context({"svg.fonttype": "none", "pdf.fonttype": 42, "svg.hashsalt": path.name}):
        drawn.figure.savefig(svg, format="svg", metadata={"Date": None})
        for suffix, options in BESIDE_SVG.items():
            drawn.figure.savefig(path.with_suffix(f".{suffix}"), **options)
    plt.close(drawn.figure)
    path.with_suffix(".svg").write_text(svg.getvalue(), encoding="utf-8")
    with path.with_suffix(".csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(drawn.columns)
        writer.writerows([_shown(value) for value in row] for row in drawn.rows)
    text = svg.getvalue()
    return text[text.index("<svg") :]


def _shown(value: Value) -> Value:
    return f"{value:.8g}" if isinstance(value, float) else value
