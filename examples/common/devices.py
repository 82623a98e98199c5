"""Devices for data-parallel training: accelerators, or CPU devices that are simulated.

Call `data_mesh` before anything else touches JAX: the number of CPU devices is settled
when the first array is made.
"""

from typing import TypeVar

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

Tree = TypeVar("Tree")

DATA_AXIS = "data"
MAX_SIMULATED = 64  # more are only threads that wait for one another


class DevicesNotAvailableError(ValueError):
    """Fewer devices than were asked for."""


def data_mesh(count: int) -> Mesh:
    """Return a mesh of `count` devices along the axis "data".

    Accelerators are used where there are enough of them, and simulated CPU devices
    otherwise: these run the same program with the same collectives.

    Raises:
      DevicesNotAvailableError: there are fewer than `count` devices of either kind.
    """
    _simulate_cpu_devices(min(count, MAX_SIMULATED))
    offers = [_list_devices(), _list_devices("cpu")]
    for devices in offers:
        if len(devices) >= count:
            return Mesh(np.array(devices[:count]), (DATA_AXIS,))
    raise DevicesNotAvailableError(
        f"{count} devices were asked for, and JAX has {max(map(len, offers))} of one "
        f"kind; ask for fewer, or look at JAX_PLATFORMS"
    )


def _simulate_cpu_devices(count: int) -> None:
    """Ask for at least `count` CPU devices, where it is not too late to ask."""
    if jax.config.jax_num_cpu_devices < count:
        try:
            jax.config.update("jax_num_cpu_devices", count)
        except RuntimeError:
            # JAX runs already; the caller counts the devices that it runs with.
            pass


def _list_devices(platform: str | None = None) -> list[jax.Device]:
    """Return the devices of a platform, none where JAX cannot use it."""
    try:
        return jax.devices(platform)
    except (RuntimeError, AssertionError):  # the latter where JAX_PLATFORMS is wrong
        return []


def describe_mesh(mesh: Mesh) -> str:
    """Return, for instance, "4 simulated CPU devices"."""
    first, count = mesh.devices.flat[0], mesh.size
    simulated = "simulated " if first.platform == "cpu" and count > 1 else ""
    kind = "CPU" if first.platform == "cpu" else first.device_kind
    return f"{count} {simulated}{kind} device{'s' if count > 1 else ''}"


def replicate(tree: Tree, mesh: Mesh) -> Tree:
    """Place a copy of every array of `tree` on every device of the mesh."""
    return jax.device_put(tree, NamedSharding(mesh, P()))


def shard_rows(tree: Tree, mesh: Mesh) -> Tree:
    """Deal the rows (the leading axis) of every array of `tree` out to the devices."""
    return jax.device_put(tree, NamedSharding(mesh, P(DATA_AXIS)))
