"""The linen modules: Flax's arguments, variables, dtypes, masks and outputs."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen
from numpy.testing import assert_allclose

import jaxnorm.linen as ours
from tests.flax_modules import (
    CASES,
    FAMILIES,
    KEY,
    TRAINING,
    assert_trees_close,
    build_linen,
    init,
    sample,
    train,
)


@pytest.mark.parametrize("name", ours.__all__)
def test_arguments_are_flaxs(name):
    """Names, order and defaults; what is added comes last."""

    def arguments(package):
        return [
            (field.name, field.default)
            for field in dataclasses.fields(getattr(package, name))
            if field.name not in ("parent", "name", "variable_filter")
        ]

    theirs = arguments(linen)
    assert arguments(ours)[: len(theirs)] == theirs
    assert {n for n, _ in arguments(ours)[len(theirs) :]} <= {
        "debias",
        "ddof",
        "decay",
        "feature_axis",
    }


@pytest.mark.usefixtures("platform")
@pytest.mark.parametrize("case", CASES, ids=str)
def test_variables_and_outputs_are_flaxs(case):
    x = sample()
    inits = {
        "scale_init": linen.initializers.uniform(),
        "bias_init": linen.initializers.normal(),
    }
    if case.name == "RMSNorm":
        inits.pop("bias_init")
    theirs, mine = (build_linen(case, package, **inits) for package in (linen, ours))
    variables = theirs.init(KEY, x)
    assert_trees_close(mine.init(KEY, x), variables)
    y_theirs, after_theirs = train(theirs, variables, x, steps=2)
    y, after = train(mine, variables, x, steps=2)
    assert_allclose(y, y_theirs, rtol=1e-5, atol=1e-5)
    assert_trees_close(after, after_theirs, rtol=1e-5, atol=1e-6)
    if case.name == "BatchNorm":
        y, y_theirs = (
            m.apply(after, x, use_running_average=True)
            for m in (
                build_linen(case, ours, use_running_average=None, **inits),
                build_linen(case, linen, use_running_average=None, **inits),
            )
        )
        assert_allclose(y, y_theirs, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("case", FAMILIES, ids=str)
@pytest.mark.parametrize("input_dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize(
    "dtypes",
    [
        {"dtype": jnp.bfloat16},
        {"param_dtype": jnp.bfloat16},
        {"dtype": jnp.float32, "param_dtype": jnp.float16},
        {},
    ],
    ids=str,
)
def test_dtypes_are_flaxs(case, input_dtype, dtypes):
    x = sample((4, 2, 6), input_dtype)
    results = []
    for package in (linen, ours):
        module = build_linen(case, package, **dtypes)
        # Traced only: this is about dtypes.
        initial = jax.eval_shape(module.init, KEY, x)
        results.append((initial, jax.eval_shape(partial(train, module), initial, x)))
    assert results[0] == results[1]


MASKS = {
    "bool": jax.random.bernoulli(jax.random.key(1), 0.7, (4, 5, 3, 6)),
    # Such as the tokens of a sequence, where 0 is padding. They are no weights.
    "integer": jax.random.randint(jax.random.key(1), (4, 5, 3, 6), -1, 3),
}


@pytest.mark.parametrize("mask", MASKS.values(), ids=MASKS)
def test_masks_are_flaxs(mask):
    x = sample()
    for case in CASES:
        theirs, mine = (build_linen(case, package) for package in (linen, ours))
        variables = init(theirs, x)
        y_theirs, after_theirs = train(theirs, variables, x, mask=mask)
        y, after = train(mine, variables, x, mask=mask)
        assert_allclose(y, y_theirs, rtol=1e-4, atol=1e-4)
        assert_trees_close(after, after_theirs, rtol=1e-5, atol=1e-6)


def test_single_values_are_flaxs():
    """Where nothing is reduced, the output is the bias."""
    for name in ("BatchNorm", "InstanceNorm"):
        kwargs = TRAINING if name == "BatchNorm" else {}
        shape = (6,) if name == "BatchNorm" else (4, 6)
        theirs, mine = (getattr(p, name)(**kwargs) for p in (linen, ours))
        variables = theirs.init(KEY, sample(shape))
        y_theirs, after_theirs = train(theirs, variables, sample(shape))
        y, after = train(mine, variables, sample(shape))
        assert_allclose(y, y_theirs, atol=1e-6)
        assert_trees_close(after, after_theirs, rtol=1e-6)


@pytest.mark.parametrize("shape", [(3, 3), (1, 3), (3, 1)])
def test_masks_where_all_axes_are_features_are_flaxs(shape):
    """Nothing is reduced, and the output is the bias, masked or not."""
    x, mask = sample((3, 3)), jax.random.bernoulli(KEY, 0.5, shape)
    theirs, mine = (p.BatchNorm(axis=(0, 1), **TRAINING) for p in (linen, ours))
    variables = theirs.init(KEY, x)
    y_theirs, _ = train(theirs, variables, x)
    y, after = train(mine, variables, x, mask=mask)
    assert_allclose(y, y_theirs, atol=1e-6)
    moved = after["batch_stats"]["mean"] != 0
    np.testing.assert_array_equal(moved, jnp.broadcast_to(mask, moved.shape))


def test_a_dummy_without_rows_will_do_for_init():
    dummy = jnp.ones((0, 5, 6))
    variables = (
        package.BatchNorm(use_running_average=False).init(KEY, dummy)
        for package in (ours, linen)
    )
    assert_trees_close(*variables, rtol=0)


def test_partitioned_parameters():
    init = linen.with_partitioning(linen.initializers.ones, ("model",))
    for package in (linen, ours):
        variables = package.LayerNorm(scale_init=init).init(KEY, sample())
        assert variables["params"]["scale"].names == ("model",)


def test_tabulate_shows_the_modules():
    class Model(linen.Module):
        norm: type

        @linen.compact
        def __call__(self, x):
            return linen.Dense(3)(self.norm(use_running_average=True)(x))

    tables = [
        linen.tabulate(Model(package.BatchNorm), KEY, console_kwargs={"width": 200})(
            sample((4, 6))
        )
        for package in (linen, ours)
    ]
    assert "BatchNorm_0" in tables[1]
    assert len(tables[0].splitlines()) == len(tables[1].splitlines())
