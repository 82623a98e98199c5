"""Meshes of Explicit axes: the programs of Auto ones, and the types that JAX checks."""

import re
from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import jaxnorm as jn
from benchmarks import costs
from tests.collectives import list_collectives
from tests.compiling import quick_jit
from tests.spreading import AUTO, EXPLICIT, MESH, put

RNG = np.random.default_rng(0)
FEATURES = 16
X, CT = RNG.normal(3, 2, (2, 16, 8, FEATURES)).astype(np.float32)
SCALE, BIAS = RNG.normal(1, 0.5, (2, FEATURES)).astype(np.float32)


def batch_norm(x, scale, bias, *, training=True, **options):
    stats = jn.init_stats(FEATURES)
    return jn.batch_norm(x, stats, scale, bias, training=training, **options)[0]


NORMS = {
    "batch": batch_norm,
    "batch and relu": partial(batch_norm, activation="relu"),
    "evaluation": partial(batch_norm, training=False),
    "layer": jn.layer_norm,
    "group": partial(jn.group_norm, num_groups=4),
    "instance": jn.instance_norm,
}


def forward_backward(norm, x, scale, bias, ct):
    """Return the output and all gradients, as one tuple."""
    y, pull_back = jax.vjp(norm, x, scale, bias)
    return y, *pull_back(ct)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", NORMS)
def test_programs_are_those_of_auto_axes(name, dtype):
    """What they compute is, and what they read and write, and exchange."""
    x = jnp.asarray(RNG.normal(size=(64, 64, FEATURES)), dtype)

    def compiled(mode):
        args = (put(mode, x, "data"), *(put(mode, v) for v in (SCALE, BIAS)))
        f = jax.jit(partial(forward_backward, NORMS[name]))
        program = f.lower(*args, args[0]).compile()
        size = program.cost_analysis()["bytes accessed"]
        return size, costs.list_collectives(program), program.as_text()

    size, collectives, text = compiled(AUTO)
    size_here, collectives_here, text_here = compiled(EXPLICIT)
    assert size_here == pytest.approx(size, rel=0.01)
    assert collectives_here == collectives
    count_packed = partial(re.findall, r"= c64\S* add\(")
    assert len(count_packed(text_here)) == len(count_packed(text)) > 0


# How x is spread, and how scale and bias are.
LAYOUTS = [
    (("data",), ()),
    ((None, "data"), ("model",)),
    ((("data", "model"),), ()),
    (("data", None, "model"), ()),
    (("data", None, "model"), ("model",)),
    ((None, None, ("data", "model")), ()),
]


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
@pytest.mark.parametrize("name", ["batch and relu", "evaluation", "layer", "group"])
def test_gradients_are_sharded_as_what_they_are_of(name, layout):
    """Also where parameters are not sharded as the features of x are."""
    f = quick_jit(partial(forward_backward, NORMS[name]))
    of_x, of_parameters = layout
    x = put(EXPLICIT, X, *of_x)
    scale, bias = (put(EXPLICIT, v, *of_parameters) for v in (SCALE, BIAS))
    y = jax.eval_shape(NORMS[name], x, scale, bias)
    got = f(x, scale, bias, put(EXPLICIT, CT, *y.sharding.spec))
    for gradient, value in zip(got[1:], (x, scale, bias), strict=True):
        assert jax.typeof(gradient) == jax.typeof(value)
    chex.assert_trees_all_close(got, f(X, SCALE, BIAS, CT), rtol=1e-4, atol=2e-4)


@pytest.mark.parametrize("name", ["batch", "layer", "group"])
def test_second_derivatives(name):
    """Forward over reverse, with parameters that are not sharded as features are."""

    def curvature(x, scale, bias, ct):
        f = partial(forward_backward, NORMS[name], ct=ct)
        return jax.jvp(f, (x, scale, bias), (jnp.sin(x), scale, bias))[1]

    parameters = [put(EXPLICIT, v) for v in (SCALE, BIAS)]
    x, ct = (put(EXPLICIT, v, "data", None, "model") for v in (X, CT))
    got = quick_jit(curvature)(x, *parameters, ct)
    expected = quick_jit(curvature)(X, SCALE, BIAS, CT)
    chex.assert_trees_all_close(got, expected, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("name", NORMS)
def test_examples_that_are_mapped_over_and_spread(name):
    """With what is the same for all of them: parameters, and weights."""
    mask = RNG.uniform(size=(8, 4, 1)) > 0.3
    weights = None if name == "evaluation" else mask

    def f(x, scale, bias, ct):
        norm = partial(NORMS[name], weights=weights)
        return forward_backward(norm, x, scale, bias, ct)

    shape = (16, 8, 4, FEATURES)
    x, ct = RNG.normal(3, 2, (2, *shape)).astype(np.float32)
    mapped = quick_jit(jax.vmap(f, (0, None, None, 0)))
    args = (put(EXPLICIT, x, "data"), *(put(EXPLICIT, v) for v in (SCALE, BIAS)))
    with jax.enable_checks(True):  # of all types, also inside of programs
        got = mapped(*args, put(EXPLICIT, ct, "data"))
    expected = mapped(x, SCALE, BIAS, ct)
    chex.assert_trees_all_close(got, expected, rtol=1e-4, atol=2e-4)


@pytest.mark.parametrize("name", NORMS)
def test_tangents_that_are_mapped_over_and_spread(name):
    """Those of the bias alone: what else is linear is repeated."""

    def push(x, scale, bias, t_bias):
        return jax.jvp(lambda b: NORMS[name](x, scale, b), (bias,), (t_bias,))[1]

    pushed = quick_jit(jax.vmap(push, (None, None, None, 0)))
    args = X, SCALE, BIAS
    t_bias = RNG.normal(size=(8, FEATURES)).astype(np.float32)
    spread = [put(EXPLICIT, value) for value in args]
    with jax.enable_checks(True):
        got = pushed(*spread, put(EXPLICIT, t_bias, "data"))
    np.testing.assert_allclose(got, pushed(*args, t_bias), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", NORMS)
def test_a_mesh_with_an_auto_axis_too(name):
    kinds = (AxisType.Explicit, AxisType.Auto)
    mesh = jax.make_mesh(tuple(MESH.values()), tuple(MESH), axis_types=kinds)
    f = quick_jit(partial(forward_backward, NORMS[name]))
    args = X, SCALE, BIAS, CT
    specs = P("data", None, "model"), P("model"), P("model"), P("data", None, "model")
    mixed = [
        jax.device_put(value, NamedSharding(mesh, spec))
        for value, spec in zip(args, specs, strict=True)
    ]
    chex.assert_trees_all_close(f(*mixed), f(*args), rtol=1e-4, atol=2e-4)
    auto = [put(AUTO, value, *spec) for value, spec in zip(args, specs, strict=True)]
    assert list_collectives(f, *mixed) == list_collectives(f, *auto)
