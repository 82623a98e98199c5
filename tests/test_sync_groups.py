"""Statistics over a part of the devices: groups, one axis of two, none at all."""

from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

import jaxnorm as jn
from tests.cases import batch_norm_loss
from tests.collectives import count_collectives
from tests.compiling import quick_jit
from tests.spreading import (
    AUTO,
    AXIS,
    CHECKED,
    DEVICES,
    EXPLICIT,
    MAPPED,
    PMAP,
    UNCHECKED,
    VMAP,
    make_mesh,
    spread,
)

RNG = np.random.default_rng(0)
X, CT = RNG.normal(3, 2, (2, 16, 3, 4)).astype(np.float32)
SCALE, BIAS = RNG.normal(1, 0.5, (2, 4)).astype(np.float32)
WEIGHTS = RNG.uniform(0.5, 2, (16, 3, 1)).astype(np.float32)
WEIGHTS[2:4, 1:] = WEIGHTS[5] = 0
WEIGHTS[[4, 5, 12, 13]] = 0  # devices 2 and 6
STATS = jn.init_stats(4)

GROUPS = {
    "halves": [[0, 1, 2, 3], [4, 5, 6, 7]],
    "pairs": [[0, 4], [5, 1], [2, 6], [7, 3]],  # [2, 6] has nothing at all
    "each alone": [[i] for i in range(8)],
    "all together": [[3, 1, 2, 0, 7, 6, 5, 4]],
}


def step(x, ct, weights, axis_name=None, groups=None):
    """Return what each device has for itself: all of it with rows in front."""

    loss = batch_norm_loss(
        STATS, ct, weights=weights, axis_name=axis_name, axis_index_groups=groups
    )
    # Scale and bias vary here, so that their gradients are this device's own.
    scale, bias = SCALE + 0 * jnp.sum(ct), BIAS + 0 * jnp.sum(ct)
    (dx, *rest), (y, stats) = jax.grad(loss, (0, 1, 2), has_aux=True)(x, scale, bias)
    return (y, dx), jax.tree.map(lambda leaf: leaf[None], (stats, rest))


def check_groups_of_devices(result, groups):
    """Compare each group's share of `result` with one device that has its rows."""
    (y, dx), (stats, rest) = jax.device_get(result)
    for group in groups:
        rows = np.concatenate([[2 * i, 2 * i + 1] for i in group])
        (ey, edx), expected = quick_jit(step)(X[rows], CT[rows], WEIGHTS[rows])
        chex.assert_trees_all_close(
            (y[rows], dx[rows]), (ey, edx), rtol=2e-6, atol=1e-5
        )
        estats, erest = jax.tree.map(lambda leaf: leaf[0], expected)
        for i in group:
            got = jax.tree.map(lambda leaf, i=i: leaf[i], stats)
            chex.assert_trees_all_close(got, estats, rtol=1e-6)
        summed = [sum(leaf[i] for i in group) for leaf in rest]
        chex.assert_trees_all_close(summed, erest, rtol=2e-6, atol=2e-5)


@pytest.mark.usefixtures("number_of_devices")
@pytest.mark.parametrize("mode", MAPPED, ids=str)
@pytest.mark.parametrize("groups", GROUPS.values(), ids=GROUPS)
def test_groups_are_devices_of_their_own(mode, groups):
    run = partial(step, axis_name=AXIS, groups=groups)
    f = quick_jit(spread(mode, run, in_axes=(0, 0, 0), out_axes=(0, 0)))
    check_groups_of_devices(f(X, CT, WEIGHTS), groups)


@pytest.mark.parametrize("mode", MAPPED, ids=str)
def test_moments_pool_by_groups(mode):
    groups = GROUPS["pairs"]

    def run(x, weights):
        directly = jn.compute_moments(
            x, (0, 1), weights=weights, axis_name=AXIS, axis_index_groups=groups
        )
        own = jn.compute_moments(x, (0, 1), weights=weights)
        later = jn.pool_moments(own, AXIS, axis_index_groups=groups)
        return jax.tree.map(lambda leaf: leaf[None], (directly, later))

    f = quick_jit(spread(mode, run, in_axes=(0, 0), out_axes=0))
    directly, later = f(X, WEIGHTS)
    for group in groups:
        rows = np.concatenate([[2 * i, 2 * i + 1] for i in group])
        expected = jn.compute_moments(X[rows], (0, 1), weights=WEIGHTS[rows])
        for i in group:
            for moments in (directly, later):
                got = jax.tree.map(lambda leaf, i=i: leaf[i], moments)
                chex.assert_trees_all_close(got, expected, rtol=2e-6)


# Meshes of two axes: 2 rows of 4 devices.

SHAPE = {"host": 2, "chip": 4}
POOLED = {
    "host": [[0, 4], [1, 5], [2, 6], [3, 7]],
    "chip": [[0, 1, 2, 3], [4, 5, 6, 7]],
    ("host", "chip"): [list(range(8))],
    ("chip", "host"): [list(range(8))],
}


def over_two_axes(mode, run):
    """Spread `run` over both axes; like `spread`, with all axes 0."""
    if mode in (CHECKED, UNCHECKED):
        spec = P(("host", "chip"))
        mesh = make_mesh(mode, SHAPE)
        return jax.shard_map(
            run, mesh=mesh, in_specs=spec, out_specs=spec, check_vma=mode is CHECKED
        )
    # pmap does not nest in pmap; vmap nests in both.
    outer = {PMAP: jax.pmap, VMAP: jax.vmap}[mode]
    mapped = outer(jax.vmap(run, axis_name="chip"), axis_name="host")

    def on_whole_arrays(*args):
        split = [leaf.reshape(2, 4, -1, *leaf.shape[1:]) for leaf in args]
        return jax.tree.map(
            lambda leaf: leaf.reshape(-1, *leaf.shape[3:]), mapped(*split)
        )

    return on_whole_arrays


@pytest.mark.parametrize("mode", MAPPED, ids=str)
@pytest.mark.parametrize("axis_name", POOLED, ids=str)
def test_two_axes_pool_over_one_or_both(mode, axis_name):
    f = quick_jit(over_two_axes(mode, partial(step, axis_name=axis_name)))
    check_groups_of_devices(f(X, CT, WEIGHTS), POOLED[axis_name])


@pytest.mark.parametrize("mode", MAPPED, ids=str)
def test_groups_of_two_axes_count_along_both(mode):
    groups = GROUPS["pairs"]
    run = partial(step, axis_name=("host", "chip"), groups=groups)
    f = quick_jit(over_two_axes(mode, run))
    check_groups_of_devices(f(X, CT, WEIGHTS), groups)


@pytest.mark.parametrize("mode", [AUTO, EXPLICIT], ids=str)
@pytest.mark.parametrize("spec", [P("host"), P("chip"), P(("host", "chip"))], ids=str)
def test_two_axes_under_jit_are_global(mode, spec):
    sharding = NamedSharding(make_mesh(mode, SHAPE), spec)
    result = quick_jit(step)(*jax.device_put((X, CT, WEIGHTS), sharding))
    chex.assert_trees_all_close(
        result, quick_jit(step)(X, CT, WEIGHTS), rtol=2e-6, atol=2e-5
    )


# Statistics of each shard alone, on an array that is sharded under jit.


def by_vmap(x, ct, weights):
    split = [v.reshape(DEVICES, -1, *v.shape[1:]) for v in (x, ct, weights)]
    pairs, rest = jax.vmap(step)(*split)
    pairs = jax.tree.map(lambda leaf: leaf.reshape(x.shape), pairs)
    return pairs, jax.tree.map(lambda leaf: leaf[:, 0], rest)


@pytest.mark.parametrize("mode", [AUTO, EXPLICIT], ids=str)
@pytest.mark.parametrize("way", ["vmap", "shard_map"])
def test_local_statistics_under_jit(mode, way):
    mesh = make_mesh(mode)
    args = jax.device_put((X, CT, WEIGHTS), NamedSharding(mesh, P(AXIS)))
    f = by_vmap
    if way == "shard_map":
        f = jax.shard_map(step, mesh=mesh, in_specs=P(AXIS), out_specs=P(AXIS))
    f = quick_jit(f)
    check_groups_of_devices(f(*args), GROUPS["each alone"])
    assert count_collectives(f, *args) == 0


@pytest.mark.parametrize("mode", [AUTO, EXPLICIT], ids=str)
def test_local_statistics_are_kept_and_merged(mode):
    """The whole life of replicas under jit: start, two steps, merge, evaluate."""
    rows = NamedSharding(make_mesh(mode), P(AXIS))

    @jax.jit
    def train(x, stats):
        x = x.reshape(DEVICES, -1, *x.shape[1:])
        return jax.vmap(lambda x, stats: jn.batch_norm(x, stats, training=True))(
            x, stats
        )[1]

    x = jax.device_put(X, rows)
    stats = jax.tree.map(lambda leaf: jnp.stack([leaf] * DEVICES), STATS)
    stats = jax.device_put(stats, rows)
    for _ in range(2):
        stats = train(x, stats)
    merged = jax.jit(jn.merge_stats)(stats)
    wide = X.astype(np.float64)
    np.testing.assert_allclose(merged.mean, wide.mean((0, 1)), rtol=1e-6)
    np.testing.assert_allclose(merged.var, wide.var((0, 1)), rtol=2e-6)
