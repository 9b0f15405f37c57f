"""How a report's pictures are drawn: matplotlib figures 8 cm wide with text of 7 points, and the numbers they show.

Shape suffixes: R rows, C columns.
"""

from __future__ import annotations

import textwrap
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from io import BytesIO
from typing import TYPE_CHECKING, Any

import numpy as np

from plots import BLUE, COLOUR_MAP, ORANGE, VERMILLION

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's palette without its yellow, which is too light for lines.
PALETTE = (BLUE, VERMILLION, "#009E73", "#CC79A7", ORANGE, "#56B4E9", "#000000")
MARKERS, DASHES = "os^Dv<>", ("-", "--", "-.", ":")
LINES_IN_A_PICTURE = len(PALETTE)
WIDTH = 8 / 2.54  # inches
STYLE = {"font.size": 7, "axes.titlesize": 7, "axes.labelsize": 7, "xtick.labelsize": 6.5, "ytick.labelsize": 6.5,
         "legend.fontsize": 6.5, "axes.linewidth": 0.6, "lines.linewidth": 1.1, "lines.markersize": 3,
         "xtick.major.width": 0.6, "ytick.major.width": 0.6, "text.parse_math": False, "font.family": "sans-serif",
         "svg.fonttype": "none", "pdf.fonttype": 42}


@dataclass
class Picture:
    name: str
    """Of its file of numbers, without ending; no other picture of the report has it."""
    title: str
    caption: str
    numbers: list[list[Any]]
    """What is drawn, as lines of a CSV file, a header first."""
    draw: Callable[[Figure, str], Axes]
    """Draws it and returns what holds its title and axis labels."""

    def figure(self) -> tuple[Figure, Axes]:
        """Call it, and save the figure, inside `style()`."""
        from matplotlib.figure import Figure

        figure = Figure(figsize=(WIDTH, 0.78 * WIDTH), layout="constrained")
        axes = self.draw(figure, self.title)
        axes.set_title("\n".join(textwrap.wrap(self.title, 52)), fontweight="bold")
        return figure, axes

    def svg(self) -> str:
        """An `<svg>` element whose ids no other picture has; the same for the same numbers."""
        from matplotlib.backends.backend_svg import FigureCanvasSVG

        with style(**{"svg.hashsalt": self.name}), warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Glyph .* missing")  # the reader's browser has fonts of its own
            figure, axes = self.figure()
            buffer = BytesIO()
            # Not figure.savefig, which draws once more beforehand.
            FigureCanvasSVG(figure).print_svg(buffer, metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")))
        text = buffer.getvalue().decode("utf-8", "replace")
        body = text[text.index("<svg"):]
        for mark in ('id="', 'href="#', "url(#"):  # ids such as axes_1 are in every picture
            body = body.replace(mark, f"{mark}{self.name}-")
        label = {"x": axes.get_xlabel(), "y": axes.get_ylabel()}
        attributes = f'role="img" data-x="{escape(label["x"])}" data-y="{escape(label["y"])}" '
        return body.replace("<svg ", f"<svg {attributes}", 1).replace(
            ">", f"><title>{escape(self.title)}</title>", 1)


def style(**more: Any):
    from matplotlib import rc_context

    return rc_context(STYLE | more)


def escape(text: str) -> str:
    import html

    return html.escape(printable(text))


def printable(text: str) -> str:
    """Names of folders may hold what neither a page nor a picture can."""
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)


def line_picture(name: str, title: str, x_label: str, y_label: str,
                 lines: Sequence[tuple[str, Sequence[int], np.ndarray]], caption: str,
                 bounds: tuple[float | None, float | None] = (None, None)) -> Picture:
    """`lines`: a label, the places on the x axis, and values [runs, places]."""
    numbers: list[list[Any]] = [["line", x_label, "mean", "std", "runs"]]
    for label, at, values in lines:
        spread = values.std(0, ddof=1) if len(values) > 1 else [""] * len(at)
        numbers += [[label, x, mean, std, len(values)]
                    for x, mean, std in zip(at, values.mean(0).tolist(), map(_plain, spread), strict=True)]

    def draw(figure: Figure, _: str) -> Axes:
        axes = figure.subplots()
        for place, (label, at, values) in enumerate(lines):
            colour = PALETTE[place % len(PALETTE)]
            mean = values.mean(0)
            axes.plot(at, mean, color=colour, marker=MARKERS[place % len(MARKERS)], label=short(label),
                      linestyle=DASHES[place % len(DASHES)], clip_on=False, markevery=max(1, len(at) // 10))
            if len(values) > 1:
                spread = values.std(0, ddof=1)
                axes.fill_between(at, mean - spread, mean + spread, color=colour, alpha=0.2, linewidth=0)
        axes.set_ylim(*bounds)
        _whole_numbers(axes.xaxis)
        axes.set_xlabel(x_label)
        axes.set_ylabel(y_label)
        axes.grid(color="0.9", linewidth=0.5)
        axes.spines[["top", "right"]].set_visible(False)
        figure.legend(loc="outside lower center", ncols=1 if max(len(short(line[0])) for line in lines) > 22 else 2,
                      frameon=False, handlelength=3)
        return axes

    return Picture(name, title, caption, numbers, draw)


def _plain(value: Any) -> Any:
    return float(value) if isinstance(value, np.floating) else value


def short(label: str, length: int = 60) -> str:
    return label if len(label) <= length else label[:length - 1] + "…"


def _whole_numbers(axis: Any) -> None:
    from matplotlib.ticker import MaxNLocator

    axis.set_major_locator(MaxNLocator(nbins=8, integer=True))


def heat_picture(name: str, title: str, x_label: str, y_label: str, values_RC: np.ndarray, scale: str,
                 limits: tuple[float, float], caption: str, first: tuple[int, int] = (1, 1),
                 digits: int = 0, columns: Sequence[Any] | None = None) -> Picture:
    """A heat map; nan is blank. `first`: the number of the first row and the first column."""
    header = list(columns or range(first[1], first[1] + values_RC.shape[1]))
    numbers = [[f"{y_label} \\ {x_label}", *header],
               *([row + first[0], *("" if np.isnan(value) else float(value) for value in values)]
                 for row, values in enumerate(values_RC))]

    def draw(figure: Figure, _: str) -> Axes:
        axes = figure.subplots()
        rows, cols = values_RC.shape
        image = axes.imshow(np.ma.masked_invalid(values_RC), cmap=COLOUR_MAP, vmin=limits[0], vmax=limits[1],
                            aspect="auto", interpolation="nearest",
                            extent=(first[1] - 0.5, first[1] + cols - 0.5, first[0] + rows - 0.5, first[0] - 0.5))
        figure.colorbar(image, ax=axes, label=scale).outline.set_linewidth(0.5)
        if max(rows, cols) <= 10:
            for (row, col), value in np.ndenumerate(values_RC):
                if not np.isnan(value):
                    dark = value < (limits[0] + limits[1]) / 2
                    shown = round(value, digits) + 0.0  # no -0.0
                    text = axes.text(col + first[1], row + first[0], f"{shown:.{digits}f}", ha="center", va="center",
                                     fontsize=6, color="white" if dark else "black")
                    text.set_in_layout(False)  # it lies inside: measuring hundreds of them takes long
        _whole_numbers(axes.xaxis)
        _whole_numbers(axes.yaxis)
        if columns is not None:
            shown = sorted({round(t) for t in np.linspace(0, cols - 1, min(cols, 8))})
            axes.set_xticks([t + first[1] for t in shown], labels=[str(columns[t]) for t in shown])
        axes.set_xlabel(x_label)
        axes.set_ylabel(y_label)
        return axes

    return Picture(name, title, caption, numbers, draw)
