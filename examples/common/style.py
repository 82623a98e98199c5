"""One look for all figures: colors that a norm keeps everywhere, and how to save."""

from collections.abc import Callable
from pathlib import Path

import matplotlib

matplotlib.use("Agg")  # figures go to files, also where there is no screen

from matplotlib.figure import Figure

# Okabe and Ito's palette, which stays apart for color-blind readers.
NORM_COLORS = {
    "batch": "#0072B2",
    "group": "#D55E00",
    "layer": "#009E73",
    "instance": "#CC79A7",
    "none": "#6E6E6E",
}
NORM_LABELS = {
    "batch": "BatchNorm",
    "group": "GroupNorm",
    "layer": "LayerNorm",
    "instance": "InstanceNorm",
    "none": "no norm",
}

RC_PARAMS = {
    "axes.axisbelow": True,
    "axes.edgecolor": "#444444",
    "axes.grid": True,
    "axes.labelcolor": "#222222",
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlesize": 11,
    "axes.titleweight": "bold",
    "figure.titlesize": 13,
    "figure.titleweight": "bold",
    "font.size": 10,
    "grid.color": "#E4E4E4",
    "grid.linewidth": 0.8,
    "legend.frameon": False,
    "lines.linewidth": 1.8,
    "savefig.dpi": 150,
    "xtick.color": "#444444",
    "ytick.color": "#444444",
}


def draw_figure(draw: Callable[[], Figure], path: Path) -> Path:
    """Draw a figure in this style, write it as a PNG and return its path."""
    with matplotlib.rc_context(RC_PARAMS):
        draw().savefig(path, facecolor="white")
    return path
