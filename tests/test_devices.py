"""One device or four: the same outputs, gradients and statistics."""

import re

import chex
import jax
import numpy as np
import pytest
from jax import lax
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import jaxnorm as jn
from tests.cases import batch_norm_loss

RNG = np.random.default_rng(0)
X = RNG.normal(3, 2, (8, 5, 3)).astype(np.float32)
CT = RNG.normal(size=X.shape).astype(np.float32)
SCALE, BIAS = RNG.normal(1, 1, (2, 3)).astype(np.float32)
STATS = jn.init_stats(3)

# Device 0 holds nothing, device 1 little, the rest fractional weights.
WEIGHTS = RNG.uniform(0.5, 2, (8, 5, 1)).astype(np.float32)
WEIGHTS[:2] = 0
WEIGHTS[2:4, 1:] = 0


def step(x, ct, weights, axis_name=None, groups=None, sum_gradients=False):
    """Return output, statistics and gradients of a loss that sums over devices."""

    loss = batch_norm_loss(
        STATS, ct, weights=weights, axis_name=axis_name, axis_index_groups=groups
    )
    grads, (y, stats) = jax.grad(loss, (0, 1, 2), has_aux=True)(x, SCALE, BIAS)
    dx, *rest = grads
    return (y, dx), stats, lax.psum(rest, axis_name) if sum_gradients else rest


def on_one_device(weights):
    return jax.jit(step)(X, CT, weights)


def mesh(kind=AxisType.Auto):
    return jax.make_mesh((4,), ("data",), axis_types=(kind,), devices=jax.devices()[:4])


def by_mapping(transform, weights, **kwargs):
    """Run under pmap or vmap, four devices of two examples each."""

    def split(v):
        return None if v is None else v.reshape(4, 2, *v.shape[1:])

    def run(x, ct, weights):
        return step(x, ct, weights, "data", sum_gradients=True)

    per_example, stats, rest = transform(run, axis_name="data", **kwargs)(
        *map(split, (X, CT, weights))
    )
    chex.assert_trees_all_equal(
        *(jax.tree.map(lambda v, i=i: v[i], stats) for i in (0, 3))
    )
    stats, rest = jax.tree.map(lambda v: v[0], (stats, rest))
    return jax.tree.map(lambda v: v.reshape(X.shape), per_example), stats, rest


def by_shard_map(weights, check_vma):
    def run(x, ct, weights):
        return step(x, ct, weights, "data", sum_gradients=not check_vma)

    f = jax.shard_map(
        run,
        mesh=mesh(),
        in_specs=P("data"),
        out_specs=(P("data"), P(), P()),
        check_vma=check_vma,
    )
    return jax.jit(f), (X, CT, weights)


def by_jit(weights, kind):
    with jax.set_mesh(mesh(kind)) as used:
        sharding = NamedSharding(used if used is not None else mesh(kind), P("data"))
        args = jax.device_put((X, CT, weights), sharding)
        return jax.jit(step)(*args)


def run(mode, weights):
    if mode == "pmap":
        return by_mapping(jax.pmap, weights, devices=jax.devices()[:4])
    if mode == "vmap":
        return by_mapping(jax.vmap, weights)
    if mode.startswith("shard_map"):
        f, args = by_shard_map(weights, mode.endswith("check_vma"))
        return f(*args)
    return by_jit(weights, AxisType.Explicit if "explicit" in mode else AxisType.Auto)


MODES = ["pmap", "vmap", "shard_map check_vma", "shard_map", "jit auto", "jit explicit"]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("weights", [None, WEIGHTS], ids=["equal", "uneven"])
def test_four_devices_give_what_one_gives(mode, weights):
    got, expected = run(mode, weights), on_one_device(weights)
    chex.assert_trees_all_close(got, expected, rtol=2e-6, atol=1e-5)
    assert not np.allclose(got[1].mean, X[:2].mean((0, 1)), rtol=1e-2)


@pytest.mark.parametrize("offset", [1e4, 1e6])
@pytest.mark.parametrize("mode", ["pmap", "vmap", "shard_map", "jit auto"])
def test_accuracy_across_devices(mode, offset):
    """From running mean 0; a psum of raw second moments would lose every digit."""
    x = RNG.normal(offset, 1, (400, 3)).astype(np.float32)
    wide = x.astype(np.float64)

    def f(x, name="data"):
        return jn.batch_norm(x, STATS, training=True, axis_name=name)

    if mode in ("pmap", "vmap"):
        options = {"devices": jax.devices()[:4]} if mode == "pmap" else {}
        y, stats = getattr(jax, mode)(f, axis_name="data", **options)(
            x.reshape(4, 100, 3)
        )
        y, stats = y.reshape(400, 3), jax.tree.map(lambda v: v[0], stats)
    elif mode == "shard_map":
        g = jax.shard_map(
            f, mesh=mesh(), in_specs=P("data"), out_specs=(P("data"), P())
        )
        y, stats = jax.jit(g)(x)
    else:
        sharded = jax.device_put(x, NamedSharding(mesh(), P("data")))
        y, stats = jax.jit(lambda x: f(x, None))(sharded)
    np.testing.assert_allclose(stats.var, wide.var(0), rtol=2e-6)
    np.testing.assert_allclose(stats.mean, wide.mean(0), rtol=1.2e-7)
    expected = (wide - wide.mean(0)) / np.sqrt(wide.var(0) + 1e-5)
    np.testing.assert_allclose(y, expected, atol=2e-6)


@pytest.mark.parametrize("check_vma", [True, False])
@pytest.mark.parametrize("weights", [None, WEIGHTS], ids=["equal", "uneven"])
def test_one_collective_forward_and_one_backward(check_vma, weights):
    f, args = by_shard_map(weights, check_vma)
    assert count_collectives(f, *args) == 2

    def forward(x, weights):
        y, stats = jn.batch_norm(
            x, STATS, SCALE, BIAS, training=True, weights=weights, axis_name="data"
        )
        return y, stats

    g = jax.shard_map(
        forward,
        mesh=mesh(),
        in_specs=P("data"),
        out_specs=(P("data"), P()),
        check_vma=check_vma,
    )
    assert count_collectives(jax.jit(g), X, weights) == 1


def count_collectives(f, *args):
    text = f.lower(*args).compile().as_text()
    kinds = "all-reduce|all-gather|all-to-all|reduce-scatter|collective-permute"
    return len(re.findall(rf"= .*\b(?:{kinds})(?:-start)?\(", text))


@pytest.mark.parametrize("mode", ["pmap", "vmap", "shard_map check_vma", "shard_map"])
def test_groups_pool_among_themselves(mode):
    groups = [[0, 2], [3, 1]]

    def local(x, ct, weights):
        (y, dx), stats, _ = step(x, ct, weights, "data", groups)
        return y, dx, jax.tree.map(lambda v: v[None], stats)

    if mode in ("pmap", "vmap"):
        split = [v.reshape(4, 2, *v.shape[1:]) for v in (X, CT, WEIGHTS)]
        options = {"devices": jax.devices()[:4]} if mode == "pmap" else {}
        y, dx, stats = getattr(jax, mode)(local, axis_name="data", **options)(*split)
        y, dx = y.reshape(X.shape), dx.reshape(X.shape)
        stats = jax.tree.map(lambda v: v[:, 0], stats)
    else:
        f = jax.shard_map(
            local,
            mesh=mesh(),
            in_specs=P("data"),
            out_specs=P("data"),
            check_vma=mode.endswith("check_vma"),
        )
        y, dx, stats = jax.jit(f)(X, CT, WEIGHTS)
    for group in groups:
        rows = np.concatenate([[2 * i, 2 * i + 1] for i in group])
        (ey, edx), estats, _ = step(X[rows], CT[rows], WEIGHTS[rows])
        chex.assert_trees_all_close((y[rows], dx[rows]), (ey, edx), atol=1e-5)
        for i in group:
            got = jax.tree.map(lambda v, i=i: v[i], stats)
            chex.assert_trees_all_close(got, estats, rtol=1e-6)


def test_pooling_over_two_axes_and_over_one():
    x = RNG.normal(size=(2, 3, 4, 5)).astype(np.float32)

    def pooled(axis_name):
        f = jax.vmap(
            lambda x: jn.compute_moments(x, 0, axis_name=axis_name), axis_name="inner"
        )
        return jax.vmap(f, axis_name="outer")(x)

    both, outer = pooled(("outer", "inner")), pooled("outer")
    expected = jn.compute_moments(x.reshape(-1, 5), 0)
    chex.assert_trees_all_close(
        jax.tree.map(lambda v: v[1, 2], both), expected, rtol=1e-5, atol=1e-6
    )
    expected = jn.compute_moments(x[:, 2].reshape(-1, 5), 0)
    chex.assert_trees_all_close(
        jax.tree.map(lambda v: v[1, 2], outer), expected, rtol=1e-5, atol=1e-6
    )


def test_one_feature_vector_a_device():
    """vmap over the batch, as in libraries that write models for one example."""
    y, stats = jax.vmap(
        lambda x: jn.batch_norm(x, STATS, training=True, axis_name="batch"),
        axis_name="batch",
        out_axes=(0, None),
    )(X[:, 0])
    expected, expected_stats = jn.batch_norm(X[:, 0], STATS, training=True)
    chex.assert_trees_all_close(
        (y, stats), (expected, expected_stats), rtol=2e-6, atol=1e-6
    )


@pytest.mark.parametrize("check_vma", [True, False])
def test_traced_training_inside_shard_map(check_vma):
    def f(x, training):
        return jn.batch_norm(x, STATS, SCALE, training=training, axis_name="data")

    g = jax.shard_map(
        f,
        mesh=mesh(),
        in_specs=(P("data"), P()),
        out_specs=(P("data"), P()),
        check_vma=check_vma,
    )
    for training in (True, False):
        expected = jn.batch_norm(X, STATS, SCALE, training=training)
        got = jax.jit(g)(X, training)
        chex.assert_trees_all_close(got, expected, rtol=1e-5, atol=1e-6)
