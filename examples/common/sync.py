"""The task that the examples of synchronized BatchNorm share, and its training.

It is a small convolutional network with BatchNorm, Optax, and the digits images in an
order that the seed decides. Where the batch size does not divide by the devices (100 by
8), some of their rows are padding, of weight 0, and the devices hold different numbers
of real rows.
"""

import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from tqdm import tqdm

from examples.common import convnet, data
from examples.common.convnet import Network, Params, Stats
from examples.common.data import Batch, Dataset
from examples.common.optimizers import make_optimizer
from examples.common.options import require_not_negative, require_positive
from examples.common.train_state import TrainState


@dataclass(frozen=True)
class Config:
    """What the task and its size are."""

    devices: int = 8
    """Devices that share a batch: accelerators, or simulated CPU devices."""
    steps: int = 60
    """Training steps."""
    batch_size: int = 100
    """Images in a step, over all devices together."""
    width: int = 8
    """Features of the first layers; later layers have twice and four times as many."""
    depth: int = 4
    """Convolutions in the network, each followed by BatchNorm."""
    learning_rate: float = 0.2
    """The learning rate of SGD with Nesterov momentum."""
    seed: int = 0
    """Seed of the initial parameters and of the order of the images."""
    out: Path = Path("runs/sync_bn")
    """Where the figure and results.json go."""

    def __post_init__(self) -> None:
        """Refuse what makes no sense before any work is done."""
        require_positive(
            devices=self.devices,
            steps=self.steps,
            batch_size=self.batch_size,
            width=self.width,
            depth=self.depth,
            learning_rate=self.learning_rate,
        )
        require_not_negative(seed=self.seed)


class Task(NamedTuple):
    """What is trained. Hashable, so that it may be a static argument."""

    network: Network
    optimizer: optax.GradientTransformation


class Strategy(NamedTuple):
    """How to train on several devices.

    Attributes:
      name: as tables have it.
      devices: how many there are, in words.
      step: (state, batch) -> (state, loss), compiled.
      put_state: places the state of one device on all devices.
      put_batch: deals a batch out to the devices.
      get_state: takes the state of one device back.
    """

    name: str
    devices: str
    step: Callable[[Any, Any], tuple[Any, jax.Array]]
    put_state: Callable[[TrainState], Any]
    put_batch: Callable[[Batch], Any]
    get_state: Callable[[Any], TrainState]


class Run(NamedTuple):
    """A training that is over: its final state, its losses, its speed."""

    state: TrainState
    losses: np.ndarray
    images_per_second: float


def make_task(config: Config) -> Task:
    network = Network("batch", config.width, config.depth)
    return Task(network, make_optimizer("sgd", config.learning_rate, 0.0))


def start_state(config: Config, task: Task) -> TrainState:
    params, stats = convnet.init(jax.random.key(config.seed), task.network)
    return TrainState(params, stats, task.optimizer.init(params))


def sum_of_losses(
    task: Task, params: Params, stats: Stats, batch: Batch, axis_name: str | None
) -> tuple[jax.Array, Stats]:
    """Return the sum over this device's real rows, and the running statistics."""
    output = convnet.apply(
        task.network,
        params,
        stats,
        batch.images,
        training=True,
        weights=batch.weights,
        axis_name=axis_name,
    )
    losses = optax.softmax_cross_entropy_with_integer_labels(
        output.logits, batch.labels
    )
    return jnp.sum(losses * batch.weights), output.stats


def apply_gradients(
    task: Task, state: TrainState, grads: Params, stats: Stats
) -> TrainState:
    updates, opt_state = task.optimizer.update(grads, state.opt_state, state.params)
    return TrainState(optax.apply_updates(state.params, updates), stats, opt_state)


def plain_step(
    task: Task, state: TrainState, batch: Batch
) -> tuple[TrainState, jax.Array]:
    """Train on a batch that is one array, wherever its parts may lie."""

    def mean_loss(params: Params) -> tuple[jax.Array, Stats]:
        total, stats = sum_of_losses(task, params, state.stats, batch, axis_name=None)
        return total / jnp.sum(batch.weights), stats

    (loss, stats), grads = jax.value_and_grad(mean_loss, has_aux=True)(state.params)
    return apply_gradients(task, state, grads, stats), loss


def one_device(task: Task) -> Strategy:
    device = jax.local_devices()[0]
    return Strategy(
        name="one device",
        devices="1 device",
        step=jax.jit(partial(plain_step, task)),
        put_state=partial(jax.device_put, device=device),
        put_batch=partial(jax.device_put, device=device),
        get_state=lambda state: state,
    )


def batches_from(
    step: int, dataset: Dataset, config: Config, multiple: int
) -> Iterator[Batch]:
    """Yield the batches of `step` and of all that follow.

    Every epoch has an order of its own, drawn from the seed and its number alone, so
    that a training that was interrupted goes on with the batch that is next.
    """
    per_epoch = data.num_batches(dataset, config.batch_size)
    for epoch in count(step // per_epoch):
        shuffle = np.random.default_rng([config.seed, epoch])
        batches = data.batches(
            dataset, config.batch_size, multiple=multiple, shuffle=shuffle
        )
        skipped = max(0, step - epoch * per_epoch)
        yield from list(batches)[skipped:]


def train(strategy: Strategy, config: Config, task: Task, dataset: Dataset) -> Run:
    """Train for `config.steps` steps from the start."""
    state = strategy.put_state(start_state(config, task))
    losses, speeds = [], []
    batches = batches_from(0, dataset, config, multiple=config.devices)
    for _ in tqdm(range(config.steps), desc=strategy.name, unit="step", disable=None):
        batch = next(batches)
        placed = strategy.put_batch(batch)
        start = time.perf_counter()
        state, loss = jax.block_until_ready(strategy.step(state, placed))
        speeds.append(np.sum(batch.weights) / (time.perf_counter() - start))
        losses.append(float(loss))
    # The first step compiles.
    speed = statistics.median(speeds[1:] or speeds)
    return Run(strategy.get_state(state), np.array(losses), float(speed))


def accuracy(task: Task, state: TrainState, dataset: Dataset) -> float:
    """Return how many images are classified correctly with the running statistics."""
    evaluate = jax.jit(partial(convnet.apply, task.network, training=False))
    params, stats = jax.device_get((state.params, state.stats))
    logits = evaluate(params, stats, dataset.images).logits
    return float(np.mean(np.argmax(logits, axis=-1) == dataset.labels))
