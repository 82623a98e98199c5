"""Show how the cost of a norm grows with the size of its input.

Time per element should be flat: from 1e5 to 1e8 elements, and from 1 to 8192 channels
at one number of elements.

python -m benchmarks.growth
python -m benchmarks.growth --help
"""

import math
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import tyro

from benchmarks import settings
from benchmarks.providers import PROVIDERS, SUBJECT
from benchmarks.shapes import MODE_LABELS, Case, Dtype, Mode, shape_name
from examples.common.options import one_line_errors, require_positive

PeerName = Literal["linen", "nnx", "haiku", "jax.nn"]
GrowingOp = Literal["batch_norm", "batch_norm_eval", "layer_norm", "rms_norm"]

AXES = ("elements", "channels")
SMALLEST = 10**5  # elements, where they grow
LABELS = {"elements": "elements of the input", "channels": "channels"}


@dataclass(frozen=True)
class Config:
    """Show how the cost of a norm grows with the size of its input."""

    ops: tuple[GrowingOp, ...] = ("batch_norm", "layer_norm")
    """The operations, on inputs of shape (rows, channels)."""
    dtype: Dtype = "float32"
    """The dtype of the input."""
    mode: Mode = "vjp"
    """The forward pass, it and gradients, or it and a tangent."""
    peer: PeerName = "linen"
    """The peer beside jaxnorm."""
    largest: float = 1e8
    """The most elements."""
    elements: float = 4e6
    """The number of elements at which the channels grow."""
    channels: int = 256
    """The number of channels at which the elements grow."""
    most_channels: int = 8192
    """The most channels."""
    rounds: int = 7
    """Samples of each program."""
    sample_ms: float = 10
    """A sample repeats the call for about so long."""
    out: Path = Path("runs/benchmarks")
    """Where growth.json and growth.png go."""

    def __post_init__(self) -> None:
        """Refuse what makes no sense before any work is done."""
        names = ("largest", "elements", "channels", "most_channels", "rounds")
        numbers = {name: getattr(self, name) for name in names}
        require_positive(**numbers, sample_ms=self.sample_ms)
        if not self.ops:
            raise ValueError("--ops takes one operation or more")
        if self.largest < SMALLEST or self.channels > SMALLEST:
            raise ValueError(
                f"--largest must be {SMALLEST:g} or more, and --channels no more: they "
                f"are {self.largest:g} and {self.channels}"
            )


def growing_cases(config: Config, op: str) -> dict[str, list[Case]]:
    """Return cases of more and more elements, and of more and more channels."""
    powers = range(round(math.log10(config.largest / SMALLEST)) + 1)
    sizes = [base * SMALLEST * 10**power for power in powers for base in (1, 3)]
    sizes = [size for size in sizes if size <= config.largest]
    widths = [2**power for power in range(config.most_channels.bit_length())]
    shapes = {
        "elements": [(size // config.channels, config.channels) for size in sizes],
        "channels": [(int(config.elements) // width, width) for width in widths],
    }
    return {
        axis: [Case(op, shape, config.dtype) for shape in shapes[axis] if shape[0]]
        for axis in AXES
    }


def check_peer(config: Config) -> None:
    """Raise ValueError unless the peer has the operations."""
    for op in config.ops:
        if PROVIDERS[config.peer].build(Case(op, (2, 2), config.dtype)) is None:
            raise ValueError(f"--peer {config.peer} has no {op}; choose other --ops")


def measure_growth(config: Config) -> list[dict[str, Any]]:
    """Return one record a case and provider, nanoseconds per element in it."""
    from benchmarks.runner import Plan, Timing, run_here

    names = SUBJECT, config.peer
    timing = Timing(config.rounds, config.sample_ms / 1e3)
    records = []
    for op in config.ops:
        for axis, cases in growing_cases(config, op).items():
            for row in run_here(Plan(cases, [config.mode], names, timing)):
                records.append(
                    {
                        "op": op,
                        "axis": axis,
                        "provider": row.provider,
                        "shape": list(row.case.shape),
                        "nanoseconds_per_element": {
                            name: 1e9 * getattr(row.seconds, name) / row.case.size
                            for name in ("median", "first_quartile", "third_quartile")
                        },
                    }
                )
    return records


def growth_table(records: Sequence[dict[str, Any]]) -> list[dict[str, str]]:
    """Return the median nanoseconds per element, a column for each provider."""
    table: dict[tuple[str, str, str], dict[str, str]] = {}
    for record in records:
        key = record["op"], record["axis"], shape_name(record["shape"])
        names = dict(zip(("op", "growing", "shape"), key, strict=True))
        median = record["nanoseconds_per_element"]["median"]
        table.setdefault(key, names)[record["provider"]] = f"{median:.2f}"
    return list(table.values())


def plot_growth(records: Sequence[dict[str, Any]], title: str) -> Any:
    """Draw time per element: a line of operations down, elements and channels across.

    Returns:
      A matplotlib figure.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogLocator, NullLocator

    ops = list(dict.fromkeys(record["op"] for record in records))
    figure = Figure(figsize=(10, 0.9 + 3.1 * len(ops)), layout="constrained")
    panels = figure.subplots(len(ops), 2, squeeze=False, sharey="row")
    for op, line in zip(ops, panels, strict=True):
        for axis, axes in zip(AXES, line, strict=True):
            chosen = [r for r in records if (r["op"], r["axis"]) == (op, axis)]
            for provider in dict.fromkeys(record["provider"] for record in chosen):
                _plot_line(axes, [r for r in chosen if r["provider"] == provider])
            axes.set(xscale="log", yscale="log", xlabel=LABELS[axis])
            axes.set_title(op.replace("_", " "))
            axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axes.yaxis.set_major_formatter("{x:g}")
            axes.yaxis.set_minor_locator(NullLocator())
        line[0].set_ylabel("ns per element")
    figure.suptitle(title)
    handles, labels = panels[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels))
    return figure


def _plot_line(axes: Any, records: Sequence[dict[str, Any]]) -> None:
    """Draw the median of one provider as a line, and its quartiles as a band."""
    by_channels = records[0]["axis"] == "channels"
    provider = records[0]["provider"]
    color = PROVIDERS[provider].color
    times = [record["nanoseconds_per_element"] for record in records]
    shapes = [record["shape"] for record in records]
    sizes = [width if by_channels else rows * width for rows, width in shapes]
    low, middle, high = (
        [time[name] for time in times]
        for name in ("first_quartile", "median", "third_quartile")
    )
    axes.plot(sizes, middle, color=color, marker="o", markersize=4, label=provider)
    axes.fill_between(sizes, low, high, color=color, alpha=0.2, linewidth=0)


def main(config: Config) -> None:
    """Measure; print the table, write growth.json and growth.png."""
    from benchmarks import results
    from examples.common import report, style

    with one_line_errors(OSError, ValueError):
        check_peer(config)
        config.out.mkdir(parents=True, exist_ok=True)
    records = measure_growth(config)
    console = results.make_console()
    report.print_table(console, "Nanoseconds per element", growth_table(records))
    environment = settings.describe_environment()
    content = {
        "environment": environment,
        "config": asdict(config),
        "records": records,
    }
    written = [report.write_json(config.out / "growth.json", content)]
    mode = MODE_LABELS[config.mode]
    title = f"{mode}, {config.dtype}; {settings.device_name(environment)}"
    draw = partial(plot_growth, records, title)
    written.append(style.draw_figure(draw, config.out / "growth.png"))
    print("Written:", *written, sep="\n  ")


if __name__ == "__main__":
    chosen = tyro.cli(Config, prog="python -m benchmarks.growth")
    settings.restart_with_settings("benchmarks.growth", sys.argv[1:])
    main(chosen)
