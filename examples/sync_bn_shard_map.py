"""Synchronized BatchNorm in shard_map: every device runs the step on its own rows.

BatchNorm is told the axis over which the rows are spread, and pools with one collective
forward and one backward. With check_vma, the default, JAX proves that parameters and
running statistics stay the same on all devices, and sums the gradients by itself.

    python -m examples.sync_bn_shard_map
    python -m examples.sync_bn_shard_map --help
"""

from dataclasses import dataclass
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import tyro
from jax import lax
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from examples.common import comparison, devices, sync
from examples.common.convnet import Params, Stats
from examples.common.data import Batch
from examples.common.devices import DATA_AXIS
from examples.common.sync import Strategy, Task
from examples.common.train_state import TrainState


@dataclass(frozen=True)
class Config(sync.Config):
    """Train with synchronized BatchNorm in shard_map, and compare with one device.

    Prints a table, the difference and the throughput; writes losses.png, results.json.
    """

    out: Path = Path("runs/sync_bn_shard_map")


def train_step(
    task: Task, state: TrainState, batch: Batch
) -> tuple[TrainState, jax.Array]:
    """Train on this device's rows of the batch."""

    def mean_loss(params: Params) -> tuple[jax.Array, Stats]:
        sums = sync.sum_of_losses(task, params, state.stats, batch, DATA_AXIS)
        total, rows = lax.psum((sums[0], jnp.sum(batch.weights)), DATA_AXIS)
        return total / rows, sums[1]

    # The loss is that of all devices and the parameters are the same on each: shard_map
    # sums their gradients, and there is nothing left to do.
    (loss, stats), grads = jax.value_and_grad(mean_loss, has_aux=True)(state.params)
    return sync.apply_gradients(task, state, grads, stats), loss


def make_step(task: Task, mesh: Mesh) -> jax.stages.Wrapped:
    """Return the compiled step: the state is whole everywhere, rows are dealt out."""
    return jax.jit(
        jax.shard_map(
            partial(train_step, task),
            mesh=mesh,
            in_specs=(P(), P(DATA_AXIS)),
            out_specs=P(),
        )
    )


def make_strategy(task: Task, mesh: Mesh) -> Strategy:
    return Strategy(
        name="shard_map",
        devices=devices.describe_mesh(mesh),
        step=make_step(task, mesh),
        put_state=partial(devices.replicate, mesh=mesh),
        put_batch=partial(devices.shard_rows, mesh=mesh),
        get_state=jax.device_get,
    )


def main(config: Config) -> None:
    comparison.run_example(config, make_strategy)


if __name__ == "__main__":
    main(tyro.cli(Config, prog="python -m examples.sync_bn_shard_map"))
