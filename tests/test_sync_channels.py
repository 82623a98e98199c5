"""Channels over one mesh axis, the batch over another: what one device gives."""

from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

import jaxnorm as jn
from tests.compiling import quick_jit
from tests.spreading import AUTO, CHECKED, EXPLICIT, UNCHECKED, make_mesh

# Four shards of channels in two times two: a group may be what one axis holds.
SHAPE = {"data": 2, "team": 2, "member": 2}
MODEL = ("team", "member")
CHANNELS = 16

RNG = np.random.default_rng(0)
X, CT = RNG.normal(3, 2, (2, 4, 3, 2, CHANNELS)).astype(np.float32)
SCALE, BIAS = RNG.normal(1, 0.5, (2, CHANNELS)).astype(np.float32)
WEIGHTS = RNG.uniform(0.5, 2, (4, 3, 2, 1)).astype(np.float32)
WEIGHTS[1, 1:] = WEIGHTS[2:] = 0  # the second shard of the batch is empty


def start(channels):
    """Return statistics that hold their evidence feature by feature.

    A single weight would be the same on all shards, which only one of them could know
    of a batch that is not finite.
    """
    return jn.init_stats(channels, prior_weight=jnp.zeros(channels))


def batch(x, weights, scale, bias, shards=1, axis_name=None):
    stats = start(CHANNELS // shards)
    return jn.batch_norm(
        x, stats, scale, bias, training=True, weights=weights, axis_name=axis_name
    )


def group(x, weights, scale, bias, shards=1, axis_name=None, *, num_groups):
    y = jn.group_norm(
        x,
        scale,
        bias,
        num_groups=max(1, num_groups // shards),
        weights=weights,
        axis_name=axis_name,
    )
    return y, ()


def instance(x, weights, scale, bias, shards=1, axis_name=None):
    y = jn.instance_norm(x, scale, bias, weights=weights, axis_name=axis_name)
    return y, ()


def layer(x, weights, scale, bias, shards=1, axis_name=None):
    y = jn.layer_norm(x, scale, bias, weights=weights, axis_name=axis_name)
    return y, ()


def rms(x, weights, scale, bias, shards=1, axis_name=None):
    del bias
    return jn.rms_norm(x, scale, weights=weights, axis_name=axis_name), ()


# Each norm, and the axes to pool over where jaxnorm has to be told.
NORMS = {
    "batch": (batch, "data"),
    "instance": (instance, None),
    "layer": (layer, MODEL),
    "rms": (rms, MODEL),
    "8 groups, two on a device": (partial(group, num_groups=8), None),
    "4 groups, one on a device": (partial(group, num_groups=4), None),
    "2 groups, each a team": (partial(group, num_groups=2), "member"),
    "1 group": (partial(group, num_groups=1), MODEL),
}


def step(norm, x, ct, weights, scale, bias, sum_over=None):
    def loss(x, scale, bias):
        y, stats = norm(x, weights, scale, bias)
        return jnp.sum(y * ct), (y, stats)

    grads, (y, stats) = jax.grad(loss, (0, 1, 2), has_aux=True)(x, scale, bias)
    dx, *rest = grads
    return (y, dx), stats, lax.psum(rest, sum_over) if sum_over else rest


WHOLE, ROWS, FEATURES = P("data", None, None, MODEL), P("data"), P(MODEL)
ARGS, SPECS = (X, CT, WEIGHTS, SCALE, BIAS), (WHOLE, WHOLE, ROWS, FEATURES, FEATURES)


def run(mode, name):
    norm, axis_name = NORMS[name]
    mesh = make_mesh(mode, SHAPE)
    if mode in (AUTO, EXPLICIT):
        shardings = tuple(NamedSharding(mesh, spec) for spec in SPECS)
        return quick_jit(partial(step, norm))(*jax.device_put(ARGS, shardings))
    stats = FEATURES if name == "batch" else ()
    return quick_jit(
        jax.shard_map(
            partial(
                step,
                partial(norm, shards=4, axis_name=axis_name),
                sum_over=None if mode.sums_gradients else "data",
            ),
            mesh=mesh,
            in_specs=SPECS,
            out_specs=((WHOLE, WHOLE), stats, FEATURES),
            check_vma=mode is CHECKED,
        )
    )(*ARGS)


@pytest.mark.parametrize("mode", [CHECKED, UNCHECKED, AUTO, EXPLICIT], ids=str)
@pytest.mark.parametrize("name", NORMS)
def test_sharded_channels(mode, name):
    got, expected = run(mode, name), quick_jit(partial(step, NORMS[name][0]))(*ARGS)
    chex.assert_trees_all_close(got, expected, rtol=2e-6, atol=2e-5)


@pytest.mark.parametrize("mode", [AUTO, EXPLICIT], ids=str)
@pytest.mark.parametrize("num_groups", [1, 2, 4, 8])
def test_groups_across_the_shards_of_one_axis(mode, num_groups):
    """Four shards of channels; a group is what several, one, or half of one hold."""
    mesh = make_mesh(mode, {"data": 2, "model": 4})
    x = jax.device_put(X, NamedSharding(mesh, P("data", None, None, "model")))

    @jax.jit
    def run(x):
        def loss(x):
            y = jn.group_norm(x, SCALE, num_groups=num_groups)
            return jnp.sum(y * CT), y

        return jax.grad(loss, has_aux=True)(x)

    chex.assert_trees_all_close(run(x), run(X), rtol=2e-6, atol=2e-5)


@pytest.mark.parametrize("mode", [CHECKED, UNCHECKED], ids=str)
def test_evaluation_and_traced_training_with_sharded_channels(mode):
    stats = jn.NormStats(BIAS, SCALE**2, jnp.ones(CHANNELS))

    def norm(x, stats, training):
        return jn.batch_norm(x, stats, training=training, axis_name="data")

    f = jax.shard_map(
        norm,
        mesh=make_mesh(mode, SHAPE),
        in_specs=(WHOLE, FEATURES, P()),
        out_specs=(WHOLE, FEATURES),
        check_vma=mode is CHECKED,
    )
    for training in (True, False):
        got = quick_jit(f)(X, stats, training)
        expected = jn.batch_norm(X, stats, training=training)
        chex.assert_trees_all_close(got, expected, rtol=2e-6, atol=1e-5)


@pytest.mark.parametrize("mode", [CHECKED, UNCHECKED, AUTO, EXPLICIT], ids=str)
def test_a_bad_feature_stays_alone(mode):
    """The rule of one device too, so that shards of features need not ask around."""
    x = X.copy()
    x[1, 0, 0, 5] = np.inf

    def train(x, stats):
        axis_name = None if mode in (AUTO, EXPLICIT) else "data"
        return jn.batch_norm(x, stats, training=True, axis_name=axis_name)[1]

    mesh = make_mesh(mode, SHAPE)
    f, args = train, (x, start(CHANNELS))
    if mode in (AUTO, EXPLICIT):
        args = jax.device_put(
            args, (NamedSharding(mesh, WHOLE), NamedSharding(mesh, FEATURES))
        )
    else:
        f = jax.shard_map(
            train,
            mesh=mesh,
            in_specs=(WHOLE, FEATURES),
            out_specs=FEATURES,
            check_vma=mode is CHECKED,
        )
    mean, var, weight = quick_jit(f)(*args)
    bad = np.arange(CHANNELS) == 5
    np.testing.assert_allclose(weight, np.where(bad, 0, 0.01), rtol=1e-6)
    np.testing.assert_allclose(mean, np.where(bad, 0, X.mean((0, 1, 2))), rtol=1e-5)
    np.testing.assert_allclose(var, np.where(bad, 1, X.var((0, 1, 2))), rtol=1e-5)
