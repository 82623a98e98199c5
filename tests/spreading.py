"""The ways in which JAX spreads a batch over devices, behind one signature."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

DEVICES = 8
AXIS = "data"
MESH = {AXIS: 4, "model": 2}


@dataclass(frozen=True)
class Mode:
    """One way to spread a batch.

    Attributes:
      name: as a reader of the tests knows it.
      axis_name: what to pass to a norm; None where statistics are global by themselves.
      sums_gradients: whether JAX itself sums the gradients of replicated parameters
        that are taken on each device. Else they are the user's to `psum`.
      collectives: whether it is jaxnorm that issues the collectives. Under jit the
        partitioner of XLA does, and under vmap there is only one device.
    """

    name: str
    axis_name: str | None
    sums_gradients: bool
    collectives: bool

    def __str__(self) -> str:
        """Return the name, for test ids."""
        return self.name


PMAP = Mode("pmap", AXIS, False, True)
VMAP = Mode("vmap", AXIS, False, False)
CHECKED = Mode("shard_map check_vma", AXIS, True, True)
UNCHECKED = Mode("shard_map", AXIS, False, True)
AUTO = Mode("jit auto", None, True, False)
EXPLICIT = Mode("jit explicit", None, True, False)
MODES = [PMAP, VMAP, CHECKED, UNCHECKED, AUTO, EXPLICIT]
MAPPED = [PMAP, VMAP, CHECKED, UNCHECKED]
each_kind_of_axes = pytest.mark.parametrize("mode", [AUTO, EXPLICIT], ids=str)


def make_mesh(mode: Mode, shape: dict[str, int] | None = None) -> Mesh:
    """Return a mesh of the kind of axes that `mode` is about."""
    shape = shape or {AXIS: DEVICES}
    kind = AxisType.Explicit if mode is EXPLICIT else AxisType.Auto
    sizes = tuple(shape.values())
    return jax.make_mesh(sizes, tuple(shape), axis_types=(kind,) * len(sizes))


def over_leaves(f: Callable[..., Any], axes: Any, tree: Any) -> Any:
    """Apply f(axis, leaf), `axes` being a tree prefix whose leaves may be None."""
    return jax.tree.map(
        lambda axis, part: jax.tree.map(partial(f, axis), part),
        axes,
        tree,
        is_leaf=lambda axis: axis is None,
    )


def specs(axes: Any, name: Any = AXIS) -> Any:
    """Return the PartitionSpecs of a tree of axes."""
    return jax.tree.map(
        lambda axis: P() if axis is None else P(*[None] * axis, name),
        axes,
        is_leaf=lambda axis: axis is None,
    )


def place(mode: Mode, args: Any, in_axes: Any) -> Any:
    """Put global arrays where `mode` wants them before it is called."""
    if mode.axis_name is not None:
        return args
    mesh = make_mesh(mode)
    spec = specs(in_axes)
    return over_leaves(
        lambda s, leaf: jax.device_put(leaf, NamedSharding(mesh, s)), spec, args
    )


def spread(mode: Mode, f: Callable[..., Any], in_axes: Any, out_axes: Any) -> Any:
    """Return `f`, which one device runs on its part, as a function of the whole.

    An axis of None says that an argument or a result is the same on all devices; of a
    result this is checked. Arguments and results are whole arrays.
    """
    if mode in (AUTO, EXPLICIT):
        return f
    if mode in (CHECKED, UNCHECKED):
        return jax.shard_map(
            f,
            mesh=make_mesh(mode),
            in_specs=specs(in_axes),
            out_specs=specs(out_axes),
            check_vma=mode is CHECKED,
        )
    if mode is VMAP:  # refuses an out_axes of None for what differs
        mapped = jax.vmap(f, in_axes, out_axes, axis_name=AXIS)
    else:
        stacked = jax.tree.map(
            lambda axis: axis or 0, out_axes, is_leaf=lambda axis: axis is None
        )
        mapped = jax.pmap(f, AXIS, in_axes=in_axes, out_axes=stacked)

    def on_whole_arrays(*args: Any) -> Any:
        results = mapped(*split(args, in_axes))
        return over_leaves(_join if mode is VMAP else _join_copies, out_axes, results)

    return on_whole_arrays


def put(mode: Mode, value: Any, *spec: Any) -> jax.Array:
    """Spread one array over a mesh of two axes, as a PartitionSpec says."""
    return jax.device_put(value, NamedSharding(make_mesh(mode, MESH), P(*spec)))


def split(args: Any, in_axes: Any) -> Any:
    """Split every axis that is spread into one of devices and the rest."""

    def split_leaf(axis: int | None, leaf: Any) -> Any:
        if axis is None:
            return leaf
        return leaf.reshape(*leaf.shape[:axis], DEVICES, -1, *leaf.shape[axis + 1 :])

    return over_leaves(split_leaf, in_axes, args)


def _join(axis: int | None, leaf: Any) -> Any:
    if axis is None:
        return leaf
    return leaf.reshape(*leaf.shape[:axis], -1, *leaf.shape[axis + 2 :])


def _join_copies(axis: int | None, leaf: Any) -> Any:
    if axis is not None:
        return _join(axis, leaf)
    if not isinstance(leaf, jax.core.Tracer):
        np.testing.assert_array_equal(leaf, jnp.broadcast_to(leaf[:1], leaf.shape))
    return leaf[0]
