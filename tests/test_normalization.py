"""Outputs and derivatives of every norm, against the textbook's formula."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxnorm as jn
from tests.cases import batch_norm, every_case, every_family, layer_norm
from tests.derivatives import check_grads, gradients, in_float64

pytestmark = pytest.mark.usefixtures("platform")


def output_and_gradients(f, cotangent):
    """Return the function that does both: the output is not that of `jax.vjp`."""
    pull = gradients(f, cotangent)
    return lambda *args: (f(*args), pull(*args))


@functools.cache  # for every way to sum
def plain_gradients(case, weighted):
    """Return the gradients of the textbook's formula in float64."""
    pull = gradients(lambda *args: case.plain(jnp, *args), case.cotangent())
    weights = case.weights() if weighted else None
    return in_float64(pull, *case.inputs(), weights)


def assert_rounding(got, expected, factor=8.0, name=""):
    """Compare in units of float32 rounding, relative to the largest value."""
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
        unit = np.finfo(np.float32).eps * max(np.max(np.abs(b)), 1e-2)
        np.testing.assert_allclose(a, b, 0, factor * unit, err_msg=name)


@every_case
@pytest.mark.parametrize("weighted", [False, True], ids=["plain", "weighted"])
def test_output_and_gradients(case, weighted):
    x, scale, bias = case.inputs()
    weights = case.weights() if weighted else None
    both = jax.jit(output_and_gradients(case, case.cotangent()))
    y, got = both(x, scale, bias, weights)
    assert y.dtype == x.dtype
    wide = [None if a is None else a.astype(np.float64) for a in (x, scale, bias)]
    assert_rounding(y, case.plain(np, *wide, weights))
    # Sums of up to 40 terms, and differences of them.
    assert_rounding(got, plain_gradients(case, weighted), factor=64)


@pytest.mark.parametrize("offset", [0.0, 1e2, 1e4, 1e6])
@pytest.mark.parametrize("size", [64, 4096])
def test_accuracy_of_the_output(size, offset):
    """The offset costs nothing: the shift and the remainder are kept apart."""
    x = np.random.default_rng(0).normal(offset, 1.0, (size, 3)).astype(np.float32)
    wide = x.astype(np.float64)
    expected = (wide - wide.mean(0)) / np.sqrt(wide.var(0) + 1e-5)
    np.testing.assert_allclose(jax.jit(batch_norm)(x, None, None), expected, atol=2e-6)
    rows = jax.jit(layer_norm)(x.T, None, None)
    np.testing.assert_allclose(rows, expected.T, atol=2e-6)


@every_family
def test_derivatives_to_second_order(case):
    """Against finite differences, forward and reverse, weights and eps included."""
    with jax.enable_x64(True):
        x, scale, bias = (jnp.asarray(v, jnp.float64) for v in case.inputs())
        x = x[:2]
        weights = jnp.asarray(case.weights()[:2] + 0.1, jnp.float64)

        def f(x, scale, bias, weights, eps):
            return case(x, scale, bias, weights, eps=eps)

        args = (x, scale, bias, weights, jnp.float64(0.1))
        check_grads(f, args, order=2, atol=2e-5, rtol=2e-5)


def transforms(f):
    def loss(x, scale, bias):
        return jnp.sum(jnp.sin(f(x, scale, bias)))

    def all_of_them(x, scale, bias, direction):
        gradient = jax.grad(loss)
        steps = jnp.stack([x, x + 1])
        along = jax.linearize(lambda x: f(x, scale, bias), x)[1]
        return {
            "jvp": jax.jvp(lambda x: f(x, scale, bias), (x,), (direction,)),
            "linearize": along(direction),
            "hessian": jax.hessian(lambda v: loss(v.reshape(x.shape), scale, bias))(
                x.ravel()
            ),
            "reverse over forward": jax.grad(
                lambda x: jax.jvp(gradient, (x, scale, bias), (direction, scale, bias))[
                    0
                ].sum()
            )(x),
            "vmap(grad)": jax.vmap(gradient, (0, None, None))(steps, scale, bias),
            "grad of scan": jax.grad(
                lambda x: jax.lax.scan(
                    lambda c, _: (f(c, scale, bias), None), x, length=3
                )[0].std()
            )(x),
            "remat": jax.grad(jax.checkpoint(loss), (0, 1, 2))(x, scale, bias),
            "grad(remat(scan))": jax.grad(
                lambda s: jax.lax.scan(
                    jax.checkpoint(lambda c, _: (f(c, s, bias), None)), x, length=2
                )[0].std()
            )(scale),
        }

    return all_of_them


@functools.cache  # for every way to sum
def plain_transforms(case):
    """Return those of the textbook's formula in float64."""
    plain = transforms(lambda *args: case.plain(jnp, *args))
    return in_float64(plain, *inputs_of_transforms(case))


def inputs_of_transforms(case):
    x, scale, bias = (v.astype(np.float32) for v in case.inputs())
    return x[:2], scale, bias, case.cotangent()[:2]


@every_family
def test_transformations_agree_with_plain_autodiff(case):
    got = jax.jit(transforms(case))(*inputs_of_transforms(case))
    for name, value in plain_transforms(case).items():
        # Second derivatives of float32 functions: a few hundred roundings.
        assert_rounding(got[name], value, factor=500, name=name)


@every_family
def test_padding_changes_nothing(case):
    """Statistics, outputs and gradients are those of the batch without the padding."""
    x, scale, bias = case.inputs()
    ct = case.cotangent()
    axis = 1 if case.name in ("instance", "group") else 0
    if case.name in ("layer-3d", "rms"):  # the reduced axis is that of the parameters
        axis, scale, bias = 2, scale * 0 + 1.5, bias * 0 + 0.5

    def padded(v, value, axis=axis):
        widths = [(0, 2 if i == axis % v.ndim else 0) for i in range(v.ndim)]
        return np.pad(v, widths, constant_values=value)

    parameters = [padded(v, v.ravel()[0], 0) if axis == 2 else v for v in (scale, bias)]
    mask = padded(np.ones_like(x, bool), False)
    keep = tuple(slice(0, n) for n in x.shape)
    both = jax.jit(output_and_gradients(case, padded(ct, 0)))
    expected = jax.jit(output_and_gradients(case, ct))(x, scale, bias)
    expected_y, (expected_dx, *expected_rest) = expected
    for garbage in (np.nan, np.inf, 1e20):
        name = f"{garbage=}"
        y, (dx, *rest) = both(padded(x, garbage), *parameters, mask)
        assert np.all(np.isfinite(y)) and np.all(np.isfinite(dx)), name
        assert_rounding(y[keep], expected_y, name=name)
        assert_rounding(dx[keep], expected_dx, factor=32, name=name)
        rest = [v[: e.shape[0]] for v, e in zip(rest, expected_rest, strict=True)]
        assert_rounding(rest, expected_rest, factor=32, name=name)


@every_family
def test_weights_count_relative_to_their_sum(case):
    """However small that is: all outputs and gradients are the same."""
    both = jax.jit(output_and_gradients(case, case.cotangent()))
    weights = case.weights()
    expected = both(*case.inputs(), weights)
    for factor in (1e-3, 1e3):
        assert_rounding(both(*case.inputs(), factor * weights), expected, factor=32)


@every_family
def test_an_empty_set_gives_zeros_and_zero_gradients(case):
    x, scale, bias = case.inputs()
    nothing = np.zeros(x.shape, np.float32)
    both = jax.jit(output_and_gradients(case, case.cotangent()))
    for value in (x, np.full_like(x, np.nan)):
        y, grads = both(value, scale, bias, nothing)
        chex.assert_trees_all_equal(y, jnp.zeros(x.shape))
        chex.assert_trees_all_equal(grads, jax.tree.map(jnp.zeros_like, grads))


def test_a_tiny_eps_has_finite_gradients():
    """The cube of 1 / sqrt(eps) is not finite, what it is multiplied by is 0."""
    dx = jax.grad(lambda x: jn.rms_norm(x, eps=1e-30).sum())(jnp.zeros((1, 4)))
    np.testing.assert_allclose(dx, 1e15, rtol=1e-6)


def test_a_constant_channel_keeps_its_digits():
    """pytorch#5410: scale * x + shift, reordered, gave 0.75 for 0.7776."""
    x = jnp.full((8, 2), 4321.7)
    stats = jn.NormStats(x[0], jnp.zeros(2), jnp.float32(1))
    bias = jnp.full(2, 0.7776)
    for training in (True, False):
        y, _ = jn.batch_norm(x, stats, None, bias, training=training)
        np.testing.assert_allclose(y, 0.7776, rtol=1e-6)


def test_conditional_scale_and_bias():
    """One scale an example, given with the rank of x."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(3, 4, 4, 2)).astype(np.float32)
    scale = rng.normal(size=(3, 1, 1, 2)).astype(np.float32)
    np.testing.assert_allclose(
        batch_norm(x, scale, scale),
        batch_norm(x, None, None) * scale + scale,
        atol=1e-6,
    )
    with jax.enable_x64(True):
        check_grads(
            jax.jit(lambda x, scale: batch_norm(x, scale, scale)),
            (jnp.asarray(x[:, 0], jnp.float64), jnp.asarray(scale[:, 0], jnp.float64)),
            order=2,
            rtol=1e-4,
        )


def test_normalize_by_given_statistics():
    rng = np.random.default_rng(0)
    x = rng.normal(3, 2, (4, 5, 6)).astype(np.float32)
    mean, var, scale, bias = rng.uniform(0.5, 2, (4, 5)).astype(np.float32)
    y = jn.normalize(x, mean, var, scale, bias, eps=1e-3, feature_axis=1)
    wide = (x - mean[:, None]) / np.sqrt(var[:, None] + 1e-3) * scale[:, None]
    np.testing.assert_allclose(y, wide + bias[:, None], atol=1e-5)
    with jax.enable_x64(True):
        args = [jnp.asarray(v, jnp.float64) for v in (x[0], mean, var, scale, bias)]
        check_grads(
            lambda *args: jn.normalize(*args, feature_axis=0), args, order=2, rtol=1e-4
        )


@pytest.mark.parametrize("shape", [(5, 1), (4, 5, 6)], ids=["folded", "apart"])
def test_tangents_of_every_argument_of_normalize_alone(shape):
    rng = np.random.default_rng(0)
    shapes = ((4, 5, 6), (5,), (5,), shape, shape)
    arrays = [rng.uniform(0.5, 2, each) for each in shapes]

    def plain(x, mean, var, scale, bias, eps):
        scale, bias = (v if v.ndim == 3 else v[None] for v in (scale, bias))
        mean, var = mean[:, None], var[:, None]
        return (x - mean) / jnp.sqrt(var + eps) * scale + bias

    def own(x, mean, var, scale, bias, eps):
        scale, bias = (v if v.ndim == 3 else v[None] for v in (scale, bias))
        return jn.normalize(x, mean, var, scale, bias, eps=eps, feature_axis=1)

    with jax.enable_x64(True):
        args = [jnp.asarray(v) for v in (*arrays, 1e-3)]
        for i, arg in enumerate(args):
            tangent = jnp.asarray(rng.normal(size=arg.shape))

            def along(f, i=i, arg=arg, tangent=tangent):
                return jax.jvp(
                    lambda v: f(*args[:i], v, *args[i + 1 :]), (arg,), (tangent,)
                )

            chex.assert_trees_all_close(along(own), along(plain), rtol=1e-12)


def test_an_element_that_is_hidden_and_not_finite_is_a_constant():
    """Its output is the bias whatever it holds, so it has no gradient."""
    x = np.array([[1.0], [3.0], [np.nan], [np.inf]], np.float32)
    mask = np.array([[True], [True], [False], [False]])
    y, vjp = jax.vjp(lambda x: batch_norm(x, None, jnp.full(1, 0.5), mask), x)
    np.testing.assert_array_equal(y[2:], 0.5)
    np.testing.assert_array_equal(vjp(jnp.ones_like(y))[0][2:], 0)


@pytest.mark.parametrize("masked", [0, 3], ids=["first", "later"])
def test_what_is_hidden_and_not_finite_follows_the_mean(masked):
    """Whatever the others hold, its output stays the bias: it has no derivative."""
    x = np.random.default_rng(0).normal(5, 2, (200, 2)).astype(np.float32)
    x[masked] = np.nan
    mask = np.arange(200)[:, None] != masked
    bias = np.float32([0.5, -2])

    def hidden(x, scale):
        return batch_norm(x, scale, bias, mask)[masked]

    scale = np.float32([3, 0.1])
    np.testing.assert_allclose(jax.jit(hidden)(x, scale), bias, rtol=1e-6)
    for derivative in (jax.jacrev, jax.jacfwd):
        for value in jax.jit(derivative(hidden, (0, 1)))(x, scale):
            np.testing.assert_allclose(value, 0, atol=1e-6)
    # The derivative with respect to its weight: it lies at the mean.
    weights = mask.astype(np.float32)
    pull = jax.grad(lambda w: jnp.sum(batch_norm(x, scale, bias, w)[5] ** 2))
    there = x.copy()
    there[masked] = x[mask[:, 0]].mean(0)
    gradient = jax.grad(lambda w: jnp.sum(batch_norm(there, scale, bias, w)[5] ** 2))
    np.testing.assert_allclose(pull(weights), gradient(weights), rtol=1e-3, atol=1e-4)


def test_nothing_to_normalize_is_no_error():
    assert jn.layer_norm(jnp.zeros((0, 8))).shape == (0, 8)
    assert jn.group_norm(jnp.zeros((0, 4, 8)), num_groups=2).shape == (0, 4, 8)
    assert jn.instance_norm(jnp.zeros((0, 4, 8))).shape == (0, 4, 8)
    y, stats = jn.batch_norm(jnp.zeros((4, 0)), jn.init_stats(0), training=True)
    assert y.shape == (4, 0) and stats.mean.shape == (0,)
    assert jn.compute_moments(jnp.zeros((4, 0)), 0).var.shape == (0,)
    pull = jax.grad(lambda x: jnp.sum(jn.layer_norm(x)))
    assert pull(jnp.zeros((0, 8))).shape == (0, 8)


def test_arrays_of_rank_0():
    def f(x):
        return jn.normalize(x, 1.0, 4.0, 3.0, feature_axis=())

    np.testing.assert_allclose(f(jnp.float32(5)), 6, rtol=1e-5)
    np.testing.assert_allclose(jax.grad(f)(jnp.float32(5)), 1.5, rtol=1e-5)

    def pooled(x):
        moments = jn.compute_moments(x, (), axis_name="i")
        y, _ = jn.batch_norm(
            x, jn.init_stats(()), training=True, feature_axis=(), axis_name="i"
        )
        return moments.var, y

    var, y = jax.vmap(pooled, axis_name="i")(jnp.arange(4.0))
    np.testing.assert_allclose(var, 1.25)
    np.testing.assert_allclose(y, (np.arange(4) - 1.5) / np.sqrt(1.25), rtol=1e-5)


OVERFLOWING = {
    "layer": lambda x: jn.layer_norm(x.T).T,
    "rms": lambda x: jn.rms_norm(x.T).T,
    "group": lambda x: jn.group_norm(x.T, num_groups=1).T,
    "instance": lambda x: jn.instance_norm(x[None])[0],
    "batch, half precision": lambda x: batch_norm(x.astype("bfloat16"), None, None),
}


@pytest.mark.parametrize("name", OVERFLOWING)
def test_an_overflow_is_shown(name):
    """The input is finite, but its squares are not; an inverse root of 0 hides that."""
    huge = jnp.array([[1e20, 1], [-1e20, 3]])
    y = OVERFLOWING[name](huge).astype(jnp.float32)
    np.testing.assert_array_equal(np.isfinite(y), [[False, True]] * 2)


def test_an_infinite_bias_is_an_infinite_output():
    y = batch_norm(np.float32([[1, 1], [2, 2]]), None, jnp.array([jnp.inf, 0]))
    np.testing.assert_array_equal(y[:, 0], np.inf)
    assert np.all(np.isfinite(y[:, 1]))
