"""Plots as SVG inside the page. Matplotlib lays them out; the page's style sheet gives colours and fonts, so that one
drawing serves light, dark and paper: each colour here stands for a variable of style.css.

Owns: the looks of every plot. Independent of: what is drawn. Reads nothing, writes nothing.
"""

import html
import io
import itertools
import math
import re

from page.document import superscript

import matplotlib
import matplotlib.ticker
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.transforms import Bbox

INK, MUTED, RULE, PAPER, GOOD, BAD = "#010101", "#010102", "#010103", "#010104", "#010105", "#010106"
SERIES = ["#010111", "#010112", "#010113", "#010114", "#010115", "#010116", "#010117"]
VARIABLES = {
    INK: "ink",
    MUTED: "muted",
    RULE: "rule",
    PAPER: "paper",
    GOOD: "good",
    BAD: "bad",
    **{colour: f"s{i + 1}" for i, colour in enumerate(SERIES)},
}
MARKERS = ["o", "s", "^", "D", "v", "P", "X"]
DASHES = ["-", (0, (5, 1.6)), (0, (4, 1.4, 1, 1.4)), (0, (1.2, 1.2)), (0, (7, 2)), (0, (3, 1, 1, 1, 1, 1)), "-"]
HATCHES = ["", "////", "---", "\\\\\\\\", "xxx", "|||", "++"]  # of lines: dots are hundreds of paths each
COLUMN, NARROW, WIDE = (
    (400, 270),
    (400, 300),
    (1080, 420),
)  # pixels: one column of the page; all of it on a phone, on a screen

matplotlib.rcParams.update(
    {
        "svg.fonttype": "none",
        "svg.hashsalt": "moe_run",
        "font.size": 11,
        "font.family": "DejaVu Sans",
        "axes.edgecolor": MUTED,
        "axes.labelcolor": INK,
        "axes.linewidth": 0.8,
        "axes.titlesize": 12,
        "axes.titlecolor": INK,
        "axes.titlelocation": "left",
        "axes.titlepad": 8,
        "axes.labelsize": 11,
        "axes.grid": True,
        "axes.axisbelow": True,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.facecolor": "none",
        "figure.facecolor": "none",
        "grid.color": RULE,
        "grid.linewidth": 0.6,
        "xtick.color": MUTED,
        "ytick.color": MUTED,
        "xtick.labelcolor": INK,
        "ytick.labelcolor": INK,
        "xtick.labelsize": 10.5,
        "ytick.labelsize": 10.5,
        "text.color": INK,
        "legend.frameon": False,
        "legend.fontsize": 10.5,
        "legend.handlelength": 2.6,
        "lines.linewidth": 1.7,
        "lines.markersize": 5,
        "hatch.linewidth": 0.9,
        "axes.unicode_minus": True,
        "mathtext.default": "regular",
    }
)
_numbers = itertools.count()


def restart():
    """For a page of its own: drawings count from 0 again."""
    global _numbers
    _numbers = itertools.count()


def svg(draw, size, label):
    """What draw(figure) drew on size pixels; label says it to who cannot see it."""
    figure = Figure(figsize=(size[0] / 72, size[1] / 72), dpi=72)
    canvas = FigureCanvasAgg(figure)  # measures text
    draw(figure)
    _fit(figure, canvas.get_renderer(), size)
    FigureCanvasSVG(figure)
    out = io.StringIO()
    figure.savefig(out, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    return _for_a_page(out.getvalue(), size, label)


def _fit(figure, renderer, size):
    """Moves the axes so that they, their labels and their legends fill the drawing: in one pass, where matplotlib's own layouts
    take several and draw twice."""
    boxes = [axes.get_position() for axes in figure.axes]
    inner = Bbox.union(boxes)
    outer = Bbox.union([axes.get_tightbbox(renderer) for axes in figure.axes])
    edge = 3
    left, bottom = inner.x0 - (outer.x0 - edge) / size[0], inner.y0 - (outer.y0 - edge) / size[1]
    right, top = 1 - (outer.x1 + edge) / size[0] + inner.x1, 1 - (outer.y1 + edge) / size[1] + inner.y1
    for axes, box in zip(figure.axes, boxes):
        x = [left + (value - inner.x0) / inner.width * (right - left) for value in (box.x0, box.x1)]
        y = [bottom + (value - inner.y0) / inner.height * (top - bottom) for value in (box.y0, box.y1)]
        axes.set_position(Bbox([[x[0], y[0]], [x[1], y[1]]]))


def _for_a_page(drawn, size, label):
    """Without what is a file's alone: its head, its own style, its fonts; ids are its own among all of a page."""
    body = drawn[drawn.index("<svg") :]
    body = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>|<!--.*?-->", "", body, flags=re.DOTALL)
    body = body[body.index(">") + 1 :]
    prefix = f"p{next(_numbers)}-"
    used = set(re.findall(r"url\(#([^)]+)\)|href=\"#([^\"]+)\"", body))
    used = {name for pair in used for name in pair if name}
    body = re.sub(r' id="([^"]+)"', lambda found: f' id="{prefix}{found[1]}"' if found[1] in used else "", body)
    body = re.sub(r'(url\(#|href="#)', rf"\g<1>{prefix}", body)
    body = re.sub(r"font: ([\d.]+px) [^;\"]*", r"font-size: \1", body)
    body = re.sub(r"font-family: [^;\"]*;? ?", "", body)
    for colour, name in VARIABLES.items():
        body = body.replace(colour, f"var(--{name})")
    body = re.sub(r"\n\s*", "\n", body)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" viewBox="0 0 {size[0]}'
        f' {size[1]}" style="max-width: {round(1.15 * size[0])}px" role="img"'
        f' aria-label="{html.escape(label, quote=True)}">{body}'
    )


# ---- axes ----


def logarithmic(axis):
    """Powers of ten in text, without TeX; where there are none or one, a few values between."""
    low, high = axis.get_view_interval()
    if low > 0 and high / low < 6:
        axis.set_major_locator(matplotlib.ticker.FixedLocator([low * (high / low) ** share for share in (0.1, 0.5, 0.9)]))
        axis.set_major_formatter(lambda value, place: f"{value:.1e}".replace("e-0", "e-"))
        axis.set_minor_locator(matplotlib.ticker.NullLocator())
        return
    axis.set_major_locator(matplotlib.ticker.LogLocator(base=10, numticks=7))
    axis.set_major_formatter(lambda value, place: superscript(round(math.log10(value))) if value > 0 else "")
    few = low > 0 and math.log10(high / low) < 1.2
    many = low > 0 and math.log10(high / low) > 3
    axis.set_minor_locator(
        matplotlib.ticker.NullLocator() if many else matplotlib.ticker.LogLocator(base=10, subs=range(2, 10), numticks=50)
    )
    axis.set_minor_formatter((lambda value, place: plain(value)) if few else matplotlib.ticker.NullFormatter())


def plain(value):
    """2·10⁻³ between powers of ten."""
    exponent = math.floor(math.log10(value) + 1e-9)
    digit = value / 10**exponent
    return f"{digit:.0f}·{superscript(exponent)}" if min(abs(digit - 2), abs(digit - 5)) < 1e-6 else ""


def whole_numbers(axis, most=8):
    axis.set_major_locator(matplotlib.ticker.MaxNLocator(nbins=most, integer=True))


def legend(axes, **options):
    """Above the axes, in as many columns as fit."""
    handles, labels = axes.get_legend_handles_labels()
    if handles:
        columns = options.pop("ncol", 2 if max(map(len, labels)) < 22 else 1)
        axes.legend(
            handles,
            labels,
            loc="lower left",
            bbox_to_anchor=(0, 1),
            ncol=columns,
            borderaxespad=0.2,
            columnspacing=1.4,
            **options,
        )


# ---- kinds of plots ----


def line(axes, x, y, style, label=None, marks=True, **options):
    """style: a number of SERIES, MARKERS and DASHES, so that lines differ without colour too."""
    options = {"color": SERIES[style], "linestyle": DASHES[style]} | options
    if marks:
        options |= {"marker": MARKERS[style], "markevery": max(1, len(x) // 16), "markeredgewidth": 0}
    return axes.plot(x, y, label=label, **options)


def bars(axes, left, widths, y, style, label=None, height=0.62):
    axes.barh(
        y, widths, height, left=left, color=SERIES[style], edgecolor=PAPER, linewidth=0.8, hatch=HATCHES[style], label=label
    )


def heat_map(figure, values, low, high, x_label, y_label, scale_label, wide, aspect="auto", log=True):
    """values: rows of a matrix, NaN where there is nothing. Neighbours are drawn as an image, however many they are."""
    axes = figure.add_axes((0.1, 0.1, 0.84, 0.8) if wide else (0.1, 0.1, 0.8, 0.72))
    norm = matplotlib.colors.LogNorm(low, high) if log else matplotlib.colors.Normalize(low, high)
    shown = axes.imshow(values, cmap="cividis", norm=norm, aspect=aspect, interpolation="none")
    axes.grid(False)
    axes.set_xlabel(x_label)
    axes.set_ylabel(y_label)
    whole_numbers(axes.xaxis, 16 if wide else 8)
    whole_numbers(axes.yaxis, 12 if wide else 8)
    beside = figure.add_axes((0.96, 0.1, 0.013, 0.8) if wide else (0.4, 0.86, 0.5, 0.025))
    scale = figure.colorbar(shown, cax=beside, orientation="vertical" if wide else "horizontal")
    scale.outline.set_visible(False)
    beside.grid(False)
    if wide:
        scale.set_label(scale_label)
    else:
        beside.xaxis.set_ticks_position("top")
        beside.text(-0.04, 0.5, scale_label, ha="right", va="center", transform=beside.transAxes)
    if log:
        logarithmic(scale.ax.yaxis if wide else scale.ax.xaxis)
    return axes
