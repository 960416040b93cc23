"""Plots as small inline SVG, drawn by matplotlib: no script, no ids, the colours and the font of the page around them.

Matplotlib writes colours as numbers; each that is used here stands for a variable of the page's style, which knows
light and dark, and is put in its place. Text stays text, which a browser has letters for: that Matplotlib's font lacks
some (a metric is called by its file of questions) is no news. The same figures give the same bytes.
"""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from markupsafe import Markup, escape

from niwaki.drawing import load_matplotlib

_INKS = {"ink": "#010101", "soft": "#010102", "line": "#010103", "dense": "#010104", "accent": "#010105"}
_INKS |= {f"series-{number}": f"#01020{number}" for number in range(8)}
_DASHES = ("-", "--", ":", "-.", (0, (5, 1)), (0, (1, 1)), (0, (3, 1, 1, 1)), "-")
_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "niwaki",
    "text.parse_math": False,
    "font.size": 11,
    "text.color": _INKS["ink"],
    "axes.edgecolor": _INKS["line"],
    "axes.labelcolor": _INKS["soft"],
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.spines.left": False,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.axisbelow": True,
    "grid.color": _INKS["line"],
    "grid.linewidth": 0.5,
    "xtick.labelcolor": _INKS["soft"],
    "ytick.labelcolor": _INKS["soft"],
    "xtick.major.size": 0,
    "xtick.minor.size": 0,
    "ytick.major.size": 0,
    "ytick.minor.size": 0,
    "legend.frameon": False,
    "legend.handlelength": 2.2,
    "legend.fontsize": 11,
}
_WIDE, _HIGH = 4.7, 2.5
"""Inches, of 72 units of the drawing each."""
_LETTER = 0.02
"""Of the width, what a letter takes."""
_ACROSS = 3
"""Names of lines beside each other."""

Lines = Mapping[str, Sequence[float]]
"""Name of a line -> its heights."""


def lines(title: str, over: str, places: Sequence[float], named: Lines, height: str, *, steps: bool = False) -> Markup:
    """Lines over the same places, each with a dash of its own; `dense` and `pruned` in their own colours."""

    def draw(axes: Any) -> None:
        for number, (name, values) in enumerate(named.items()):
            ink = _INKS[{"dense": "dense", "pruned": "accent"}.get(name, f"series-{number % 8}")]
            style = {"color": ink, "linestyle": _DASHES[number % 8], "linewidth": 1.8, "clip_on": False}
            axes.plot(places, values, label=name, drawstyle="steps-post" if steps else "default", **style)
        axes.set(xlabel=over, ylabel=height)
        whole = all(float(place).is_integer() for place in places)
        axes.xaxis.get_major_locator().set_params(integer=whole, nbins=7)
        if len(named) > 1:
            axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=_ACROSS, borderaxespad=0.2)

    ends = "; ".join(f"{name} from {values[0]:.3g} to {values[-1]:.3g}" for name, values in named.items())
    rows = -(-len(named) // _ACROSS) if len(named) > 1 else 0
    return _drawn(title, f"{height} over {over}: {ends}.", draw, top=0.15 + 0.22 * rows)


def shares(title: str, names: Sequence[str], values: Sequence[tuple[float, float, float]], over: str) -> Markup:
    """A bar for each name up to the middle of `values` (low, middle, high), with a whisker, beside 1 for dense.

    A name goes on in a new line after a comma, and has the room that its longest line takes.
    """
    labels = [name.replace(", ", ",\n") for name in names]
    longest = max(len(line) for label in labels for line in label.splitlines())

    def draw(axes: Any) -> None:
        rows = range(len(names))
        axes.barh(rows, [1.0] * len(names), height=0.62, color=_INKS["line"])
        axes.barh(rows, [middle for _, middle, _ in values], height=0.34, color=_INKS["accent"])
        for row, (low, _, high) in zip(rows, values, strict=True):
            axes.plot([low, high], [row, row], color=_INKS["ink"], linewidth=1.2, clip_on=False)
        axes.set_yticks(list(rows), labels)
        axes.invert_yaxis()
        axes.set(xlabel=over, xlim=(0, max(1.02, *(high for _, _, high in values))))
        axes.grid(False)

    said = "; ".join(f"{name} {middle:.2f}" for name, (_, middle, _) in zip(names, values, strict=True))
    return _drawn(title, f"{over}: {said}.", draw, height=0.7 + 0.42 * len(names), left=max(0.22, _LETTER * longest))


def points(
    title: str, places: Sequence[tuple[float, float]], frontier: Sequence[int], over: str, height: str
) -> Markup:
    """Numbered points in a plane, the first for dense; a line goes through those of the `frontier`."""

    def draw(axes: Any) -> None:
        axes.plot(*zip(*(places[index] for index in frontier), strict=True), color=_INKS["accent"], linewidth=0.9)
        for number, (x, y) in enumerate(places):
            dot = {"color": _INKS["accent" if number else "dense"], "linewidth": 8, "solid_capstyle": "round"}
            axes.plot([x, x], [y, y], clip_on=False, zorder=3, **dot)
            axes.annotate(str(number) if number else "dense", (x, y), (0, 8), textcoords="offset points", ha="center")
        axes.set(xlabel=over, ylabel=height)
        axes.margins(0.12, 0.22)

    said = "; ".join(f"{number or 'dense'} at {x:.3g}, {y:.4g}" for number, (x, y) in enumerate(places))
    return _drawn(title, f"{height} over {over}: {said}.", draw)


def _drawn(
    title: str,
    description: str,
    draw: Callable[[Any], None],
    *,
    height: float = _HIGH,
    left: float = 0.15,
    top: float = 0.15,
) -> Markup:
    matplotlib = load_matplotlib()
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    text = io.StringIO()
    with matplotlib.rc_context(_STYLE), warnings.catch_warnings():
        warnings.filterwarnings("ignore", r"Glyph \d+")
        height += top
        figure = Figure(figsize=(_WIDE, height))
        FigureCanvasSVG(figure)
        axes = figure.add_axes((left, 0.5 / height, 0.97 - left, 1 - (0.5 + top) / height))
        axes.patch.set_visible(False)
        figure.patch.set_visible(False)
        draw(axes)
        figure.savefig(text, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    return Markup(_inlined(text.getvalue(), title, description))


def _inlined(svg: str, title: str, description: str) -> str:
    """The drawing as a part of a page: what would be that of a file, or meet others on the page, goes."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<defs>\s*<style.*?</style>\s*</defs>|<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r"<defs>\s*<clipPath.*?</defs>", "", svg, flags=re.DOTALL)
    svg = re.sub(r' (id|clip-path)="[^"]*"', "", svg)
    svg = re.sub(r" font-family: [^;\"]*;", "", svg)
    for name, ink in _INKS.items():
        svg = svg.replace(ink, f"var(--{name})")
    box = re.search(r'viewBox="[^"]*"', svg)
    assert box is not None, "matplotlib says how large a drawing is"
    head = f'<svg role="img" class="plot" {box[0]}><title>{escape(title)}</title><desc>{escape(description)}</desc>'
    svg = head + svg[svg.index(">") + 1 :]
    return re.sub(r"\s*\n\s*", " ", svg)
