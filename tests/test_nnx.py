"""The nnx modules: Flax's arguments, variables, dtypes and outputs."""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from numpy.testing import assert_allclose

import jaxnorm.nnx as ours
from tests.flax_modules import CASES, FAMILIES, assert_trees_close, pure, rngs, sample


@pytest.mark.parametrize("name", ours.__all__)
def test_arguments_are_flaxs(name):
    def arguments(package):
        parameters = inspect.signature(getattr(package, name)).parameters
        return {
            key: (p.kind, p.default)
            for key, p in parameters.items()
            if key != "variable_filter"  # a new function at every import
        }

    theirs, mine = arguments(nnx), arguments(ours)
    assert mine.items() >= theirs.items()
    assert set(mine) - set(theirs) <= {"debias", "ddof", "decay", "feature_axis"}
    positional = [k for k, (kind, _) in theirs.items() if "POSITIONAL" in kind.name]
    assert list(mine)[: len(positional)] == positional


# Flax's nnx fails where the features are not the last axis.
BOTH_RUN = [case for case in CASES if case.kwargs.get("feature_axes") != 1]


@pytest.mark.usefixtures("platform")
@pytest.mark.parametrize("case", BOTH_RUN, ids=str)
def test_variables_and_outputs_are_flaxs(case):
    x = sample()
    inits = {
        "scale_init": nnx.initializers.uniform(),
        "bias_init": nnx.initializers.normal(),
    }
    if case.name == "RMSNorm":
        inits.pop("bias_init")
    theirs, mine = (case.build("nnx", package, **inits) for package in (nnx, ours))
    # The types of the variables and the structure that holds them are the same.
    assert jax.tree.structure(nnx.state(mine)) == jax.tree.structure(nnx.state(theirs))
    assert_trees_close(pure(mine), pure(theirs))
    for _ in range(2):
        assert_allclose(mine(x), theirs(x), rtol=1e-5, atol=1e-5)
    assert_trees_close(pure(mine), pure(theirs), rtol=1e-5, atol=1e-6)
    if case.name == "BatchNorm":
        mine.eval()
        theirs.eval()
        assert_allclose(mine(x), theirs(x), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("case", FAMILIES, ids=str)
@pytest.mark.parametrize("input_dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize(
    "dtypes",
    [
        {"dtype": jnp.bfloat16},
        {"param_dtype": jnp.bfloat16},
        {"promote_dtype": lambda args, dtype=None: args, "param_dtype": jnp.bfloat16},
        {},
    ],
    ids=["dtype", "param_dtype", "promote_dtype", "default"],
)
def test_dtypes_are_flaxs(case, input_dtype, dtypes):
    x = sample((4, 2, 6), input_dtype)
    results = []
    for package in (nnx, ours):
        module = case.build("nnx", package, **dtypes)
        y = module(x)
        results.append((y.dtype, jax.tree.map(lambda leaf: leaf.dtype, pure(module))))
    assert results[0] == results[1]


@pytest.mark.parametrize("case", BOTH_RUN, ids=str)
def test_promote_dtype_is_called_as_flax_does(case):
    """With as many arrays, and None for what the module does not have."""

    def kinds_of_arguments(package):
        seen = []

        def promote_dtype(args, dtype=None):
            seen.append([None if v is None else v.dtype for v in args])
            return args

        case.build("nnx", package, promote_dtype=promote_dtype)(sample())
        return seen

    assert kinds_of_arguments(ours) == kinds_of_arguments(nnx)


def test_the_dtype_of_a_module_announces_that_of_its_statistics():
    for dtype in (jnp.bfloat16, jnp.float32, jnp.complex64):
        norm = ours.BatchNorm(3, dtype=dtype, rngs=rngs())
        wide = jnp.promote_types(dtype, jnp.float32)
        assert (norm.mean[...].dtype, norm.var[...].dtype) == (wide, jnp.float32)
    with jax.enable_x64(True):
        norm = ours.BatchNorm(3, dtype=jnp.float64, rngs=rngs())
        assert norm.mean[...].dtype == norm.var[...].dtype == jnp.float64


def test_several_feature_axes():
    x = sample()
    flat = ours.LayerNorm(15, reduction_axes=3, feature_axes=(1, 2), rngs=rngs())
    deep = ours.LayerNorm((5, 3), reduction_axes=3, feature_axes=(1, 2), rngs=rngs())
    assert_allclose(flat(x), deep(x))
    norm = ours.BatchNorm((5, 6), axis=(1, 3), momentum=0.0, rngs=rngs())
    norm(x)
    assert_allclose(norm.mean[...], np.asarray(x).mean((0, 2)), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", ours.__all__)
def test_a_module_equals_itself_alone(name):
    """And has a hash, as Flax's: it is more than the arguments it was made from."""

    def build():
        if name in ("SpectralNorm", "WeightNorm"):
            return getattr(ours, name)(nnx.Linear(6, 4, rngs=rngs()), rngs=rngs())
        more = {"num_groups": 2} if name == "GroupNorm" else {}
        return getattr(ours, name)(6, rngs=rngs(), **more)

    a, b = build(), build()
    assert len({a, b, a}) == 2


def test_metadata():
    norm = ours.LayerNorm(
        6, scale_metadata={"a": 1}, bias_metadata={"b": 2}, rngs=rngs()
    )
    assert norm.scale.get_metadata("a") == 1
    assert norm.bias.get_metadata("b") == 2
