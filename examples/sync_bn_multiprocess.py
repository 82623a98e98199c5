"""Synchronized BatchNorm over several processes, as on several machines.

Every process reads its own rows of each batch; statistics and gradients are those of
all. The training step is that of `sync_bn_shard_map`. One command starts real processes
on this machine, which talk to one another over gloo:

    python -m examples.sync_bn_multiprocess --processes 2 --devices 2

On a cluster its own launcher starts the processes, once per machine or per accelerator,
and JAX learns from it where the others are (Slurm, Open MPI, Kubernetes, TPU pods):

    srun python -m examples.sync_bn_multiprocess --cluster
    gcloud compute tpus tpu-vm ssh NAME --worker=all \
        --command="python -m examples.sync_bn_multiprocess --cluster"

There `--out` must be a directory that all machines share. A process that dies ends all
others with an error, after `--heartbeat-timeout` seconds, or on this machine `--grace`
seconds if these are fewer. The same command with `--resume` goes on from the last
checkpoint, and comes to the same result as if nothing had happened, to the last bit:
the fingerprint of the final state, which is printed, is the same.
"""

import hashlib
import sys
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
import tyro
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from rich.console import Console
from tqdm import tqdm

from examples import sync_bn_shard_map
from examples.common import comparison, data, launcher, sync
from examples.common.checkpoints import (
    CheckpointError,
    remember_options,
    require_same_options,
)
from examples.common.data import Batch
from examples.common.devices import DATA_AXIS
from examples.common.options import one_line_errors, require_positive
from examples.common.sync import Run, Strategy, Task
from examples.common.train_state import TrainState
from jaxnorm import check_replicas

# Options that decide what comes out; a resumed run has those it was begun with.
DECISIVE = "batch_size", "width", "depth", "learning_rate", "seed"


@dataclass(frozen=True)
class Config(sync.Config):
    """Train with synchronized BatchNorm over several processes.

    Prints the difference from one device and the throughput; writes checkpoints,
    losses.png and results.json.
    """

    devices: int = 2
    """Simulated CPU devices of each process; not with --cluster."""
    processes: int = 2
    """Processes to start on this machine; not with --cluster."""
    cluster: bool = False
    """Join the processes that a cluster's launcher has started; start none."""
    checkpoint_every: int = 10
    """Steps from one checkpoint to the next."""
    resume: bool = False
    """Go on from the last checkpoint in --out."""
    grace: float = 5.0
    """Seconds that the others have to end once one has failed; not with --cluster."""
    heartbeat_timeout: int = 10
    """Seconds after which a process that is not heard of is taken for dead."""
    out: Path = Path("runs/sync_bn_multiprocess")
    """Where checkpoints, the figure and results.json go."""

    def __post_init__(self) -> None:
        """Refuse what makes no sense before any work is done."""
        super().__post_init__()
        require_positive(
            processes=self.processes,
            checkpoint_every=self.checkpoint_every,
            grace=self.grace,
            heartbeat_timeout=self.heartbeat_timeout,
        )


def make_strategy(task: Task, mesh: Mesh) -> Strategy:
    """Return how to train over the devices of all processes."""
    everywhere, rows = NamedSharding(mesh, P()), NamedSharding(mesh, P(DATA_AXIS))

    def spread_batch(batch: Batch) -> Batch:
        return jax.tree.map(
            partial(jax.make_array_from_process_local_data, rows), batch
        )

    def take_one(state: TrainState) -> TrainState:
        check_agreement(state)
        return jax.device_get(state)

    processes = jax.process_count()
    return Strategy(
        name=f"{processes} process{'es' if processes > 1 else ''}",
        devices=f"{processes} x {jax.local_device_count()} devices",
        step=sync_bn_shard_map.make_step(task, mesh),
        put_state=partial(jax.device_put, device=everywhere),
        put_batch=spread_batch,
        get_state=take_one,
    )


def check_agreement(state: Any) -> None:
    """Raise unless all devices of all processes hold the same state."""
    check_replicas(state)
    copies = multihost_utils.process_allgather(jax.device_get(state))
    if jax.process_count() > 1:
        check_replicas(copies, stacked=True)


def own_rows(batch: Batch) -> Batch:
    """Return the rows that are this process's to read."""
    share = len(batch.labels) // jax.process_count()
    start = share * jax.process_index()
    return jax.tree.map(lambda array: array[start : start + share], batch)


def checkpoints_of(config: Config) -> Path:
    return config.out / "checkpoints"


def last_step(config: Config) -> int:
    """Return the step of the last checkpoint that is complete, or 0."""
    return max(ocp.utils.checkpoint_steps(checkpoints_of(config)), default=0)


def begin(config: Config) -> None:
    """Raise unless a run can begin in --out, or go on there; nothing is replaced."""
    directory, done = checkpoints_of(config), last_step(config)
    if config.resume and not done:
        raise CheckpointError(
            f"there is no checkpoint in {directory} to resume from; leave out --resume"
        )
    if done and not config.resume:
        raise CheckpointError(
            f"{directory} holds a checkpoint of step {done}; go on from it with "
            "--resume, or choose another --out"
        )
    if done >= config.steps:
        raise CheckpointError(
            f"{directory} holds a checkpoint of step {done}; to go on, ask for more "
            "with --steps"
        )
    if done:
        require_same_options(config)
    else:
        config.out.mkdir(parents=True, exist_ok=True)
        remember_options(config, DECISIVE)


def train_with_checkpoints(
    strategy: Strategy, config: Config, task: Task, dataset: data.Dataset
) -> Run:
    """Train from the start, or from the last checkpoint, and leave checkpoints."""
    state = strategy.put_state(sync.start_state(config, task))
    losses = np.zeros(config.steps)
    options = ocp.CheckpointManagerOptions(
        max_to_keep=2, enable_async_checkpointing=False
    )
    directory = checkpoints_of(config).absolute()
    with ocp.CheckpointManager(directory, options=options) as checkpoints:
        done = checkpoints.latest_step() or 0
        if done:
            target = {"state": state, "losses": losses[:done]}
            saved = checkpoints.restore(done, args=ocp.args.StandardRestore(target))
            state, losses[:done] = saved["state"], saved["losses"]
            say(f"Resumed after step {done} of {config.steps}")
        batches = sync.batches_from(done, dataset, config, multiple=jax.device_count())
        speeds = []
        for step in progress(range(done, config.steps), strategy.name):
            batch = next(batches)
            placed = strategy.put_batch(own_rows(batch))
            start = time.perf_counter()
            state, loss = jax.block_until_ready(strategy.step(state, placed))
            if step > done:  # the first step compiles
                speeds.append(np.sum(batch.weights) / (time.perf_counter() - start))
            losses[step] = float(loss)
            if (step + 1) % config.checkpoint_every == 0:
                reached = {"state": state, "losses": losses[: step + 1]}
                checkpoints.save(step + 1, args=ocp.args.StandardSave(reached))
    return Run(strategy.get_state(state), losses, float(np.median(speeds or [0.0])))


def progress(steps: range, label: str) -> Any:
    """Show a bar on terminals, of the first process alone."""
    hidden = True if jax.process_index() else None
    return tqdm(steps, desc=label, unit="step", disable=hidden)


def say(message: str) -> None:
    """Print once, not once a process."""
    if jax.process_index() == 0:
        print(message, flush=True)


def fingerprint(state: TrainState) -> str:
    """Return what two states share only if they are equal to the last bit."""
    leaves = [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(state)]
    return hashlib.sha256(b"".join(leaves)).hexdigest()


def work(config: Config) -> None:
    """Train, in one of the processes."""
    task = sync.make_task(config)
    mesh = Mesh(np.array(jax.devices()), (DATA_AXIS,))
    strategy = make_strategy(task, mesh)
    train_data, test_data = data.load_digits()
    run = train_with_checkpoints(strategy, config, task, train_data)
    if jax.process_index() == 0:
        one = sync.one_device(task)
        reference = sync.train(one, config, task, train_data)
        accuracies = tuple(
            sync.accuracy(task, each.state, test_data) for each in (run, reference)
        )
        comparison.report_results(
            Console(), strategy, run, reference, accuracies, config
        )
        print("Fingerprint of the final state:", fingerprint(run.state))


def main(config: Config) -> None:
    """Start the processes; or be one of them."""
    joins = config.cluster or launcher.is_launched()
    with one_line_errors(CheckpointError, launcher.NoClusterError, OSError):
        if joins:
            launcher.join(config.heartbeat_timeout)
        if not launcher.is_launched():
            begin(config)
    if joins:
        work(config)
        return
    with one_line_errors(launcher.ProcessFailedError):
        launcher.launch(
            [sys.executable, "-m", "examples.sync_bn_multiprocess", *sys.argv[1:]],
            processes=config.processes,
            devices=config.devices,
            grace=config.grace,
        )


if __name__ == "__main__":
    main(tyro.cli(Config, prog="python -m examples.sync_bn_multiprocess"))
