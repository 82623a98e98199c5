"""batch_norm: the state it returns, training and evaluation, what must not spoil it."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

import jaxnorm as jn
from tests import reference

RNG = np.random.default_rng(0)
X = RNG.normal(3, 2, (16, 4, 5)).astype(np.float32)
SCALE, BIAS = RNG.normal(1, 1, (2, 5)).astype(np.float32)


class BatchNormTest(chex.TestCase):
    @chex.variants(with_jit=True, without_jit=True)
    def test_training_normalizes_by_the_batch_and_moves_the_statistics(self):
        f = self.variant(lambda x, s: jn.batch_norm(x, s, SCALE, BIAS, training=True))
        y, stats = f(X, jn.init_stats(5))
        wide = X.astype(np.float64)
        expected = reference.normalize(np, wide, SCALE, BIAS, axes=(0, 1))
        np.testing.assert_allclose(y, expected, atol=2e-6)
        np.testing.assert_allclose(stats.mean, wide.mean((0, 1)), rtol=1e-6)
        np.testing.assert_allclose(stats.var, wide.var((0, 1)), rtol=2e-6)

    @chex.variants(with_jit=True, without_jit=True)
    def test_evaluation_uses_the_statistics_and_returns_them_unchanged(self):
        stats = jn.NormStats(BIAS, SCALE**2, jnp.float32(1))
        f = self.variant(lambda x, s: jn.batch_norm(x, s, SCALE, BIAS, training=False))
        y, after = f(X, stats)
        x, scale, bias = (v.astype(np.float64) for v in (X, SCALE, BIAS))
        expected = (x - bias) / np.sqrt(scale**2 + 1e-5) * scale + bias
        np.testing.assert_allclose(y, expected, rtol=2e-6, atol=2e-6)
        chex.assert_trees_all_equal(after, stats)


@pytest.mark.parametrize("flag", [np.array, np.bool_, jnp.array])
def test_training_may_be_any_scalar_that_is_a_bool(flag):
    for training in (True, False):
        got, expected = (
            jn.batch_norm(X, jn.init_stats(5), SCALE, BIAS, training=value)
            for value in (flag(training), training)
        )
        chex.assert_trees_all_equal(got, expected)


def test_a_traced_training_flag_serves_both_with_one_compilation():
    @jax.jit
    @chex.assert_max_traces(n=1)
    def f(x, stats, training):
        return jn.batch_norm(x, stats, SCALE, BIAS, training=training)

    stats = jn.NormStats(jnp.ones(5), jnp.full(5, 2.0), jnp.float32(1))
    for training in (True, False):
        expected = jax.jit(
            lambda x, s, t=training: jn.batch_norm(x, s, SCALE, BIAS, training=t)
        )(X, stats)
        chex.assert_trees_all_close(f(X, stats, training), expected, rtol=1e-6)


def test_gradients_flow_through_a_traced_flag():
    def loss(x, training):
        y, _ = jn.batch_norm(x, jn.init_stats(5), training=training)
        return jnp.sum(y**3)

    for training in (True, False):
        chex.assert_trees_all_close(
            jax.jit(jax.grad(loss))(X, training),
            jax.grad(lambda x, t=training: loss(x, t))(X),
            rtol=1e-4,
            atol=1e-4,
        )


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_bad_batch_is_shown_but_never_kept(bad):
    step = jax.jit(lambda x, s: jn.batch_norm(x, s, training=True))
    _, stats = step(X, jn.init_stats(5))
    spoiled = X.copy()
    spoiled[0, 0, 0] = bad
    y, after = step(spoiled, stats)
    chex.assert_trees_all_equal(after, stats)
    assert np.all(np.isnan(y[..., 0])), "nothing is hidden"
    assert np.all(np.isfinite(y[..., 1:]))


def test_a_variance_that_overflows_is_shown_but_never_kept():
    """The input is finite, but its squares are not; an inverse root of 0 hides that."""
    huge = np.array([[1e20, 1], [-1e20, 3]], np.float32)
    stats = jn.init_stats(2, prior_weight=jnp.zeros(2))

    def step(x):
        y, after = jn.batch_norm(x, stats, training=True)
        return y[0, 0] + y[0, 1], (y, after)

    dx, (y, after) = jax.grad(step, has_aux=True)(huge)
    np.testing.assert_array_equal(np.isfinite(y), [[False, True]] * 2)
    np.testing.assert_array_equal(np.isfinite(dx), [[False, True]] * 2)
    expected = jn.NormStats(*np.array([[0, 2], [1, 1], [0, 0.01]], np.float32))
    chex.assert_trees_all_close(after, expected)


def test_an_empty_batch_changes_nothing_and_stays_finite():
    def step(x, stats, scale, bias):
        mask = jnp.zeros((16, 1, 1), bool)
        y, after = jn.batch_norm(x, stats, scale, bias, training=True, weights=mask)
        return jnp.sum(y**2 + y), (y, after)

    _, stats = jn.batch_norm(X, jn.init_stats(5), training=True)
    pull = jax.jit(jax.grad(step, (0, 2, 3), has_aux=True))
    grads, (y, after) = pull(X, stats, SCALE, BIAS)
    chex.assert_trees_all_equal(after, stats)
    assert np.all(np.isfinite(y))
    chex.assert_trees_all_equal(grads, jax.tree.map(jnp.zeros_like, grads))


def test_scan_over_steps_equals_a_loop():
    batches = RNG.normal(1, 2, (4, 8, 5)).astype(np.float32)

    def step(stats, x):
        y, stats = jn.batch_norm(x, stats, training=True)
        return stats, y

    scanned, outputs = jax.lax.scan(step, jn.init_stats(5), batches)
    looped = jn.init_stats(5)
    for x, y in zip(batches, outputs, strict=True):
        looped, expected = step(looped, x)
        np.testing.assert_allclose(y, expected, atol=1e-6)
    chex.assert_trees_all_close(scanned, looped, rtol=1e-6)


def test_vmap_over_models_keeps_their_statistics_apart():
    models = jax.tree.map(lambda v: jnp.stack([v, v]), jn.init_stats(5))
    data = jnp.stack([X, 2 * X])
    _, stats = jax.vmap(lambda x, s: jn.batch_norm(x, s, training=True))(data, models)
    np.testing.assert_allclose(stats.mean[1], 2 * stats.mean[0], rtol=1e-6)
    np.testing.assert_allclose(stats.weight, [0.01, 0.01], rtol=1e-6)


def test_remat_updates_the_statistics_once():
    """pfn-extras PR#117: rematerialization must not repeat the update."""

    def loss(x, stats):
        y, stats = jn.batch_norm(x, stats, training=True)
        return jnp.sum(y**3), stats

    start = jn.init_stats(5)
    grads, stats = jax.grad(loss, has_aux=True)(X, start)
    again, saved = jax.grad(jax.checkpoint(loss), has_aux=True)(X, start)
    chex.assert_trees_all_close((again, saved), (grads, stats), rtol=1e-5, atol=1e-6)


def test_batch_of_one_example():
    y, stats = jn.batch_norm(X[:1, :1], jn.init_stats(5), SCALE, BIAS, training=True)
    np.testing.assert_allclose(y[0, 0], BIAS, atol=1e-6)
    np.testing.assert_array_equal(stats.var, 0)


def test_half_precision_input_keeps_float32_statistics():
    x = jnp.asarray(X, jnp.bfloat16)
    y, stats = jn.batch_norm(x, jn.init_stats(5), SCALE, BIAS, training=True)
    assert y.dtype == jnp.bfloat16
    assert stats.mean.dtype == stats.var.dtype == jnp.float32
    wide = np.asarray(x, np.float64)
    np.testing.assert_allclose(stats.var, wide.var((0, 1)), rtol=2e-6)


def test_the_two_learned_numbers_undo_it():
    moments = jn.compute_moments(X, (0, 1))
    scale = jnp.sqrt(moments.var + 1e-5)
    y, _ = jn.batch_norm(X, jn.init_stats(5), scale, moments.mean, training=True)
    np.testing.assert_allclose(y, X, rtol=1e-5, atol=1e-5)


def test_statistics_may_come_as_numbers_and_lists():
    """As they do from a checkpoint of another library."""
    plain = jn.NormStats([0.0] * 5, [1.0] * 5, 1.0)
    arrays = jn.init_stats(5, prior_weight=1.0)
    for training in (True, False):
        expected = jn.batch_norm(X, arrays, training=training)
        got = jn.batch_norm(X, plain, training=training)
        chex.assert_trees_all_equal(got, expected)
    moments = jn.compute_moments(X, (0, 1))
    chex.assert_trees_all_equal(
        jn.update_stats(plain, moments), jn.update_stats(arrays, moments)
    )


def test_evaluation_takes_statistics_of_half_precision_as_they_are():
    stats = jn.NormStats(jnp.bfloat16(BIAS), jnp.bfloat16(SCALE**2), jnp.bfloat16(1))
    y, same = jn.batch_norm(X, stats, training=False)
    mean, var = (np.asarray(v, np.float64) for v in (stats.mean, stats.var))
    np.testing.assert_allclose(y, (X - mean) / np.sqrt(var + 1e-5), rtol=2e-5)
    chex.assert_trees_all_equal(same, stats)


def test_a_traced_flag_where_every_device_has_statistics_of_its_own():
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    x = RNG.normal(3, 2, (8, 6, 5)).astype(np.float32)

    def step(x, training):
        y, stats = jn.batch_norm(x, jn.init_stats(5), training=training)
        return y, stats.mean[None]

    for training in (True, False):
        spread = jax.shard_map(
            step, mesh=mesh, in_specs=(P("data"), P()), out_specs=P("data")
        )
        y, means = jax.jit(spread)(x, training)
        expected = [
            jn.batch_norm(shard, jn.init_stats(5), training=training)
            for shard in x[:, None]
        ]
        np.testing.assert_allclose(
            y, np.concatenate([e[0] for e in expected]), atol=1e-5
        )
        np.testing.assert_allclose(means, [e[1].mean for e in expected], rtol=1e-5)


def test_what_is_hidden_and_not_finite_gives_the_bias_on_every_device():
    """Devices measure from shifts of their own; pooled, none of them is the mean."""
    x = np.arange(16.0, dtype=np.float32)[:, None]
    x[3] = np.nan
    mask = np.arange(16)[:, None] != 3

    def step(x, mask):
        return jn.batch_norm(
            x,
            jn.init_stats(1),
            None,
            jnp.full(1, 5.0),
            training=True,
            weights=mask,
            axis_name="data",
        )[0]

    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    spread = jax.shard_map(step, mesh=mesh, in_specs=P("data"), out_specs=P("data"))
    np.testing.assert_allclose(jax.jit(spread)(x, mask)[3], 5, rtol=1e-6)


@pytest.mark.usefixtures("platform")
@pytest.mark.parametrize("activation", [None, "relu", "silu", "gelu"])
@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
def test_what_is_hidden_and_not_finite_spoils_no_gradient(training, activation):
    """Hidden in `x`, and in what is added: as if those rows were not there."""
    rng = np.random.default_rng(0)
    x, add = jnp.asarray(rng.normal(1, 2, (2, 40, 6)), jnp.float32)
    hidden = jnp.zeros((40, 1), bool).at[jnp.array([0, 17])].set(True)
    spoiled = [jnp.where(hidden, jnp.nan, v) for v in (x, add)]
    visible = [v[~hidden[:, 0]] for v in (x, add)]
    parameters = [jnp.asarray(v, jnp.float32) for v in rng.uniform(0.5, 2, (4, 6))]

    def loss(parameters, x, add, weights=None):
        scale, bias, mean, var = parameters
        stats = jn.NormStats(mean, var, jnp.ones(()))
        options = {"training": training, "activation": activation}
        y, new = jn.batch_norm(
            x, stats, scale, bias, weights=weights, add=add, **options
        )
        y = y if weights is None else jnp.where(weights, y, 0)
        return jnp.sum(y**3) + jnp.sum(new.mean * new.var)

    got = jax.grad(loss, (0, 1, 2))(parameters, *spoiled, ~hidden)
    expected = jax.grad(loss, (0, 1, 2))(parameters, *visible)
    chex.assert_trees_all_close(got[0], expected[0], rtol=1e-4, atol=1e-4)
    for g, e in zip(got[1:], expected[1:], strict=True):
        np.testing.assert_allclose(g[~hidden[:, 0]], e, rtol=1e-4, atol=1e-4)
        assert np.all(np.isfinite(g))


def test_evaluation_gives_the_bias_where_a_hidden_element_is_not_finite():
    x = jnp.array([[1.0], [jnp.nan], [3.0]])
    stats = jn.NormStats(jnp.ones(1), jnp.full(1, 4.0), jnp.ones(()))
    weights = jnp.array([[True], [False], [True]])
    y, _ = jn.batch_norm(
        x, stats, bias=jnp.full(1, 7.0), training=False, weights=weights, eps=1e-9
    )
    np.testing.assert_allclose(y[:, 0], [7, 7, 8], rtol=1e-6)
    y, _ = jn.batch_norm(x, stats, training=False)
    assert np.isnan(y[1, 0])  # nothing is hidden that no weight hides


@pytest.mark.parametrize("weight", [0, 0.0, np.zeros((), int), np.float32(0)])
def test_a_weight_of_any_kind_of_zero_can_grow(weight):
    x = jax.random.normal(jax.random.key(0), (3, 8, 6))
    stats = jn.NormStats(jnp.zeros(6), jnp.ones(6), weight)
    expected = jn.init_stats(6)
    for batch in x:
        _, stats = jn.batch_norm(batch, stats, training=True)
        _, expected = jn.batch_norm(batch, expected, training=True)
    chex.assert_trees_all_equal(stats, expected)
    assert not stats.weight.weak_type


def test_statistics_over_devices_alone():
    """One example a device, of features alone: no axis of the array is reduced."""
    x = jax.random.normal(jax.random.key(0), (8, 6))

    def norm(x):
        return jn.batch_norm(
            x, jn.init_stats(6), training=True, feature_axis=0, axis_name="data"
        )

    y, stats = jax.vmap(norm, axis_name="data")(x)
    expected, expected_stats = jn.batch_norm(x, jn.init_stats(6), training=True)
    np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(stats.var[3], expected_stats.var, rtol=1e-5)


def test_statistics_in_float64_keep_the_digits_of_float32_batches():
    """They were off by 2% of std while the batch's mean was rounded to float32."""
    rng = np.random.default_rng(0)
    with jax.enable_x64(True):
        stats, means = jn.init_stats(3, dtype=jnp.float64), []
        for _ in range(5):
            batch = rng.normal(1e6, 1.0, (4096, 3)).astype(np.float32)
            means.append(batch.astype(np.float64).mean(0))
            _, stats = jn.batch_norm(batch, stats, training=True, decay=None)
    np.testing.assert_allclose(stats.mean, np.mean(means, 0), rtol=0, atol=1e-6)
