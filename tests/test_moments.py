"""Moments: the algebra, weights, derivatives. (test_accuracy.py has the digits.)"""

from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import jaxnorm as jn
from tests.compiling import quick_jit
from tests.conftest import every_platform
from tests.derivatives import check_grads
from tests.reference import moments64

pytestmark = [pytest.mark.usefixtures("platform"), every_platform]

RNG = np.random.default_rng(0)


def test_complex_input_has_real_variance():
    x = (RNG.normal(2, 1, (100, 3)) + 1j * RNG.normal(1, 2, (100, 3))).astype(
        np.complex64
    )
    got = jn.compute_moments(x, 0)
    assert got.var.dtype == jnp.float32
    np.testing.assert_allclose(got.mean, x.mean(0), rtol=1e-5)
    np.testing.assert_allclose(got.var, x.var(0), rtol=1e-5)


@pytest.mark.parametrize("axis", [0, (0, 2), (0, 1, 2), -1])
@pytest.mark.parametrize(
    "shape", [(4, 5, 6), (4, 1, 1), (1, 5, 1), (5, 1), (6,), ()], ids=str
)
def test_weights_broadcast_over_any_axes(axis, shape):
    x = RNG.normal(5, 2, (4, 5, 6)).astype(np.float32)
    weights = RNG.uniform(0.1, 2, shape).astype(np.float32)
    got = jn.compute_moments(x, axis, weights=weights)
    axes = tuple(a % 3 for a in np.atleast_1d(axis))
    count, mean, var = moments64(x, axes, weights)
    np.testing.assert_allclose(
        np.broadcast_to(got.count, count.shape), count, rtol=1e-6
    )
    np.testing.assert_allclose(got.mean, mean, rtol=1e-6)
    np.testing.assert_allclose(got.var, var, rtol=2e-6)


def test_weight_0_hides_whatever_it_covers():
    x = RNG.normal(1e4, 1, (8, 3)).astype(np.float32)
    padded = np.concatenate([x, [[np.nan] * 3, [np.inf] * 3, [3e38] * 3]]).astype("f4")
    mask = np.arange(11)[:, None] < 8
    for weights in (mask, mask.astype(np.float32)):
        got = jn.compute_moments(padded, 0, weights=weights)
        chex.assert_trees_all_close(got, jn.compute_moments(x, 0), rtol=1e-6)


def test_weight_2_is_the_row_given_twice():
    x = RNG.normal(3, 1, (6, 2)).astype(np.float32)
    weights = np.array([1, 2, 1, 2, 1, 1], np.float32)[:, None]
    twice = np.repeat(x, [1, 2, 1, 2, 1, 1], axis=0)
    chex.assert_trees_all_close(
        jn.compute_moments(x, 0, weights=weights),
        jn.compute_moments(twice, 0),
        rtol=1e-6,
    )


def test_the_empty_set_has_zero_moments():
    got = jn.compute_moments(jnp.full((4, 3), jnp.nan), 0, weights=jnp.zeros((4, 1)))
    chex.assert_trees_all_equal(
        (got, got.var),
        (jn.Moments(jnp.float32(0), jnp.zeros(3), jnp.zeros(3)), jnp.zeros(3)),
    )


floats = st.floats(-1e4, 1e4, width=32)
sets = st.lists(floats, max_size=6)
merge = jax.jit(jn.merge_moments)
masked_moments = jax.jit(lambda x, mask: jn.compute_moments(x, 0, weights=mask))


def moments_of(values):
    padded = np.array(list(values) + [0.0] * (6 - len(values)), np.float32)
    return masked_moments(padded, np.arange(6) < len(values))


@settings(max_examples=60, deadline=None)
@given(sets, sets, sets)
def test_merging_is_an_algebra(a, b, c):
    """Commutative, associative, with the empty set as identity; and it is right."""
    A, B, C = moments_of(a), moments_of(b), moments_of(c)
    everything = np.array([*a, *b, *c], np.float64)
    largest = np.max(np.abs(everything), initial=1.0)

    def assert_close(got, expected):
        # A few roundings of the largest value, and of its square times the count.
        atol = 8 * np.finfo(np.float32).eps * largest * np.array([1, 1, 18 * largest])
        for v, w, tolerance in zip(got, expected, atol, strict=True):
            np.testing.assert_allclose(v, w, rtol=0, atol=tolerance)

    assert_close(merge(A, B), merge(B, A))
    left = merge(merge(A, B), C)
    assert_close(left, merge(A, merge(B, C)))
    chex.assert_trees_all_equal(merge(A, moments_of([])), A)
    if everything.size:
        spread = everything.var() * everything.size
        assert_close(left, (everything.size, everything.mean(), spread))


def test_merging_keeps_large_offsets():
    x = RNG.normal(1e4, 1, (4096, 4)).astype(np.float32)
    merged = jn.merge_moments(
        jn.compute_moments(x[:1000], 0), jn.compute_moments(x[1000:], 0)
    )
    _, mean, var = moments64(x, (0,))
    np.testing.assert_allclose(merged.mean, mean, rtol=1e-7)
    # Each float32 mean is rounded by up to 5e-4, and the means lie about 0.06 apart:
    # 2 * 0.06 * 5e-4 * (share of one) * (share of the other).
    np.testing.assert_allclose(merged.var, var, rtol=2e-5)


@pytest.mark.parametrize("offset", [1e2, 1e4, 1e6])
def test_merging_rounds_the_variance_by_eps_times_mean_over_std(offset):
    """At worst where two standard deviations lie between the means. Of 20000 pairs."""
    a, b = (
        RNG.normal(offset + apart, 1, (2, 20_000)).astype(np.float32)
        for apart in (0, 4)
    )
    merged = jn.merge_moments(jn.compute_moments(a, 0), jn.compute_moments(b, 0))
    _, mean, var = moments64(np.concatenate([a, b]), (0,))
    error = np.abs(merged.var / var - 1)
    assert np.all(error <= np.finfo(np.float32).eps * (1 + mean / np.sqrt(var)))


def test_the_empty_set_may_hold_anything():
    empty = jn.Moments(jnp.float32(0), jnp.full(3, jnp.nan), jnp.full(3, jnp.nan))
    full = jn.compute_moments(RNG.normal(size=(10, 3)).astype(np.float32), 0)
    chex.assert_trees_all_equal(jn.merge_moments(empty, full), full)
    np.testing.assert_array_equal(empty.var, np.zeros(3))
    part = jn.compute_moments(jnp.array([1.0, 3.0]), 0, weights=jnp.full(2, 0.25))
    assert (part.count, part.var) == (0.5, 1)


@pytest.mark.parametrize("features", [1, 2])
@pytest.mark.parametrize("counts", ["one", "each"])
def test_a_merged_count_has_the_shape_of_those_given(features, counts):
    """So that it is the carry of a scan; also where there is one feature."""
    shape = () if counts == "one" else (features,)
    empty = jn.Moments(jnp.zeros(shape), jnp.zeros(features), jnp.zeros(features))
    x = RNG.normal(1e2, 1, (5, 4, features)).astype(np.float32)

    def step(moments, batch):
        weights = jnp.ones((4, 1), bool)
        new = jn.compute_moments(batch, 0, weights=weights)
        return jn.merge_moments(moments, new), jn.merge_moments(new, moments)

    merged, turned = jax.lax.scan(step, empty, x)
    assert merged.count.shape == shape and turned.count.shape == (5, *shape)
    np.testing.assert_allclose(merged.mean, x.mean((0, 1), np.float64), rtol=1e-6)
    pooled = jax.vmap(lambda m: jn.pool_moments(m, "i"), axis_name="i")(turned)
    assert pooled.count.shape == turned.count.shape


def test_sets_that_are_stacked_merge_in_any_order():
    """As `lax.associative_scan` does, down to a single set."""
    x = RNG.normal(3, 2, (4, 5, 3)).astype(np.float32)
    sets = jax.vmap(lambda x: jn.compute_moments(x, 0))(x)
    merged = jax.lax.associative_scan(jn.merge_moments, sets)
    assert merged.count.shape == (4,)
    for i, got in enumerate(zip(*merged, merged.var, strict=True), start=1):
        count, mean, var = moments64(x[:i], (0, 1))
        expected = count, mean, var * count, var
        for value, wanted in zip(got, expected, strict=True):
            np.testing.assert_allclose(value, wanted, rtol=1e-5)


@pytest.mark.parametrize(
    ("a", "b", "merged"),
    [((1,), (2,), (2,)), ((1,), (3,), (3,)), ((), (2,), (2,)), ((2,), (3,), (2, 3))],
)
def test_counts_of_other_shapes_merge_alike_in_both_orders(a, b, merged):
    sets = [
        jn.Moments(jnp.ones(c), jnp.zeros((2, 3)), jnp.ones((2, 3))) for c in (a, b)
    ]
    assert jn.merge_moments(*sets).count.shape == merged
    assert jn.merge_moments(*sets[::-1]).count.shape == merged


def test_moments_of_lists_have_a_variance():
    np.testing.assert_array_equal(jn.Moments(2, [1, 2], [2.0, 4.0]).var, [1, 2])


def test_scan_merges_a_data_set():
    x = RNG.normal(1e2, 1, (64, 4)).astype(np.float32)
    first = jn.Moments(jnp.float32(0), jnp.zeros(4), jnp.zeros(4))

    def step(total, batch):
        return jn.merge_moments(total, jn.compute_moments(batch, 0)), None

    total, _ = jax.lax.scan(step, first, x.reshape(8, 8, 4))
    _, mean, var = moments64(x, (0,))
    np.testing.assert_allclose(total.mean, mean, rtol=1e-6)
    np.testing.assert_allclose(total.var, var, rtol=1e-5)
    assert total.count == 64


def test_derivatives_to_second_order():
    """Also for the weights: a learned weighting is not silently constant."""
    with jax.enable_x64(True):
        x = jnp.asarray(RNG.normal(2, 1, (5, 3)))
        weights = jnp.asarray(RNG.uniform(0.5, 2, (5, 1)))

        def f(x, weights):
            return jn.compute_moments(x, 0, weights=weights)

        check_grads(f, (x, weights), order=2, atol=1e-5, rtol=1e-5)
        check_grads(lambda x: jn.compute_moments(x, 0), (x,), order=2, rtol=1e-5)


def test_mixed_derivatives_at_a_weight_of_zero():
    """What a row would do if it counted: weights are learned from there."""
    x = jnp.asarray(RNG.normal(2, 1, (12, 3)), jnp.float32)
    weights = jnp.asarray([1, 0, 2, 0.5] * 3, jnp.float32)

    def ours(x, w):
        return jnp.sum(jn.layer_norm(x, axis=0, weights=w[:, None]) ** 3)

    def plain(x, w):
        w = w[:, None]
        mean = jnp.sum(w * x, 0) / jnp.sum(w)
        var = jnp.sum(w * (x - mean) ** 2, 0) / jnp.sum(w)
        return jnp.sum(((x - mean) * jax.lax.rsqrt(var + 1e-5)) ** 3)

    def derivatives(f):
        by_x, by_w = jax.grad(f, 0), jax.grad(f, 1)
        mixed = jax.jacfwd(by_x, 1)(x, weights), jax.jacrev(by_x, 1)(x, weights)
        turned = jax.jacfwd(by_w, 0)(x, weights), jax.jacrev(by_w, 0)(x, weights)
        return [*mixed, *(jnp.moveaxis(v, 0, -1) for v in turned)]

    got, expected = (quick_jit(derivatives, static_argnums=0)(f) for f in (ours, plain))
    chex.assert_trees_all_close(got, expected, rtol=1e-3, atol=1e-3)


def test_an_empty_set_has_no_squares_to_gain():
    """It has no mean either, and zero is nothing to measure deviations from."""
    x = jnp.asarray([[3.0, 5.0], [1.0, 2.0]])

    def squares(weights):
        return jnp.sum(jn.compute_moments(x, 1, weights=weights).m2)

    gradient = jax.grad(squares)(jnp.asarray([[0.0], [1.0]]))
    np.testing.assert_allclose(gradient, [[0], [0.5]])

    def squares_of(x, weights):
        return jnp.sum(jn.compute_moments(x, 1, weights=weights).m2)

    weights = jnp.asarray([[0.0, 0.0], [1.0, 1.0]])
    mixed = jax.jacfwd(jax.grad(squares_of, 0), 1)(x, weights)
    turned = jax.jacrev(jax.grad(squares_of, 1), 0)(x, weights)
    np.testing.assert_allclose(mixed, np.moveaxis(turned, (0, 1), (2, 3)), atol=1e-6)
    np.testing.assert_array_equal(mixed[0], 0)
    assert np.any(mixed[1])


def test_moments_of_few_digits_are_widened():
    """A mean that is an integer would be cut off, and a count in bfloat16 stay."""
    merged = jn.merge_moments(jn.Moments(1, 2, 0), jn.Moments(1, 5, 0))
    assert merged == (2.0, 3.5, 4.5)
    half = jn.Moments(*(jnp.asarray(v, jnp.bfloat16) for v in (300, 1, 0)))
    one = jn.Moments(*(jnp.asarray(v, jnp.bfloat16) for v in (1, 1, 0)))
    assert jn.merge_moments(half, one).count == 301
    pooled = jax.vmap(
        lambda mean: jn.pool_moments(jn.Moments(1, mean, 0), "i"), axis_name="i"
    )(jnp.array([2, 5]))
    np.testing.assert_array_equal(pooled.mean, [3.5, 3.5])


def test_the_variance_of_moments_that_are_stacked():
    x = RNG.normal(size=(3, 5, 3)).astype(np.float32) * np.array([[[1]], [[2]], [[3]]])
    weights = np.arange(3 * 5).reshape(3, 5, 1) % 4
    stacked = jax.vmap(lambda x, w: jn.compute_moments(x, 0, weights=w))(x, weights)
    assert stacked.count.shape == (3,)
    each = [jn.compute_moments(x[i], 0, weights=weights[i]).var for i in range(3)]
    np.testing.assert_allclose(stacked.var, np.stack(each), rtol=1e-6)


@pytest.mark.parametrize("sets", [3, 4])
def test_merging_moments_that_are_stacked(sets):
    """One count a set, also where there are as many sets as features."""
    x = RNG.normal(size=(2, sets, 5, 3)).astype(np.float32)
    weights = (np.arange(2 * sets * 5).reshape(2, sets, 5, 1) % 7).astype(np.float32)

    def moments(x, w):
        return jn.compute_moments(x, 0, weights=w)

    a, b = map(jax.vmap(moments), x, weights)
    assert a.count.shape == (sets,)
    merged, expected = jn.merge_moments(a, b), jax.vmap(jn.merge_moments)(a, b)
    chex.assert_trees_all_close(merged, expected, rtol=1e-6)
    chex.assert_trees_all_close(merged.var, expected.var, rtol=1e-6)
    again = jn.merge_moments(merged, a)
    assert again.count.shape == (sets,)


@pytest.mark.usefixtures("number_of_devices")
def test_gradients_of_pooled_moments():
    """Of constants too, where m2 is 0; an empty set has no part in any."""
    count = jnp.array([2.0, 2.0, 0.0])

    def pooled(count, mean, m2):
        pool = partial(jn.pool_moments, axis_name="i")
        moments = jax.vmap(pool, axis_name="i")(jn.Moments(count, mean, m2))
        return jax.tree.map(lambda leaf: leaf[0], moments)

    def gradients(of, mean):
        take = jax.grad(lambda *args: getattr(pooled(*args), of), (0, 1, 2))
        return take(count, jnp.array(mean), jnp.zeros(3))

    by_count, by_mean, by_m2 = gradients("m2", [1.0, 1.0, 4.0])
    np.testing.assert_allclose(by_m2, [1, 1, 0])
    np.testing.assert_allclose(by_mean, 0, atol=1e-6)
    np.testing.assert_allclose(by_count, 0, atol=1e-6)
    by_count, by_mean, _ = gradients("mean", [1.0, 3.0, 7.0])
    np.testing.assert_allclose(by_mean, [0.5, 0.5, 0], rtol=1e-6)
    np.testing.assert_allclose(by_count, [-0.25, 0.25, 0], atol=1e-6)
