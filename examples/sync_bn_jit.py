"""Synchronized BatchNorm under plain jit: shard the batch, and change nothing else.

The batch is one array whose rows lie on several devices. Statistics over its rows are
statistics over all devices, without any axis_name: XLA's partitioner puts the
collectives where they are needed. The training step is the one for a single device.

    python -m examples.sync_bn_jit
    python -m examples.sync_bn_jit --help
"""

from dataclasses import dataclass
from functools import partial
from pathlib import Path

import jax
import tyro
from jax.sharding import Mesh

from examples.common import comparison, devices, sync
from examples.common.sync import Strategy, Task


@dataclass(frozen=True)
class Config(sync.Config):
    """Train with synchronized BatchNorm under plain jit, and compare with one device.

    Prints a table, the difference and the throughput; writes losses.png, results.json.
    """

    out: Path = Path("runs/sync_bn_jit")


def make_strategy(task: Task, mesh: Mesh) -> Strategy:
    """Return how to train: whole parameters on every device, rows dealt out."""
    return Strategy(
        name="jit, rows sharded",
        devices=devices.describe_mesh(mesh),
        step=jax.jit(partial(sync.plain_step, task)),
        put_state=partial(devices.replicate, mesh=mesh),
        put_batch=partial(devices.shard_rows, mesh=mesh),
        get_state=jax.device_get,
    )


def main(config: Config) -> None:
    comparison.run_example(config, make_strategy)


if __name__ == "__main__":
    main(tyro.cli(Config, prog="python -m examples.sync_bn_jit"))
