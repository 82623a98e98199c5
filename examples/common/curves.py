"""Loss and accuracy over the epochs, one color a norm."""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator, PercentFormatter, ScalarFormatter

from examples.common.style import NORM_COLORS, NORM_LABELS

History = Mapping[str, Sequence[float]]


def plot_curves(histories: Mapping[str, History]) -> Figure:
    """Draw the loss and the accuracy, on the training and on the test images.

    Args:
      histories: for each norm the sequences "train_loss", "test_loss",
        "train_accuracy" and "test_accuracy", one value an epoch.
    """
    figure = Figure(figsize=(10, 4.4), layout="constrained")
    loss_axes, accuracy_axes = figure.subplots(1, 2)
    _plot_quantity(loss_axes, histories, "loss")
    loss_axes.set(yscale="log", ylabel="cross entropy", title="Loss")
    lowest, highest = loss_axes.get_ylim()
    if highest < 10 * lowest:  # powers of ten would all be between two of them
        loss_axes.yaxis.set_major_formatter(ScalarFormatter())
        loss_axes.yaxis.set_minor_formatter(ScalarFormatter())
    _plot_quantity(accuracy_axes, histories, "accuracy")
    accuracy_axes.set(ylabel="images classified correctly", title="Accuracy")
    accuracy_axes.set_ylim(*_accuracy_limits(histories))
    accuracy_axes.yaxis.set_major_formatter(PercentFormatter(xmax=1, decimals=None))
    figure.legend(
        handles=_legend_handles(histories), loc="outside lower center", ncols=8
    )
    return figure


def _plot_quantity(axes: Axes, histories: Mapping[str, History], name: str) -> None:
    for norm, history in histories.items():
        for part, line in (("train", "--"), ("test", "-")):
            values = history[f"{part}_{name}"]
            axes.plot(
                range(1, len(values) + 1),
                values,
                line,
                color=NORM_COLORS[norm],
                marker="o" if len(values) == 1 else None,
                linewidth=1.2 if part == "train" else 2.0,
            )
    axes.set_xlabel("epoch")
    axes.xaxis.set_major_locator(
        MaxNLocator(integer=True, steps=[1, 2, 5, 10], min_n_ticks=1)
    )


def _accuracy_limits(histories: Mapping[str, History]) -> tuple[float, float]:
    """Return limits that leave room to tell the last epochs apart.

    The first epochs may start below the panel, so that the last errors take a sixth of
    its height.
    """
    tested = [history["test_accuracy"] for history in histories.values()]
    worst_error = 1 - min(accuracies[-1] for accuracies in tested)
    # Of a run that was resumed, what was before may be unknown.
    bottom = max(np.nanmin(tested), 1 - 6 * worst_error) - 0.02
    return bottom, 1 + 0.05 * (1 - bottom)


def _legend_handles(histories: Mapping[str, History]) -> list[Line2D]:
    colors = [
        Line2D([], [], color=NORM_COLORS[norm], label=NORM_LABELS[norm])
        for norm in histories
    ]
    lines = [
        Line2D(
            [], [], color="#222222", linestyle="-", label="test images, after an epoch"
        ),
        Line2D(
            [],
            [],
            color="#222222",
            linestyle="--",
            label="training images, mean over the epoch",
        ),
    ]
    return colors + lines
