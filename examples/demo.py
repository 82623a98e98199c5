"""Train one small network on images of digits, with different norms, and compare.

Everything here is a pure function of plain pytrees: the parameters, the running
statistics of BatchNorm, and the state of the optimizer. Each batch is dealt out to
several devices, and BatchNorm's statistics are those of the whole batch. The last batch
of an epoch is filled up with rows of weight 0, which change nothing.

    python -m examples.demo
    python -m examples.demo --help
"""

import dataclasses
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import jax
import optax
import tyro
from jax.sharding import Mesh
from rich.console import Console

from examples.common import convnet, data, devices, report, style
from examples.common.convnet import Network, Params, Stats
from examples.common.curves import plot_curves
from examples.common.data import Batch, Dataset
from examples.common.histograms import LayerInputs, plot_layer_inputs
from examples.common.norms import NormName
from examples.common.optimizers import (
    OptimizerName,
    ScheduleName,
    make_optimizer,
    make_schedule,
)
from examples.common.options import (
    one_line_errors,
    require_not_negative,
    require_positive,
)
from examples.common.train_state import TrainState
from examples.common.training import Fit, Metrics, fit, measure, on_all_devices


@dataclass(frozen=True)
class Config:
    """Train one small network on images of digits, with different norms, and compare.

    Prints a table and writes figures and results.json.
    """

    norms: tuple[NormName, ...] = ("batch", "group", "none")
    """The norms to compare."""
    optimizer: OptimizerName = "adamw"
    """The optimizer, from Optax."""
    schedule: ScheduleName = "warmup-cosine"
    """How the learning rate changes during training."""
    learning_rate: float = 0.01
    """The highest learning rate."""
    weight_decay: float = 1e-4
    """Weight decay of the kernels, for adamw, lamb and lion."""
    epochs: int = 20
    """How often every training image is seen."""
    batch_size: int = 128
    """Images in a step, over all devices together."""
    devices: int = 4
    """Devices that share a batch: accelerators, or simulated CPU devices."""
    width: int = 16
    """Features of the first layers; later layers have twice and four times as many."""
    depth: int = 6
    """Convolutions in the network."""
    seed: int = 0
    """Seed of the initial parameters and of the order of the images."""
    limit: int | None = None
    """Use only so many training images and so many test images, for a quick look."""
    out: Path = Path("runs/demo")
    """Where the figures and results.json go."""

    def __post_init__(self) -> None:
        """Refuse what makes no sense before any work is done."""
        require_positive(
            learning_rate=self.learning_rate,
            epochs=self.epochs,
            batch_size=self.batch_size,
            devices=self.devices,
            width=self.width,
            depth=self.depth,
            limit=self.limit,
        )
        require_not_negative(weight_decay=self.weight_decay, seed=self.seed)
        if not self.norms or len(set(self.norms)) < len(self.norms):
            raise ValueError("--norms takes one norm or more, each of them once")


def train_step(
    network: Network,
    optimizer: optax.GradientTransformation,
    state: TrainState,
    batch: Batch,
) -> tuple[TrainState, Metrics]:
    """Return the next state, and the metrics of the batch before the step.

    This is what each device runs, on its own rows of the batch.
    """

    def global_loss(params: Params) -> tuple[jax.Array, tuple[Stats, Metrics]]:
        output = convnet.apply(
            network,
            params,
            state.stats,
            batch.images,
            training=True,
            weights=batch.weights,
            axis_name=devices.DATA_AXIS,
        )
        metrics = measure(output.logits, batch)
        return metrics.loss, (output.stats, metrics)

    # The loss is the mean over all devices and the parameters are the same on each, so
    # shard_map sums their gradients by itself: there is nothing left to average.
    grads, (stats, metrics) = jax.grad(global_loss, has_aux=True)(state.params)
    updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    return TrainState(params, stats, opt_state), metrics


def eval_step(network: Network, state: TrainState, batch: Batch) -> Metrics:
    """Return the metrics of a batch that is normalized by the running averages."""
    output = convnet.apply(
        network, state.params, state.stats, batch.images, training=False
    )
    return measure(output.logits, batch)


def train(
    config: Config, norm: NormName, mesh: Mesh, train_data: Dataset, test_data: Dataset
) -> tuple[Fit, LayerInputs]:
    """Train the network with one norm, and keep what its layers receive."""
    network = Network(norm, config.width, config.depth)
    params, stats = convnet.init(jax.random.key(config.seed), network)

    steps = config.epochs * data.num_batches(train_data, config.batch_size)
    schedule = make_schedule(config.schedule, config.learning_rate, steps)
    optimizer = make_optimizer(config.optimizer, schedule, config.weight_decay)

    start = TrainState(params, stats, optimizer.init(params))
    result = fit(
        devices.replicate(start, mesh),
        on_all_devices(partial(train_step, network, optimizer), mesh),
        on_all_devices(partial(eval_step, network), mesh),
        train_data,
        test_data,
        mesh=mesh,
        batch_size=config.batch_size,
        epochs=config.epochs,
        seed=config.seed,
        label=style.NORM_LABELS[norm],
    )

    images = test_data.images[: config.batch_size]
    inputs = [
        convnet.layer_inputs(network, state.params, state.stats, images)
        for state in jax.device_get((start, result.state))
    ]
    return result, LayerInputs(*jax.device_get(inputs))


def summarize(result: Fit) -> dict[str, Any]:
    """Return the numbers of one norm: those of the last epoch, and every epoch's."""
    last = {name: values[-1] for name, values in result.history.items()}
    return {
        "test_accuracy": last["test_accuracy"],
        "test_loss": last["test_loss"],
        "train_loss": last["train_loss"],
        "seconds_per_step": result.seconds_per_step,
        "parameters": convnet.count_parameters(result.state.params),
        "history": result.history,
    }


def table_row(norm: NormName, summary: dict[str, Any]) -> dict[str, str]:
    """Return the cells of one norm's row in the table."""
    return {
        "Norm": style.NORM_LABELS[norm],
        "Test accuracy": report.format_number(summary["test_accuracy"]),
        "Test loss": report.format_number(summary["test_loss"]),
        "Train loss": report.format_number(summary["train_loss"]),
        "Seconds/step": report.format_number(summary["seconds_per_step"]),
        "Parameters": f"{summary['parameters']:,}",
    }


def write_figures(
    fits: dict[NormName, Fit], layer_inputs: dict[NormName, LayerInputs], out: Path
) -> list[Path]:
    """Draw the curves and the histograms, and return where they are."""
    histories = {norm: result.history for norm, result in fits.items()}
    return [
        style.draw_figure(partial(plot_curves, histories), out / "curves.png"),
        style.draw_figure(
            partial(plot_layer_inputs, layer_inputs), out / "layer_inputs.png"
        ),
    ]


def main(config: Config) -> None:
    """Train with every norm; print the table, write the figures and results.json."""
    console = Console()
    with one_line_errors(devices.DevicesNotAvailableError, OSError):
        mesh = devices.data_mesh(config.devices)
        config.out.mkdir(parents=True, exist_ok=True)
    train_data, test_data = data.load_digits(config.limit)
    where = devices.describe_mesh(mesh)
    console.print(
        f"Training on {where} with {len(train_data.labels)} images; "
        f"{len(test_data.labels)} images for the test\n",
        highlight=False,
    )

    fits, layer_inputs = {}, {}
    for norm in config.norms:
        fits[norm], layer_inputs[norm] = train(
            config, norm, mesh, train_data, test_data
        )

    summaries = {norm: summarize(result) for norm, result in fits.items()}
    rows = [table_row(norm, summary) for norm, summary in summaries.items()]
    report.print_table(console, "After the last epoch", rows)

    written = write_figures(fits, layer_inputs, config.out)
    results = {
        "config": dataclasses.asdict(config),
        "devices": where,
        "jax": jax.__version__,
        "norms": summaries,
    }
    written.append(report.write_json(config.out / "results.json", results))
    console.print("Written:", *written, sep="\n  ", soft_wrap=True, highlight=False)


if __name__ == "__main__":
    main(tyro.cli(Config, prog="python -m examples.demo"))
