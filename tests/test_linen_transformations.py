"""The linen modules in training and evaluation, and under transformations."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen
from numpy.testing import assert_allclose

import jaxnorm.linen as ours
from tests.flax_modules import KEY, TRAINING, assert_trees_close, init, sample, train

# Training and evaluation.


def test_a_traced_flag_compiles_once():
    norm, x, traces = ours.BatchNorm(), sample((8, 6)), []
    variables = norm.init(KEY, x, use_running_average=False)

    @jax.jit
    def step(variables, evaluating):
        traces.append(0)
        return norm.apply(
            variables, x, use_running_average=evaluating, mutable=["batch_stats"]
        )

    for evaluating in (False, True):
        y, updates = step(variables, jnp.array(evaluating))
        expected, stats = norm.apply(
            variables, x, use_running_average=evaluating, mutable=["batch_stats"]
        )
        assert_allclose(y, expected, atol=1e-6)
        assert_trees_close(updates, stats, rtol=1e-6)
    assert len(traces) == 1


def test_nothing_is_updated_while_initializing():
    norm = ours.BatchNorm(axis_name="batch", **TRAINING)  # not bound here
    y, variables = norm.init_with_output(KEY, sample((8, 6)))
    assert_allclose(variables["batch_stats"]["mean"], 0)
    assert_allclose(np.asarray(y).mean(0), 0, atol=1e-6)


# Transformations.


class Block(linen.Module):
    """A layer with every kind of variable, of the shape that a scan carries."""

    evaluating: bool = False

    @linen.compact
    def __call__(self, x, _=None):
        x = linen.Dense(6)(x)
        x = ours.BatchNorm(use_running_average=self.evaluating)(x)
        return ours.SpectralNorm(linen.Dense(6))(
            ours.LayerNorm()(x), update_stats=not self.evaluating
        ), None


def test_scan_over_layers():
    layers = linen.scan(
        Block,
        variable_axes={"params": 0, "batch_stats": 0},
        split_rngs={"params": True},
        length=3,
    )
    x = sample((8, 6))
    variables = init(layers(), x)
    assert variables["batch_stats"]["BatchNorm_0"]["mean"].shape == (3, 6)
    (y, _), updates = train(layers(), variables, x)
    for layer in range(3):
        one = jax.tree.map(lambda leaf, i=layer: leaf[i], variables)
        (x, _), stats = train(Block(), one, x)
        assert_allclose(
            updates["batch_stats"]["BatchNorm_0"]["var"][layer],
            stats["batch_stats"]["BatchNorm_0"]["var"],
            rtol=1e-5,
        )
    assert_allclose(y, x, atol=1e-5)


def test_scan_over_steps_carries_the_statistics():
    norm, x = ours.BatchNorm(debias=True, **TRAINING), sample((5, 8, 6))
    variables = norm.init(KEY, x[0])

    def step(stats, x):
        _, updates = norm.apply(stats, x, mutable=["batch_stats"])
        return {**stats, **updates}, None

    scanned, _ = jax.lax.scan(step, variables, x)
    for batch in x:
        _, variables = train(norm, variables, batch)
    assert_trees_close(scanned, variables, rtol=1e-6)


def test_lifted_vmap():
    x = sample((8, 6))
    variables = init(Block(), x)
    (expected, _), after = train(Block(), variables, x)
    lifted = linen.vmap(
        Block,
        variable_axes={"params": None, "batch_stats": 0},
        split_rngs={"params": False},
    )
    repeat = {"params": variables["params"]}
    repeat["batch_stats"] = jax.tree.map(
        lambda leaf: jnp.stack([leaf] * 2), variables["batch_stats"]
    )
    (y, _), updates = train(lifted(), repeat, jnp.stack([x, x]))
    assert_allclose(y[1], expected, atol=1e-5)
    stats = jax.tree.map(lambda leaf: leaf[1], updates["batch_stats"])
    assert_trees_close(stats, after["batch_stats"], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("lift", ["remat", "jit"])
def test_lifted_transformations(lift):
    x = sample((8, 6))
    plain = Block()
    variables = init(plain, x)

    def loss(params, module):
        variables_ = {**variables, "params": params}
        (y, _), updates = module.apply(variables_, x, mutable=["batch_stats"])
        return jnp.sum(y**3), updates

    lifted = getattr(linen, lift)(Block)()
    differentiate = jax.jit(jax.value_and_grad(loss, has_aux=True), static_argnums=1)
    (a, updates), grads = differentiate(variables["params"], lifted)
    (b, stats), expected = differentiate(variables["params"], plain)
    assert_allclose(a, b, rtol=1e-5)
    assert_trees_close(updates, stats, rtol=1e-5, atol=1e-6)
    assert_trees_close(grads, expected, rtol=1e-3, atol=1e-3)


def test_axis_index_groups():
    """Statistics of two pairs of devices, in norms with and without running ones."""
    x = sample((4, 6, 3))
    groups = [[0, 1], [2, 3]]
    pooled = {"axis_name": "d", "axis_index_groups": groups, "epsilon": 1e-5}
    for module in (
        ours.BatchNorm(**pooled, **TRAINING),
        ours.LayerNorm(reduction_axes=0, **pooled),
    ):
        variables = module.init(KEY, x[0])
        y, _ = jax.pmap(lambda x, m=module, v=variables: train(m, v, x), "d")(x)
        pairs = np.asarray(x, np.float64).reshape(2, 12, 3)
        expected = (pairs - pairs.mean(1, keepdims=True)) / np.sqrt(
            pairs.var(1, keepdims=True) + 1e-5
        )
        assert_allclose(np.asarray(y).reshape(2, 12, 3), expected, atol=1e-5)
