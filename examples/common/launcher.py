"""Start processes on this machine that are one JAX program, and watch over them.

A cluster has a launcher of its own (Slurm's srun, Open MPI's mpirun, a TPU pod's ssh to
all workers), and JAX finds out from it which process it is. On one machine this module
stands in: it starts the same command several times, and tells each process by its
environment where the others are. Where one of them dies, the rest is stopped.
"""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import jax

LOOPBACK = "127.0.0.1"
PROCESS_ID, PROCESSES = "LAUNCHER_PROCESS_ID", "LAUNCHER_PROCESSES"
POLL_SECONDS = 0.1


class ProcessFailedError(RuntimeError):
    """One of the processes has failed."""


class NoClusterError(RuntimeError):
    """No launcher of a cluster has started this process."""


def is_launched() -> bool:
    """Return whether `launch` has started this process."""
    return PROCESS_ID in os.environ


def join(heartbeat_timeout: int) -> None:
    """Join the processes that `launch` has started, or that a cluster has.

    A process that is not heard of for `heartbeat_timeout` seconds is taken for dead,
    and JAX ends all others with an error.

    Raises:
      NoClusterError: neither has started this process.
    """
    timeouts = {
        "heartbeat_timeout_seconds": heartbeat_timeout,
        # How long the first to finish waits for the last.
        "shutdown_timeout_seconds": 300,
    }
    if not is_launched():
        # Address, number of processes and own number come from the cluster's manager.
        try:
            jax.distributed.initialize(**timeouts)
        except ValueError as error:  # none that JAX knows
            raise NoClusterError(
                f"no cluster's launcher was found ({error}); leave out --cluster to "
                "start processes on this machine"
            ) from None
        return
    address = os.environ["JAX_COORDINATOR_ADDRESS"]
    jax.distributed.initialize(
        coordinator_address=address,
        coordinator_bind_address=address,  # or JAX would listen to the whole network
        num_processes=int(os.environ[PROCESSES]),
        process_id=int(os.environ[PROCESS_ID]),
        **timeouts,
    )


def launch(
    command: Sequence[str], *, processes: int, devices: int, grace: float
) -> None:
    """Run `command` in several processes until all are done.

    Args:
      command: what each process runs.
      processes: how many of them.
      devices: simulated CPU devices of each process.
      grace: seconds that the others have for ending by themselves once one has failed.

    Raises:
      ProcessFailedError: one process has failed; all others were stopped.
    """
    address = f"{LOOPBACK}:{_free_port()}"
    with _children() as children:
        for i in range(processes):
            environment = {
                **os.environ,
                "JAX_COORDINATOR_ADDRESS": address,
                "JAX_PLATFORMS": "cpu",
                "JAX_CPU_COLLECTIVES_IMPLEMENTATION": "gloo",
                "JAX_NUM_CPU_DEVICES": str(devices),
                PROCESSES: str(processes),
                PROCESS_ID: str(i),
            }
            children.append(subprocess.Popen(command, env=environment))
        started = ", ".join(str(child.pid) for child in children)
        print(f"started processes {started}", file=sys.stderr, flush=True)
        failed = _wait_for_all_or_a_failure(children)
        if failed is not None:
            _wait(children, grace)
            raise ProcessFailedError(
                f"process {failed} of {processes} {_how_it_ended(children[failed])}; "
                "all others were stopped"
            )


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind((LOOPBACK, 0))
        return probe.getsockname()[1]


@contextmanager
def _children() -> Iterator[list[subprocess.Popen]]:
    """Yield a list; whatever happens, no process in it outlives the context."""

    def leave(number: int, frame: object) -> None:
        sys.exit(128 + number)

    before = signal.signal(signal.SIGTERM, leave)
    children: list[subprocess.Popen] = []
    try:
        yield children
    finally:
        for stop in (subprocess.Popen.terminate, subprocess.Popen.kill):
            for child in children:
                if child.poll() is None:
                    stop(child)
            _wait(children, seconds=2)
        signal.signal(signal.SIGTERM, before)


def _wait_for_all_or_a_failure(children: list[subprocess.Popen]) -> int | None:
    """Return the first that fails; None once all are done."""
    while True:
        codes = [child.poll() for child in children]
        failures = [i for i, code in enumerate(codes) if code not in (None, 0)]
        if failures:
            # One that was killed drags others along: name the one that was first.
            killed = [i for i in failures if codes[i] == -signal.SIGKILL]
            return (killed or failures)[0]
        if None not in codes:
            return None
        time.sleep(POLL_SECONDS)


def _wait(children: list[subprocess.Popen], seconds: float) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end and any(child.poll() is None for child in children):
        time.sleep(POLL_SECONDS)


def _how_it_ended(child: subprocess.Popen) -> str:
    code = child.returncode
    if code < 0:
        return f"was ended by {signal.Signals(-code).name}"
    return f"failed with exit code {code}"
