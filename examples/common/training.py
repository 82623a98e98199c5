"""Data-parallel training: metrics over all devices, and the loop around the steps."""

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P
from tqdm import tqdm

from examples.common import data
from examples.common.data import Batch, Dataset
from examples.common.devices import DATA_AXIS, shard_rows


class Metrics(NamedTuple):
    """Means over the real rows of a batch, and how many rows these are."""

    loss: jax.Array
    accuracy: jax.Array
    rows: jax.Array


TrainStep = Callable[[Any, Batch], tuple[Any, Metrics]]
EvalStep = Callable[[Any, Batch], Metrics]


class Fit(NamedTuple):
    """What training leaves behind.

    Attributes:
      state: the state after the last step.
      history: "train_loss", "train_accuracy", "test_loss" and "test_accuracy", a value
        an epoch. Those of the training images are means over the epoch's own steps.
      seconds_per_step: median over the steps, without the first, which compiles.
    """

    state: Any
    history: dict[str, list[float]]
    seconds_per_step: float


def measure(logits: jax.Array, batch: Batch) -> Metrics:
    """Return the metrics over the real rows of all devices, the same on each."""
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, batch.labels)
    hits = jnp.argmax(logits, axis=-1) == batch.labels
    sums = [jnp.sum(values * batch.weights) for values in (losses, hits, 1.0)]
    loss, accuracy, rows = lax.psum(sums, DATA_AXIS)
    return Metrics(loss / rows, accuracy / rows, rows)


def on_all_devices(step: Callable[..., Any], mesh: Mesh) -> Callable[..., Any]:
    """Compile a step: the state is whole on every device, the batch is dealt out.

    What comes out is declared the same on every device, which `check_vma` proves.
    """
    return jax.jit(
        jax.shard_map(
            step,
            mesh=mesh,
            in_specs=(P(), P(DATA_AXIS)),
            out_specs=P(),
            check_vma=True,
        )
    )


def fit(
    state: Any,
    train_step: TrainStep,
    eval_step: EvalStep,
    train_data: Dataset,
    test_data: Dataset,
    *,
    mesh: Mesh,
    batch_size: int,
    epochs: int,
    seed: int,
    label: str,
) -> Fit:
    """Train for `epochs` epochs, with a test after each of them.

    Args:
      state: whatever `train_step` takes and returns, on every device of the mesh.
      train_step: (state, batch) -> (state, metrics), compiled.
      eval_step: (state, batch) -> metrics, compiled.
      train_data: what is learned, in a new order every epoch.
      test_data: what is tested.
      mesh: the devices that share a batch.
      batch_size: images in a batch, over all devices together.
      epochs: how often every training image is seen.
      seed: seed of the order of the training images.
      label: stands before the progress bar, which is shown on terminals only.
    """
    shuffle = np.random.default_rng(seed)
    history: dict[str, list[float]] = {}
    seconds: list[float] = []
    total = epochs * data.num_batches(train_data, batch_size)
    with tqdm(desc=label, total=total, unit="step", disable=None) as bar:
        for _ in range(epochs):
            measured = []
            for batch in dealt_batches(train_data, batch_size, mesh, shuffle):
                start = time.perf_counter()
                state, metrics = jax.block_until_ready(train_step(state, batch))
                seconds.append(time.perf_counter() - start)
                measured.append(metrics)
                bar.update()
            test_batches = dealt_batches(test_data, batch_size, mesh)
            tested = [eval_step(state, batch) for batch in test_batches]
            _record(history, "train", measured)
            _record(history, "test", tested)
            bar.set_postfix(test_accuracy=f"{history['test_accuracy'][-1]:.4f}")
    return Fit(state, history, statistics.median(seconds[1:] or seconds))


def dealt_batches(
    dataset: Dataset,
    batch_size: int,
    mesh: Mesh,
    shuffle: np.random.Generator | None = None,
) -> Iterator[Batch]:
    """Cut `dataset` into batches and deal the rows of each out to the devices."""
    for batch in data.batches(dataset, batch_size, multiple=mesh.size, shuffle=shuffle):
        yield shard_rows(batch, mesh)


def _record(
    history: dict[str, list[float]], part: str, measured: Sequence[Metrics]
) -> None:
    """Append the means over all rows, to which a short batch adds its few."""
    measured = jax.device_get(measured)
    rows = [metrics.rows for metrics in measured]
    for name in ("loss", "accuracy"):
        values = [getattr(metrics, name) for metrics in measured]
        mean = float(np.average(values, weights=rows))
        history.setdefault(f"{part}_{name}", []).append(mean)
