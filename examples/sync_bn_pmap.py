"""Synchronized BatchNorm in pmap: every device runs the step on its own rows.

BatchNorm is told the axis over which the rows are spread, and pools with one collective
forward and one backward. The gradients of the parameters are each device's own share,
and summing them is left to the user, as always in pmap. For code that has pmap already;
new code had better use shard_map.

    python -m examples.sync_bn_pmap
    python -m examples.sync_bn_pmap --help
"""

from dataclasses import dataclass
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from jax import lax
from jax.sharding import Mesh

from examples.common import comparison, devices, sync
from examples.common.convnet import Params, Stats
from examples.common.data import Batch
from examples.common.devices import DATA_AXIS
from examples.common.sync import Strategy, Task
from examples.common.train_state import TrainState
from jaxnorm import check_replicas


@dataclass(frozen=True)
class Config(sync.Config):
    """Train with synchronized BatchNorm in pmap, and compare with one device.

    Prints a table, the difference and the throughput; writes losses.png, results.json.
    """

    out: Path = Path("runs/sync_bn_pmap")


def train_step(
    task: Task, state: TrainState, batch: Batch
) -> tuple[TrainState, jax.Array]:
    """Train on this device's rows of the batch."""
    rows = lax.psum(jnp.sum(batch.weights), DATA_AXIS)

    def share_of_loss(params: Params) -> tuple[jax.Array, Stats]:
        total, stats = sync.sum_of_losses(task, params, state.stats, batch, DATA_AXIS)
        return total / rows, stats

    shares = jax.value_and_grad(share_of_loss, has_aux=True)(state.params)
    (loss, stats), grads = shares
    # A psum, not a pmean: every share is divided by all rows already.
    loss, grads = lax.psum((loss, grads), DATA_AXIS)
    return sync.apply_gradients(task, state, grads, stats), loss


def make_strategy(task: Task, mesh: Mesh) -> Strategy:
    """Return how to train: a copy of the state, and a share of the rows, a device."""
    used = list(mesh.devices.flat)

    def copy_to_all(state: TrainState) -> TrainState:
        return jax.tree.map(lambda leaf: np.stack([leaf] * len(used)), state)

    def spread_batch(batch: Batch) -> Batch:
        return jax.tree.map(
            lambda array: array.reshape(len(used), -1, *array.shape[1:]), batch
        )

    def take_one(state: TrainState) -> TrainState:
        check_replicas(state, stacked=True)
        return jax.tree.map(lambda leaf: np.asarray(leaf[0]), state)

    return Strategy(
        name="pmap",
        devices=devices.describe_mesh(mesh),
        step=jax.pmap(
            partial(train_step, task), DATA_AXIS, out_axes=(0, None), devices=used
        ),
        put_state=copy_to_all,
        put_batch=spread_batch,
        get_state=take_one,
    )


def main(config: Config) -> None:
    comparison.run_example(config, make_strategy)


if __name__ == "__main__":
    main(tyro.cli(Config, prog="python -m examples.sync_bn_pmap"))
