"""Dtypes of inputs, parameters, statistics and outputs of every norm."""

import re
from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxnorm as jn
from tests.cases import CASES, FAMILIES, batch_norm, every_family, layer_norm
from tests.compiling import quick_jit
from tests.derivatives import check_grads, gradients, in_float64

pytestmark = pytest.mark.usefixtures("platform")


def test_bfloat16_gradients_are_rounded_once():
    case = FAMILIES[0]
    x, scale, bias = case.inputs(jnp.bfloat16)
    got = gradients(case, case.cotangent())(x, scale, bias)[0]
    assert got.dtype == jnp.bfloat16
    ct = np.asarray(jnp.asarray(case.cotangent(), jnp.bfloat16), np.float64)
    plain = gradients(lambda *args: case.plain(jnp, *args), ct)
    expected = in_float64(plain, np.asarray(x, np.float64), scale, bias)[0]
    # Half a unit in the last place of bfloat16, and float32 noise.
    np.testing.assert_allclose(
        np.asarray(got, np.float64), expected, rtol=2.0**-8, atol=1e-5
    )


def test_the_output_may_have_another_dtype():
    x, scale, bias = CASES[0].inputs(jnp.bfloat16)
    wide = batch_norm(x, scale, bias, dtype=jnp.float32)
    assert wide.dtype == jnp.float32
    exact = batch_norm(jnp.asarray(x, jnp.float32), scale, bias)
    np.testing.assert_allclose(wide, exact, atol=1e-6)
    assert not np.allclose(batch_norm(x, scale, bias), exact, atol=1e-6)


def test_complex_input():
    rng = np.random.default_rng(0)
    x = (rng.normal(1, 1, (50, 2)) + 1j * rng.normal(2, 3, (50, 2))).astype("c8")
    expected = (x - x.mean(0)) / np.sqrt(x.var(0) + 1e-5)
    y = jn.layer_norm(x.T)
    np.testing.assert_allclose(y, expected.T, atol=1e-5)
    with jax.enable_x64(True):
        check_grads(
            lambda x: jn.layer_norm(x[0] + 1j * x[1]).real,
            (jnp.asarray(rng.normal(size=(2, 3, 4))),),
            order=1,
            rtol=1e-4,
        )


def test_complex_parameters_and_branch():
    """The formula is that of real input; gradients are those of both parts."""
    rng = np.random.default_rng(0)

    def draw(*shape):
        return (rng.normal(1, 1, shape) + 1j * rng.normal(2, 3, shape)).astype("c8")

    x, scale, bias, add = draw(50, 6), draw(6), draw(6), draw(50, 6)

    def norm(name, x, scale, bias, add):
        if name == "group":
            return jn.group_norm(x, scale, bias, num_groups=1, add=add)
        stats = jn.init_stats(6, dtype=x.dtype)
        return jn.batch_norm(x, stats, scale, bias, training=True, add=add)[0]

    for name, axis in (("batch", 0), ("group", 1)):
        centered = x - x.mean(axis, keepdims=True)
        var = np.mean(np.abs(centered) ** 2, axis, keepdims=True)
        expected = centered / np.sqrt(var + 1e-5) * scale + bias + add
        y = jax.jit(partial(norm, name))(x, scale, bias, add)
        np.testing.assert_allclose(y, expected, atol=2e-5)
        with jax.enable_x64(True):
            parts = [
                jnp.asarray([v.real, v.imag], jnp.float64)
                for v in (x[:4], scale, bias, add[:4])
            ]

            def f(*parts, name=name):
                y = norm(name, *(v[0] + 1j * v[1] for v in parts))
                return y.real, y.imag

            check_grads(f, parts, order=1, rtol=1e-4)


NORMS_WITH_PARAMETERS = {
    "batch": batch_norm,
    "batch, a scale an example": lambda x, scale, bias: batch_norm(
        x, jnp.broadcast_to(scale[:1], (len(x), 1)), bias
    ),
    "layer": layer_norm,
    "rms": lambda x, scale, bias: jn.rms_norm(x, scale) + 0 * bias.sum(),
    "evaluation": lambda x, scale, bias: jn.normalize(x, bias, scale, scale, bias),
}


@pytest.mark.parametrize("name", NORMS_WITH_PARAMETERS)
@pytest.mark.parametrize("dtypes", ["bbb", "fbb", "bfb", "ffb", "hhh", "fdf", "ffd"])
def test_parameters_may_have_another_dtype_than_the_input(name, dtypes):
    """Half precision, double precision, and one of each; outputs and gradients."""
    kinds = {"f": "float32", "b": "bfloat16", "h": "float16", "d": "float64"}
    rng = np.random.default_rng(0)
    values = rng.normal(1, 2, (256, 8)), *rng.uniform(0.5, 2, (2, 8))
    norm = NORMS_WITH_PARAMETERS[name]

    def loss(x, scale, bias):
        return jnp.sum(jnp.sin(norm(x, scale, bias).astype(jnp.float32)))

    with jax.enable_x64("d" in dtypes):
        args = [
            jnp.asarray(value, kinds[kind])
            for value, kind in zip(values, dtypes, strict=True)
        ]
        got = quick_jit(jax.grad(loss, (0, 1, 2)))(*args)
        chex.assert_trees_all_equal_shapes_and_dtypes(got, tuple(args))
    wide = [np.asarray(arg, np.float64) for arg in args]
    with jax.enable_x64(True):
        expected = quick_jit(jax.grad(loss, (0, 1, 2)))(*wide)
    for value, exact in zip(got, expected, strict=True):
        unit = float(jnp.finfo(value.dtype).eps) + 1e-5
        # The output of a half-precision input is rounded before its sine is taken.
        unit = max(unit, float(jnp.finfo(args[0].dtype).eps))
        np.testing.assert_allclose(
            np.asarray(value, np.float64), exact, atol=4 * unit * np.abs(exact).max()
        )


def test_statistics_of_half_precision_are_widened_first():
    x, mean, var = jnp.float32([[1.0]]), jnp.zeros(1, jnp.float16), jnp.bfloat16([3.0])
    y = jn.normalize(x, mean, var)
    np.testing.assert_allclose(y, 1 / np.sqrt(3 + 1e-5), rtol=1e-6)
    assert np.all(np.isfinite(jn.normalize(x, mean, mean, eps=1e-9)))


@every_family
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_no_dtype_of_real_input_is_promoted_implicitly(case, dtype):
    x, scale, bias = (jnp.asarray(v, dtype) for v in case.inputs())
    mask = jnp.asarray(case.weights() > 0)

    def backward(weights, *args):
        y, vjp = jax.vjp(lambda *args: case(*args, weights), *args)
        return vjp(y)

    with jax.numpy_dtype_promotion("strict"):
        for weights in (None, mask):
            jax.jit(backward).lower(weights, x, scale, bias)


def test_integer_parameters_are_those_of_float32():
    x, scale, bias = (v.astype(np.float32) for v in CASES[0].inputs())
    scale, bias = np.round(10 * scale), np.round(10 * bias)
    whole = scale.astype(int), bias.astype(int)
    for norm in (batch_norm, layer_norm):
        args = (x, scale, bias) if norm is batch_norm else (x.T[:5, :5], scale, bias)
        expected = norm(*args)
        with jax.enable_x64(True):
            got = jax.jit(norm)(args[0], *whole)
            text = str(jax.make_jaxpr(norm)(args[0], *whole))
        assert not re.search(r"f64\[\d", text)
        np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("eps", [np.float64(1e-5), np.array(1e-5)])
def test_an_eps_of_numpy_widens_nothing(eps):
    """Under x64 its dtype is float64, which would be that of all it is added to."""
    with jax.enable_x64(True):
        x, stats = jnp.ones((4, 3), jnp.float32), jn.init_stats(3)
        for f in (
            lambda x: jn.layer_norm(x, eps=eps),
            lambda x: jn.batch_norm(x, stats, training=True, eps=eps)[0],
            lambda x: jn.normalize(x, stats.mean, stats.var, feature_axis=-1, eps=eps),
        ):
            gradient = jax.make_jaxpr(jax.grad(lambda x, f=f: f(x).sum()))(x)
            assert not re.search(r"f64\[\d", str(gradient))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("shape", [(49, 3, 1), (49, 3), (49, 1)])
def test_constants_of_some_weight_become_zero(dtype, shape):
    """The shift is one number to all that use it, wherever it is a product."""
    x = np.random.default_rng(0).normal(0, 1e4, (1, *shape[1:]))
    x = jnp.broadcast_to(jnp.asarray(x, dtype), shape)
    weights = jnp.arange(49).reshape(49, *(1,) * (len(shape) - 1)) % 5 < 3
    stats = jn.init_stats(shape[1:])

    @jax.jit
    def f(x):
        features = tuple(range(1, len(shape)))
        return jn.batch_norm(
            x,
            stats,
            training=True,
            weights=weights,
            feature_axis=features,
            dtype=jnp.float32,
        )[0]

    np.testing.assert_allclose(f(x), 0, atol=1e-4)


def test_a_constant_row_of_bfloat16_is_the_rounding_of_its_mean():
    """As its docstring says: its rest is looked at only where it is differentiated."""
    x = jnp.full((1, 7), 30_000, jnp.bfloat16)
    y, _ = jax.vjp(jn.layer_norm, x)
    np.testing.assert_array_equal(y, 0)
    np.testing.assert_allclose(jn.layer_norm(x), -0.5, atol=0.1)
