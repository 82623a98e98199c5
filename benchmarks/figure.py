"""The figure: how many times longer than jaxnorm each peer takes, for every op."""

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from benchmarks.providers import PROVIDERS
from benchmarks.results import peers_of, timed_mean
from benchmarks.runner import Row
from benchmarks.shapes import DTYPES, MODE_LABELS, MODES, OPS

TICKS = (0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100)
BAND = 0.82  # of the distance between two ops is for bars


def plot_ratios(rows: Sequence[Row], title: str) -> Figure:
    """Draw one panel a mode and dtype; geometric means over the shapes of an op."""
    timed = [row for row in rows if row.ratio is not None]
    modes = [mode for mode in MODES if any(row.mode == mode for row in timed)]
    dtypes = [dtype for dtype in DTYPES if any(r.case.dtype == dtype for r in timed)]
    ops = [op for op in OPS if any(row.case.op == op for row in timed)]
    peers = peers_of(timed)
    width = max(5.5, 1.2 + 0.14 * len(ops) * max(len(peers), 2))
    figure = Figure(
        figsize=(width * len(dtypes), 0.9 + 3.1 * len(modes)), layout="constrained"
    )
    panels = figure.subplots(len(modes), len(dtypes), squeeze=False, sharey=True)
    for mode, line in zip(modes, panels, strict=True):
        for dtype, axes in zip(dtypes, line, strict=True):
            _plot_panel(axes, timed, ops, peers, mode, dtype)
        line[0].set_ylabel("time / jaxnorm's time")
    figure.suptitle(title)
    handles, labels = panels[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(peers) or 1)
    return figure


def _plot_panel(
    axes: Axes,
    rows: Sequence[Row],
    ops: Sequence[str],
    peers: Sequence[str],
    mode: str,
    dtype: str,
) -> None:
    step = BAND / max(len(peers), 1)
    for index, peer in enumerate(peers):
        means = [
            timed_mean(rows, op=op, dtype=dtype, mode=mode, provider=peer) for op in ops
        ]
        found = {
            place - BAND / 2 + (index + 0.5) * step: mean
            for place, mean in enumerate(means)
            if mean is not None
        }
        # Bars start at 1: up is jaxnorm ahead, down is the peer ahead. A dot is at
        # their end, so that 1 is told from what was not measured.
        color = PROVIDERS[peer].color
        places, ends = list(found.keys()), list(found.values())
        heights = [end - 1 for end in ends]
        axes.bar(places, heights, 0.9 * step, bottom=1, color=color, label=peer)
        axes.scatter(places, ends, s=4, color=color, zorder=3)
    axes.axhline(1, color="#222222", linewidth=1.2)
    axes.set(yscale="log", title=f"{MODE_LABELS[mode]}, {dtype}")
    labels = [OPS[op].label.replace(" ", "\n", 1) for op in ops]
    axes.set_xticks(range(len(ops)), labels)
    axes.grid(visible=False, axis="x")
    axes.yaxis.set_major_locator(FixedLocator(TICKS))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}x"))
    axes.margins(y=0.08)
