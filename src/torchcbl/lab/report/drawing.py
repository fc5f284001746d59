"""How the laboratory's figures look, and how they are written: one style, PNG and SVG."""

from __future__ import annotations

import io
import re
import textwrap
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullFormatter

# The first six are Okabe and Ito's, told apart with the common colour-vision deficiencies; with the others, look at the
# markers too.
PALETTE = (
    *("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9"),
    *("#8C564B", "#7B66D2", "#8A9A00", "#7F8790"),
)
MARKERS = "os^Dvp<>hP"
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
    "text.parse_math": False,  # names of classes may hold dollars
    "xtick.color": INK,
    "ytick.color": INK,
}


def as_png(figure: Figure) -> bytes:
    """Write a figure as PNG on white; its layout is settled then."""
    buffer = io.BytesIO()
    with styled():
        figure.savefig(buffer, format="png", dpi=160, facecolor="white", metadata={"Software": None})
    figure.set_layout_engine("none")  # working it out again for the SVG takes as long as drawing
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


def log_scale(axes: Axes) -> None:
    """Make the y axis logarithmic, with plain numbers: matplotlib's own are formulas, not read here."""
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())


def wide_canvas(height: float) -> tuple[Figure, Axes]:
    """Make a figure with one set of axes that has room for long names beside them."""
    figure = Figure(figsize=(7.4, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.add_subplot()


def panels(count: int, xlabel: str, ylabel: str, *, sharey: bool = True) -> tuple[Figure, list[Axes]]:
    """Make a figure with so many small axes, up to four in a row; they share the x-axis, and the y-axis if wanted."""
    columns = min(4, count)
    rows = -(-count // columns)
    figure = Figure(figsize=(2.45 * columns + 0.4, 1.95 * rows + 0.7), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=sharey).ravel()
    for unused in axes[count:]:
        unused.set_axis_off()
    for below in axes[max(0, count - columns) : count]:
        below.tick_params(labelbottom=True)
        below.set_xlabel(xlabel, fontsize=8)
    figure.supylabel(ylabel, fontsize=9)
    for each in axes:
        each.tick_params(labelsize=8)
        each.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    return figure, list(axes[:count])


def grid(rows: int, columns: int, panel: float) -> tuple[Figure, Sequence[Sequence[Axes]]]:
    """Make a figure with rows x columns axes of so many inches."""
    figure = Figure(figsize=(panel * columns + 0.6, panel * rows + 0.5), layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.subplots(rows, columns, squeeze=False)  # type: ignore[return-value]


def title(axes: Axes, what: str, finding: str) -> None:
    """Say above the axes what is shown, and below it what came out."""
    axes.set_title(f"{what}\n{finding}" if finding else what, loc="left")


def wrapped(start: str, parts: Sequence[str]) -> str:
    """Join by commas, with a line break before what would run out of the figure."""
    joined = start + ", ".join(part.replace(" ", "\0") for part in parts)
    return textwrap.fill(joined, 58, break_on_hyphens=False).replace("\0", " ")


def legend(figure: Figure, axes: Axes) -> None:
    """Put the legend below the axes, in as many columns as its names leave room for."""
    handles, labels = axes.get_legend_handles_labels()
    room = int(13 * figure.get_figwidth())  # characters
    columns = max(1, min(4, room // (6 + max(map(len, labels), default=1))))
    figure.legend(handles, labels, loc="outside lower center", ncols=columns, fontsize=9)
