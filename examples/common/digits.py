"""What digits_linen and digits_nnx share: options, the loop over epochs, checkpoints.

A checkpoint holds everything that training changes, the running statistics of BatchNorm
among it. One is written after every epoch, and none is ever overwritten.
"""

import dataclasses
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
from rich.console import Console
from tqdm import tqdm

from examples.common import data, report, style
from examples.common.checkpoints import (
    CheckpointError,
    read_json,
    remember_options,
    require_same_options,
)
from examples.common.curves import plot_curves
from examples.common.data import Batch, Dataset
from examples.common.optimizers import is_kernel, make_schedule
from examples.common.options import (
    one_line_errors,
    require_not_negative,
    require_positive,
)

Tree = dict[str, Any]
HISTORY = "history.json"  # metrics of every epoch so far, beside its checkpoints
# Options that say which images come when, and how many steps that takes.
ORDER_OF_IMAGES = "batch_size", "limit", "seed"
METRICS = ("train_loss", "train_accuracy", "test_loss", "test_accuracy")


@dataclass(frozen=True)
class Config:
    """Options of both examples."""

    learning_rate: float = 0.01
    """The highest learning rate, after the warmup."""
    clip: float = 1.0
    """The largest norm of a gradient; longer ones are cut to it."""
    epochs: int = 10
    """How often every training image is seen; of a resumed run, those before too. The
    learning rate falls to 0 over all of them: a run that is resumed with more takes up
    the higher rate of the longer schedule."""
    batch_size: int = 64
    """Images in a step."""
    width: int = 16
    """Features of the first layer; the two others have twice and four times as many."""
    seed: int = 0
    """Seed of the initial parameters and of the order of the images."""
    limit: int | None = None
    """Use only so many training images and so many test images, for a quick look."""
    resume: bool = False
    """Go on from the newest checkpoint in --out."""
    out: Path = Path("runs/digits")
    """Where checkpoints, the figure and results.json go."""

    def __post_init__(self) -> None:
        """Refuse what makes no sense before any work is done."""
        require_positive(
            learning_rate=self.learning_rate,
            clip=self.clip,
            epochs=self.epochs,
            batch_size=self.batch_size,
            width=self.width,
            limit=self.limit,
        )
        require_not_negative(seed=self.seed)


class Metrics(NamedTuple):
    """Sums over the real rows of a batch, and how many rows these are."""

    loss: jax.Array
    hits: jax.Array
    count: jax.Array


class Learner(NamedTuple):
    """One way of training.

    Attributes:
      state: whatever the steps work on.
      train_step: (state, batch) -> (state, metrics).
      eval_step: (state, batch) -> metrics.
      to_tree: the state as nested dicts of arrays.
      from_tree: (state, tree) -> the state with these arrays.
    """

    state: Any
    train_step: Callable[[Any, Batch], tuple[Any, Metrics]]
    eval_step: Callable[[Any, Batch], Metrics]
    to_tree: Callable[[Any], Tree]
    from_tree: Callable[[Any, Tree], Any]


def make_optimizer(config: Config, train_data: Dataset) -> optax.GradientTransformation:
    """Clip gradients, then AdamW with a warmup and a cosine."""
    steps = config.epochs * data.num_batches(train_data, config.batch_size)
    schedule = make_schedule("warmup-cosine", config.learning_rate, steps)
    return optax.chain(
        optax.clip_by_global_norm(config.clip),
        optax.adamw(schedule, weight_decay=1e-4, mask=is_kernel),
    )


def measure(logits: jax.Array, batch: Batch) -> Metrics:
    """Return the metrics of a batch, in which rows of weight 0 are padding."""
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, batch.labels)
    hits = jnp.argmax(logits, -1) == batch.labels
    return Metrics(*(jnp.sum(v * batch.weights) for v in (losses, hits, 1.0)))


def run(config: Config, make: Callable[[Config, Dataset], Learner]) -> dict[str, Any]:
    """Train, with a checkpoint after every epoch; report and return the results."""
    with one_line_errors(CheckpointError, OSError):
        datasets = data.load_digits(config.limit)
        learner = make(config, datasets[0])
        state, start = begin(config, learner)
        history = read_history(config.out, start)
        for epoch in tqdm(range(start, config.epochs), unit="epoch", disable=None):
            state, measured = run_epoch(config, learner, state, epoch, datasets)
            for name in METRICS:
                history[name].append(measured[name])
            report.write_json(config.out / HISTORY, history)
            save(checkpoint_path(config.out, epoch + 1), learner.to_tree(state))
    return report_results(config, history)


def run_epoch(
    config: Config,
    learner: Learner,
    state: Any,
    epoch: int,
    datasets: tuple[Dataset, Dataset],
) -> tuple[Any, dict[str, float]]:
    """Train on all training images and measure on all test images."""
    train_data, test_data = datasets
    # The order of an epoch depends on nothing but its number.
    order = np.random.default_rng((config.seed, epoch))
    trained = []
    for batch in data.batches(train_data, config.batch_size, shuffle=order):
        state, metrics = learner.train_step(state, batch)
        trained.append(metrics)
    tested = [
        learner.eval_step(state, batch)
        for batch in data.batches(test_data, config.batch_size)
    ]
    measured = {}
    for part, each in (("train", trained), ("test", tested)):
        loss, hits, count = np.sum(jax.device_get(each), axis=0)
        measured[f"{part}_loss"] = float(loss / count)
        measured[f"{part}_accuracy"] = float(hits / count)
    return state, measured


def report_results(config: Config, history: dict[str, list[float]]) -> dict[str, Any]:
    """Print the last metrics; write the figure and the JSON."""
    console = Console()
    last = {name: values[-1] for name, values in history.items()}
    row = {name.replace("_", " "): f"{value:.4f}" for name, value in last.items()}
    report.print_table(
        console, "After the last epoch", [{"epoch": str(config.epochs), **row}]
    )
    results = {
        "config": dataclasses.asdict(config),
        "jax": jax.__version__,
        **last,
        "history": history,
    }
    draw = partial(plot_curves, {"batch": history})
    written = [
        style.draw_figure(draw, config.out / "curves.png"),
        report.write_json(config.out / "results.json", results),
        checkpoint_path(config.out, config.epochs),
    ]
    console.print("Written:", *written, sep="\n  ", soft_wrap=True, highlight=False)
    return last


def begin(config: Config, learner: Learner) -> tuple[Any, int]:
    """Return the state to begin with, and how many epochs it has seen."""
    found = checkpoints_in(config.out)
    if not config.resume:
        if found:
            raise CheckpointError(
                f"{found[-1]} exists and is not overwritten; continue it with --resume,"
                " or choose another --out"
            )
        config.out.mkdir(parents=True, exist_ok=True)
        remember_options(config, ORDER_OF_IMAGES)
        return learner.state, 0
    if not found:
        raise CheckpointError(
            f"there is no checkpoint in {config.out} to resume from; leave out --resume"
        )
    epoch = epoch_of(found[-1])
    if epoch >= config.epochs:
        raise CheckpointError(
            f"{found[-1]} has seen {epoch} epochs; to go on, ask for more with --epochs"
        )
    require_same_options(config)
    tree = load(found[-1], learner.to_tree(learner.state))
    return learner.from_tree(learner.state, tree), epoch


def read_history(out: Path, epochs: int) -> dict[str, list[float]]:
    """Return the metrics of the epochs that a checkpoint has seen; NaN if unknown."""
    written = read_json(out / HISTORY) if epochs else {}
    unknown = [None] * epochs  # as JSON has it
    values = {name: written.get(name, unknown)[:epochs] for name in METRICS}
    return {
        name: [float("nan") if value is None else value for value in each]
        for name, each in values.items()
    }


def checkpoint_path(out: Path, epoch: int) -> Path:
    """Return where the checkpoint after so many epochs lies."""
    return out / f"epoch_{epoch:04d}"


def epoch_of(path: Path) -> int:
    """Return after how many epochs a checkpoint was written."""
    return int(path.name.removeprefix("epoch_"))


def checkpoints_in(out: Path) -> list[Path]:
    """Return the checkpoints that are complete, from the first to the last."""
    # The name of one that was interrupted goes on.
    names = re.compile(r"epoch_\d+")
    found = [path for path in out.glob("epoch_*") if names.fullmatch(path.name)]
    return sorted(found, key=epoch_of)


def save(path: Path, tree: Tree) -> None:
    """Write a checkpoint where none is."""
    with checkpointer() as writer:
        writer.save(path.absolute(), tree)


def load(path: Path, target: Tree) -> Tree:
    """Read a checkpoint that has the names and shapes of `target`."""
    with checkpointer() as reader:
        stored = reader.metadata(path.absolute()).item_metadata
        if stored is None:
            raise CheckpointError(f"{path} is damaged; remove it to go on from before")
        there, here = shapes(stored.tree), shapes(target)
        wrong = sorted(
            f"{name} is {there.get(name, 'missing')} in the checkpoint and "
            f"{here.get(name, 'missing')} in the model"
            for name in there.keys() | here.keys()
            if there.get(name) != here.get(name)
        )
        if wrong:
            raise CheckpointError(
                f"{path} does not fit the model, in {len(wrong)} arrays: {wrong[0]}; "
                "use the options it was trained with"
            )
        return reader.restore(path.absolute(), target)


@contextmanager
def checkpointer() -> Iterator[ocp.StandardCheckpointer]:
    """Write or read; what is written is complete on leaving."""
    with ocp.StandardCheckpointer() as worker:
        yield worker
        worker.wait_until_finished()


def shapes(tree: Any) -> dict[str, tuple[int, ...]]:
    """Return the shape of every array, by its path."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): tuple(
            getattr(leaf, "shape", ())
        )
        for path, leaf in leaves
    }
