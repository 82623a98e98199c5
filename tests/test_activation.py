"""A fused activation and residual branch do what the separate ones do."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxnorm as jn
from tests.compiling import quick_jit
from tests.derivatives import check_grads

RNG = np.random.default_rng(0)
SHAPE = (3, 4, 2, 8)
ACTIVATIONS = {"relu": jax.nn.relu, "silu": jax.nn.silu, "gelu": jax.nn.gelu}

pytestmark = pytest.mark.usefixtures("platform")


def batch(x, scale, bias, **options):
    return jn.batch_norm(
        x, jn.init_stats(SHAPE[-1]), scale, bias, training=True, **options
    )[0]


def evaluated(x, scale, bias, **options):
    stats = jn.NormStats(
        jnp.full(SHAPE[-1], 0.3), jnp.full(SHAPE[-1], 2.0), jnp.ones(())
    )
    return jn.batch_norm(x, stats, scale, bias, training=False, **options)[0]


def group(x, scale, bias, **options):
    return jn.group_norm(x, scale, bias, num_groups=4, **options)


def first(x, scale, bias, **options):
    """Channels first, and a scale that varies over space."""
    scale = jnp.broadcast_to(scale[:, None, None], (1, SHAPE[-1], *SHAPE[1:3]))
    return jn.batch_norm(
        jnp.moveaxis(x, -1, 1),
        jn.init_stats(SHAPE[-1]),
        scale,
        bias,
        training=True,
        feature_axis=1,
        **{
            k: v if v is None or k == "activation" else jnp.moveaxis(v, -1, 1)
            for k, v in options.items()
        },
    )[0]


NORMS = [batch, evaluated, group, first]


def draw(dtype=jnp.float32):
    x, add, ct = (jnp.asarray(RNG.normal(1, 2, SHAPE), dtype) for _ in range(3))
    scale, bias = jnp.asarray(RNG.uniform(0.5, 1.5, (2, SHAPE[-1])), jnp.float32)
    return x, add, scale, bias, ct


def fused(norm, name, weights=None):
    def f(x, add, scale, bias):
        options = {} if weights is None else {"weights": weights}
        return norm(x, scale, bias, activation=name, add=add, **options)

    return f


def separate(norm, name, weights=None):
    def f(x, add, scale, bias):
        options = {} if weights is None else {"weights": weights}
        y = norm(x, scale, bias, **options)
        y = (
            y
            if add is None
            else y + (jnp.moveaxis(add, -1, 1) if norm is first else add)
        )
        return ACTIVATIONS[name](y) if name else y

    return f


def derivatives(f, x, add, scale, bias, ct):
    ct = jnp.moveaxis(ct, -1, 1) if f(x, add, scale, bias).shape != ct.shape else ct
    y, pull_back = jax.vjp(f, x, add, scale, bias)
    tangents = (ct_of(x), ct_of(add), 0.5 * scale, 0.25 * bias)
    return y, pull_back(ct), jax.jvp(f, (x, add, scale, bias), tangents)[1]


compiled_derivatives = quick_jit(derivatives, static_argnums=0)


def ct_of(x):
    return jnp.cos(x)


@pytest.mark.parametrize("name", [None, "relu", "silu", "gelu"])
@pytest.mark.parametrize("norm", NORMS, ids=lambda norm: norm.__name__)
def test_as_if_applied_to_the_output(norm, name):
    x, add, scale, bias, ct = draw()
    got, expected = (
        compiled_derivatives(f, x, add, scale, bias, ct)
        for f in (fused(norm, name), separate(norm, name))
    )
    chex.assert_trees_all_close(got, expected, rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("norm", [batch, group], ids=["batch", "group"])
def test_second_derivatives(norm):
    with jax.enable_x64(True):
        x, add, scale, bias, _ = (v.astype(jnp.float64) for v in draw())
        check_grads(fused(norm, "silu"), (x, add, scale, bias), 2, rtol=1e-3)


@pytest.mark.parametrize(
    ("norm", "empty"),
    [(batch, slice(0)), (batch, slice(None)), (group, slice(1, 2))],
    ids=["batch", "empty batch", "group with an empty example"],
)
def test_masked_and_empty_sets(norm, empty):
    """Where there is no evidence, the output is what is added, and so its gradient."""
    x, add, scale, bias, ct = draw()
    weights = jnp.asarray(RNG.integers(0, 2, (*SHAPE[:3], 1)), bool)
    weights = weights.at[empty].set(False)
    got, expected = (
        compiled_derivatives(f, x, add, scale, bias, ct)
        for f in (fused(norm, "relu", weights), separate(norm, "relu", weights))
    )
    chex.assert_trees_all_close(got, expected, rtol=2e-5, atol=2e-5)
    np.testing.assert_array_equal(got[0][empty], jax.nn.relu(add[empty]))
    np.testing.assert_array_equal(got[1][0][empty], 0)


def test_half_precision_is_rounded_once():
    x, add, scale, bias, _ = draw(jnp.bfloat16)
    got = fused(batch, "relu")(x, add, scale, bias)
    wide = (v.astype(jnp.float32) for v in (x, add))
    expected = separate(batch, "relu")(*wide, scale, bias)
    assert got.dtype == jnp.bfloat16
    chex.assert_trees_all_close(
        got.astype(jnp.float32), expected, rtol=1.01 * 2**-8, atol=4e-6
    )


@pytest.mark.parametrize(
    ("options", "error", "text"),
    [
        ({"activation": "tanh"}, ValueError, "one of relu, silu, gelu. Received activ"),
        ({"add": jnp.ones((3, 1, 1, 8))}, ValueError, r"add with shape \(3, 1, 1, 8\)"),
        ({"add": 1j * jnp.ones(SHAPE)}, TypeError, "add must be real where x is"),
    ],
)
@pytest.mark.parametrize("norm", [batch, group], ids=["batch", "group"])
def test_errors(norm, options, error, text):
    x, _, scale, bias, _ = draw()
    with pytest.raises(error, match=text):
        norm(x, scale, bias, **options)


def test_complex_input_has_no_activation():
    with pytest.raises(TypeError, match="activation='relu' needs real input"):
        group(draw()[0] * 1j, None, None, activation="relu")
