"""The nnx modules: what Flax's do not have."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from numpy.testing import assert_allclose

import jaxnorm.linen
import jaxnorm.nnx as ours
from tests.flax_modules import (
    CASES,
    EVALUATING,
    FAMILIES,
    KEY,
    assert_trees_close,
    build_linen,
    pure,
    rngs,
    sample,
)


def test_fractional_masks():
    x = sample((4, 6))
    half, twice = (ours.BatchNorm(6, rngs=rngs()) for _ in range(2))
    half(x, mask=jnp.array([1, 0.5, 0.5, 1])[:, None])
    twice(x[jnp.array([0, 0, 1, 2, 3, 3])])
    assert_trees_close(pure(half), pure(twice), rtol=1e-5, atol=1e-6)


def test_debias_ddof_and_decay():
    x = sample((8, 6))
    norm = ours.BatchNorm(6, debias=True, ddof=1, rngs=rngs())
    norm(x)
    assert_allclose(norm.mean[...], np.asarray(x).mean(0), rtol=1e-5)
    assert_allclose(norm.var[...], np.asarray(x).var(0, ddof=1), rtol=1e-5)
    assert_allclose(norm.weight[...], 0.01, rtol=1e-5)
    assert isinstance(norm.weight, nnx.BatchStat)
    a, b = (ours.BatchNorm(6, rngs=rngs(), **k) for k in KEYWORDS)
    a(x)
    b(x)
    assert_trees_close(pure(a), pure(b))


KEYWORDS = ({"decay": 0.3}, {"momentum": 0.3})


@pytest.mark.parametrize("case", FAMILIES, ids=str)
def test_scale_and_bias_at_call_time(case):
    x, scale = sample(), 1 + sample((4, 1, 1, 1), seed=1)
    more = {} if case.name == "RMSNorm" else {"use_bias": False}
    given = {"scale": scale} | ({} if case.name == "RMSNorm" else {"bias": scale})
    module = case.build("nnx", ours, use_scale=False, **more)
    plain, y = module(x), module(x, **given)
    assert_allclose(y, plain * scale + given.get("bias", 0), atol=1e-5)


def test_group_norm_of_another_feature_axis():
    x = sample()
    last, first = (ours.GroupNorm(6, 3, feature_axis=a, rngs=rngs()) for a in (-1, 1))
    y = first(jnp.moveaxis(x, -1, 1))
    assert_allclose(jnp.moveaxis(y, 1, -1), last(x), atol=1e-6)


def test_linen_and_nnx_agree():
    x = sample()
    for case in CASES:
        module = build_linen(case, jaxnorm.linen)
        y, _ = module.apply(module.init(KEY, x), x, mutable=["batch_stats"])
        assert_allclose(case.build("nnx", ours)(x), y)


def test_evaluation_needs_no_device_axis():
    """A model that trains under pmap is evaluated outside of it, as in Flax."""
    x = sample()
    kwargs = {"axis_name": "batch", **EVALUATING}
    theirs, mine = (
        package.BatchNorm(x.shape[-1], rngs=nnx.Rngs(0), **kwargs)
        for package in (nnx, ours)
    )
    assert_allclose(mine(x), theirs(x), atol=1e-6)
    mine.train()
    with pytest.raises(ValueError, match="axis_name must be bound"):
        mine(x)


def test_no_gradient_passes_through_the_running_statistics():
    """Of a batch that is trained on and then evaluated, in one loss."""
    norm, x = ours.BatchNorm(6, momentum=0.5, rngs=rngs()), sample()

    def evaluated(norm, x):
        return jnp.sum(norm(x, use_running_average=True) ** 3)

    def loss(norm, x):
        norm(x, use_running_average=False)
        return evaluated(norm, x)

    got = nnx.grad(loss, argnums=1)(norm, x)
    assert not np.allclose(norm.mean[...], 0)
    assert_allclose(got, nnx.grad(evaluated, argnums=1)(norm, x), rtol=1e-4, atol=1e-5)


def test_complex_output_of_real_input():
    dtypes = {"dtype": jnp.complex64, "param_dtype": jnp.complex64}
    norm = ours.LayerNorm(6, **dtypes, rngs=rngs())
    y = norm(sample())
    assert y.dtype == jnp.complex64
    plain = ours.LayerNorm(6, rngs=rngs())
    assert_allclose(y, plain(sample()), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("options", [{}, {"debias": True}, {"decay": None}], ids=str)
def test_a_model_that_was_cast_to_half_precision_is_trained(options):
    norm = ours.BatchNorm(6, **options, rngs=rngs())
    state = nnx.state(norm)
    nnx.update(norm, jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), state))
    norm(sample((4, 6)))
    for statistic in jax.tree.leaves(nnx.state(norm, nnx.BatchStat)):
        assert statistic.dtype == jnp.float32


def test_a_bias_at_call_time_has_a_say_in_the_dtype():
    x, bias = sample((4, 6)).astype(jnp.bfloat16), jnp.ones(6)
    for norm in (ours.RMSNorm, ours.LayerNorm):
        kwargs = {} if norm is ours.RMSNorm else {"use_bias": False}
        module = norm(6, use_scale=False, **kwargs, rngs=rngs())
        assert module(x).dtype == jnp.bfloat16
        assert module(x, bias=bias).dtype == jnp.float32


def test_a_subclass_may_have_a_bias_of_its_own():
    x = sample((4, 6))
    for package in (nnx, ours):

        class Biased(package.RMSNorm):
            def __init__(self, num_features, rngs):
                super().__init__(num_features, rngs=rngs)
                self.bias = nnx.Param(jnp.ones(num_features))

            def __call__(self, x):
                return super().__call__(x) + self.bias

        plain = package.RMSNorm(6, rngs=rngs())(x)
        assert_allclose(Biased(6, rngs())(x), plain + 1, rtol=1e-6, atol=1e-6)
