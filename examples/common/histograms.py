"""What every layer receives, before and after training, one row of panels a norm."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from examples.common.style import NORM_COLORS, NORM_LABELS

BINS = 45
TAIL = 0.5  # percent of the values that each end of a panel may cut off
START_COLOR = "#222222"


class LayerInputs(NamedTuple):
    """Pre-activations of every layer, in the order of the layers.

    Attributes:
      start: arrays of any shape, before the first step.
      end: the same after the last step.
    """

    start: Sequence[np.ndarray]
    end: Sequence[np.ndarray]


def plot_layer_inputs(layer_inputs: Mapping[str, LayerInputs]) -> Figure:
    """Draw a histogram for each norm (rows) and each layer (columns)."""
    depth = max(len(inputs.start) for inputs in layer_inputs.values())
    size = (max(6.5, 1.2 + 1.75 * depth), 1.3 + 1.65 * len(layer_inputs))
    figure = Figure(figsize=size, layout="constrained")
    grid = figure.subplots(len(layer_inputs), depth, squeeze=False)
    for row, (norm, inputs) in zip(grid, layer_inputs.items(), strict=True):
        for axes, start, end in zip(row, inputs.start, inputs.end, strict=True):
            _plot_panel(axes, start, end, NORM_COLORS[norm])
        row[0].set_ylabel(NORM_LABELS[norm], fontweight="bold")
    for layer, (top, bottom) in enumerate(zip(grid[0], grid[-1], strict=True), start=1):
        top.set_title(f"layer {layer}")
        bottom.set_xlabel("pre-activation")
    figure.supylabel("density", fontsize=10)
    figure.suptitle("What the ReLU of every layer receives")
    figure.legend(handles=_legend_handles(), loc="outside lower center", ncols=2)
    return figure


def _plot_panel(axes: Axes, start: np.ndarray, end: np.ndarray, color: str) -> None:
    start, end = (array[np.isfinite(array)] for array in (start.ravel(), end.ravel()))
    axes.set_yticks([])
    axes.grid(False)
    axes.spines["left"].set_visible(False)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=4))
    axes.axvline(0, color="#BBBBBB", linewidth=0.8, zorder=0)
    if not (start.size and end.size):
        axes.text(0.5, 0.5, "not finite", ha="center", transform=axes.transAxes)
        return
    edges = _bin_edges(start, end)
    axes.hist(end, edges, density=True, color=color, alpha=0.55)
    axes.hist(start, edges, density=True, color=START_COLOR, histtype="step")


def _bin_edges(start: np.ndarray, end: np.ndarray) -> np.ndarray:
    """Return edges that hold both histograms but for their extreme tails."""
    tails = [np.percentile(array, [TAIL, 100 - TAIL]) for array in (start, end)]
    low, high = np.min(tails), np.max(tails)
    margin = 0.05 * (high - low) or 1.0  # a constant has no width of its own
    return np.linspace(low - margin, high + margin, BINS + 1)


def _legend_handles() -> list[Patch]:
    return [
        Patch(facecolor="none", edgecolor=START_COLOR, label="before training"),
        Patch(facecolor="#999999", alpha=0.7, label="after training"),
    ]
