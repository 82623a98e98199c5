"""Compare a training on several devices with the same one on one device.

The two must not differ by more than rounding.
"""

from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from rich.console import Console

from examples.common import data, devices, report, style
from examples.common.options import one_line_errors
from examples.common.sync import (
    Config,
    Run,
    Strategy,
    Task,
    accuracy,
    make_task,
    one_device,
    train,
)


def run_example(
    config: Config, make_strategy: Callable[[Task, Mesh], Strategy]
) -> None:
    """Train by an example's strategy and on one device; report how they differ."""
    with one_line_errors(devices.DevicesNotAvailableError, OSError):
        mesh = devices.data_mesh(config.devices)
        config.out.mkdir(parents=True, exist_ok=True)
    task = make_task(config)
    strategy = make_strategy(task, mesh)
    console = Console()
    train_data, test_data = data.load_digits()
    run = train(strategy, config, task, train_data)
    reference = train(one_device(task), config, task, train_data)
    accuracies = tuple(accuracy(task, r.state, test_data) for r in (run, reference))
    report_results(console, strategy, run, reference, accuracies, config)


def report_results(
    console: Console,
    strategy: Strategy,
    run: Run,
    reference: Run,
    accuracies: tuple[float, float],
    config: Config,
) -> None:
    """Print the table, the differences and the throughput; write figure and JSON."""
    rows = [
        {
            "Training": name,
            "First loss": report.format_number(each.losses[0]),
            "Last loss": report.format_number(each.losses[-1]),
            "Test accuracy": report.format_number(right),
            "Images/s": f"{each.images_per_second:,.0f}",
        }
        for name, each, right in zip(
            (strategy.name, "one device"), (run, reference), accuracies, strict=True
        )
    ]
    report.print_table(console, f"After {len(run.losses)} steps", rows)
    differences = largest_differences(run, reference)
    notes = [
        "Largest difference from one device: "
        + ", ".join(f"{name} {value:.1e}" for name, value in differences.items()),
        f"Throughput: {run.images_per_second:,.0f} images/s on {strategy.devices}, "
        f"{reference.images_per_second:,.0f} on one",
    ]
    if jax.default_backend() == "cpu":
        notes.append(
            "(Where devices are simulated they share cores: no speed-up can show here.)"
        )
    console.print(
        *notes,
        sep="\n",
        highlight=False,
        soft_wrap=True,
    )
    draw = partial(plot_losses, strategy, run, reference)
    written = [
        style.draw_figure(draw, config.out / "losses.png"),
        report.write_json(
            config.out / "results.json",
            {
                "config": asdict(config),
                "devices": strategy.devices,
                "jax": jax.__version__,
                "losses": run.losses.tolist(),
                "differences": differences,
                "test_accuracy": accuracies[0],
                "images_per_second": run.images_per_second,
            },
        ),
    ]
    console.print("Written:", *written, sep="\n  ", soft_wrap=True, highlight=False)


def largest_differences(run: Run, reference: Run) -> dict[str, float]:
    """Return the largest absolute differences between two trainings."""

    def largest(a: Any, b: Any) -> float:
        pairs = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
        return max(float(np.max(np.abs(np.subtract(x, y)))) for x, y in pairs)

    return {
        "loss": largest(run.losses, reference.losses),
        "parameters": largest(run.state.params, reference.state.params),
        "running statistics": largest(run.state.stats, reference.state.stats),
    }


def plot_losses(strategy: Strategy, run: Run, reference: Run) -> Figure:
    """Draw both losses, and below them how far they are apart."""
    figure = Figure(figsize=(7, 5), layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True)
    steps = np.arange(1, len(run.losses) + 1)
    color = style.NORM_COLORS["batch"]
    above.plot(steps, reference.losses, color="#BBBBBB", label="one device", lw=5)
    above.plot(steps, run.losses, color=color, label=strategy.name)
    above.set(title=f"BatchNorm on {strategy.devices}", ylabel="training loss")
    above.legend()
    below.plot(steps, np.abs(run.losses - reference.losses), color=color)
    # Linear near 0, since the two may be equal to the last bit.
    below.set_yscale("symlog", linthresh=1e-8)
    below.set(xlabel="step", ylabel="difference of the losses", ylim=0)
    below.xaxis.set_major_locator(MaxNLocator(integer=True))
    return figure
