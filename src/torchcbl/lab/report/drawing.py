"""How the laboratory's figures look, and how they are written: one style, PNG and SVG."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

# Okabe and Ito's palette: told apart with the common colour-vision deficiencies.
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
MARKERS = "os^Dvp"
INK = "#1c2733"
_STYLE: dict[Any, Any] = {
    "axes.edgecolor": INK,
    "axes.grid": True,
    "axes.labelcolor": INK,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlesize": 10,
    "font.family": "DejaVu Sans",  # comes with matplotlib: the same figure on every machine
    "font.size": 10,
    "grid.alpha": 0.35,
    "grid.linewidth": 0.5,
    "legend.frameon": False,
    "svg.fonttype": "path",
    "svg.hashsalt": "torchcbl",
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
}


def as_png(figure: Figure) -> bytes:
    """Write a figure as PNG on white."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=160, facecolor="white", metadata={"Software": None})
    return buffer.getvalue()


def as_svg(figure: Figure, name: str) -> str:
    """Write a figure as SVG to stand inside a page: no background, the page's text colour, ids of its own.

    Args:
        figure: The figure.
        name: Unique in the page; goes before every id, as two figures would otherwise share some.
    """
    buffer = io.StringIO()
    with styled():
        figure.savefig(buffer, format="svg", transparent=True, metadata=dict.fromkeys(_METADATA))
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :].replace(INK, "currentColor")
    svg = re.sub(r'(\bid="|url\(#|href="#)', rf"\1{name}-", svg)
    return re.sub(r'width="[\d.]+pt" height="[\d.]+pt"', 'aria-hidden="true"', svg, count=1)


_METADATA = ("Creator", "Date", "Format", "Type")


@contextmanager
def styled() -> Iterator[None]:
    """Draw in the laboratory's style."""
    with mpl.rc_context(_STYLE):
        yield


def canvas(height: float = 3.5) -> tuple[Figure, Axes]:
    """Make a figure with one set of axes."""
    figure = Figure(figsize=(4.8, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.add_subplot()


def grid(rows: int, columns: int, panel: float) -> tuple[Figure, Sequence[Sequence[Axes]]]:
    """Make a figure with rows x columns axes of so many inches."""
    figure = Figure(figsize=(panel * columns + 0.6, panel * rows + 0.5), layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.subplots(rows, columns, squeeze=False)  # type: ignore[return-value]


def title(axes: Axes, what: str, finding: str) -> None:
    """Say above the axes what is shown, and below it what came out."""
    axes.set_title(f"{what}\n{finding}" if finding else what, loc="left")


def legend(figure: Figure, axes: Axes) -> None:
    """Put the legend below the axes."""
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=3, fontsize=9)
