"""Checkpoints of Flax's modules load into these, and the reverse."""

from functools import partial

import flax.linen
import flax.nnx
import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
from flax import nnx, serialization
from numpy.testing import assert_allclose

from tests.flax_modules import FLAX, OURS, sample

DIRECTIONS = pytest.mark.parametrize("source", ["flax", "ours"])


class LinenModel(flax.linen.Module):
    """All modules of one package, one after the other."""

    package: object

    @flax.linen.compact
    def __call__(self, x, training):
        n, dense = self.package, flax.linen.Dense
        x = n.BatchNorm(use_running_average=not training)(dense(16)(x))
        x = n.RMSNorm()(n.LayerNorm()(x))
        x = n.GroupNorm(2)(x.reshape(x.shape[0], 2, 2, -1))
        x = n.InstanceNorm()(x).reshape(x.shape[0], -1)
        x = n.SpectralNorm(dense(6))(x, update_stats=training)
        return n.WeightNorm(dense(5))(x)


class NnxModel(flax.nnx.Module):
    """The same."""

    def __init__(self, package, *, rngs):
        n, linear = package, flax.nnx.Linear
        self.dense = linear(12, 8, rngs=rngs)
        self.batch = n.BatchNorm(8, rngs=rngs)
        self.layer = n.LayerNorm(8, rngs=rngs)
        self.rms = n.RMSNorm(8, rngs=rngs)
        self.group = n.GroupNorm(8, 4, rngs=rngs)
        self.spectral = n.SpectralNorm(linear(8, 6, rngs=rngs), rngs=rngs)

    def __call__(self, x):
        x = self.rms(self.layer(self.batch(self.dense(x))))
        return self.spectral(self.group(x))


def packages(api, source):
    pair = FLAX[api], OURS[api]
    return pair if source == "flax" else pair[::-1]


def init(model, seed, x):
    return jax.jit(partial(model.init, training=False))(jax.random.key(seed), x)


def trained_linen(model, x):
    """Initialize, and train for some steps by gradient descent."""
    variables = init(model, 0, x)

    @jax.jit
    def step(variables):
        def loss(params):
            y, updates = model.apply(
                {**variables, "params": params}, x, True, mutable=["batch_stats"]
            )
            return jnp.mean((y - x[:, :5]) ** 2), updates

        grads, updates = jax.grad(loss, has_aux=True)(variables["params"])
        params = jax.tree.map(lambda p, g: p - 0.1 * g, variables["params"], grads)
        return {"params": params, **updates}

    for _ in range(5):
        variables = step(variables)
    return variables


@DIRECTIONS
@pytest.mark.parametrize("way", ["serialization", "orbax"])
def test_linen(source, way, tmp_path):
    x = sample((16, 12))
    one, other = (LinenModel(package) for package in packages("linen", source))
    variables = trained_linen(one, x)
    assert np.abs(variables["batch_stats"]["BatchNorm_0"]["mean"]).max() > 0.01
    target = init(other, 1, x)
    if way == "serialization":
        loaded = serialization.from_bytes(target, serialization.to_bytes(variables))
    else:
        with ocp.StandardCheckpointer() as checkpointer:
            checkpointer.save(tmp_path / "model", variables)
            checkpointer.wait_until_finished()
            loaded = checkpointer.restore(tmp_path / "model", target)
    evaluate = {m: jax.jit(partial(m.apply, training=False)) for m in (one, other)}
    y, expected = (evaluate[m](loaded, x) for m in (other, one))
    assert_allclose(expected, evaluate[one](variables, x))
    assert_allclose(y, expected, rtol=1e-4, atol=1e-5)
    # And training goes on from there.
    outputs = [
        jax.jit(partial(m.apply, training=True, mutable=["batch_stats"]))(loaded, x)
        for m in (one, other)
    ]
    for a, b in zip(*map(jax.tree.leaves, outputs), strict=True):
        assert_allclose(a, b, rtol=1e-4, atol=1e-5)


@DIRECTIONS
@pytest.mark.parametrize("way", ["serialization", "orbax"])
def test_nnx(source, way, tmp_path):
    x = sample((16, 12))
    one, other = (
        NnxModel(package, rngs=nnx.Rngs(seed))
        for seed, package in enumerate(packages("nnx", source))
    )
    for _ in range(3):
        one(x)
    one.eval()
    other.eval()
    state, target = nnx.state(one), nnx.state(other)
    if way == "serialization":
        data = serialization.msgpack_serialize(texts(state))
        loaded = serialization.from_state_dict(
            texts(target), serialization.msgpack_restore(data)
        )
        leaves = [jnp.asarray(leaf) for leaf in jax.tree.leaves(loaded)]
        loaded = jax.tree.unflatten(jax.tree.structure(target), leaves)
    else:
        with ocp.StandardCheckpointer() as checkpointer:
            checkpointer.save(tmp_path / "model", state)
            checkpointer.wait_until_finished()
            loaded = checkpointer.restore(tmp_path / "model", target)
    nnx.update(other, loaded)
    assert_allclose(other(x), one(x), rtol=1e-4, atol=1e-5)


@DIRECTIONS
def test_nnx_weight_norm(source, tmp_path):
    """Its lengths are of another type than Flax's; as pure dicts they are the same."""
    one, other = (
        package.WeightNorm(nnx.Linear(3, 4, rngs=nnx.Rngs(seed)), rngs=nnx.Rngs(seed))
        for seed, package in enumerate(packages("nnx", source))
    )
    lengths = jnp.array([1.0, 2.0, 3.0, 4.0])
    nnx.update(one, {"scales": {("kernel",): lengths}})
    state, target = (nnx.to_pure_dict(nnx.state(module)) for module in (one, other))
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "model", state)
        checkpointer.wait_until_finished()
        nnx.update(other, checkpointer.restore(tmp_path / "model", target))
    x = sample((2, 3))
    assert_allclose(other(x), one(x), rtol=1e-5, atol=1e-6)
    if source == "flax":
        assert isinstance(other.scales["kernel",], nnx.Param)


def texts(state):
    """Return the arrays under their paths, as msgpack has no keys but texts."""
    paths = jax.tree_util.tree_flatten_with_path(state)[0]
    return {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in paths}
