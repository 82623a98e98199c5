"""The linen modules: what Flax's do not have."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen
from numpy.testing import assert_allclose

import jaxnorm.linen as ours
from tests.flax_modules import (
    CASES,
    EVALUATING,
    KEY,
    TRAINING,
    assert_trees_close,
    build_linen,
    init,
    sample,
    train,
)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_a_constant_mask_changes_nothing(case):
    x = sample()
    module = build_linen(case, ours)
    variables = init(module, x)
    y, after = train(module, variables, x, mask=jnp.full(x.shape, 7))
    plain, expected = train(module, variables, x)
    assert_allclose(y, plain, atol=1e-5)
    assert_trees_close(after, expected, rtol=1e-5, atol=1e-6)


# Along which axis elements may be repeated, without new parameters for them.
REPEATED = {
    "BatchNorm": ({}, 0),
    "LayerNorm": ({"reduction_axes": (1, 2), "feature_axes": 3}, 1),
    "RMSNorm": ({"reduction_axes": (1, 2), "feature_axes": 3}, 1),
    "GroupNorm": ({"num_groups": 3}, 1),
    "InstanceNorm": ({}, 1),
}


@pytest.mark.parametrize("name", REPEATED)
def test_fractional_masks_are_repetitions(name):
    """Weights 1/2 and 1 are elements seen once and twice."""
    kwargs, axis = REPEATED[name]
    kwargs = kwargs | (TRAINING if name == "BatchNorm" else {})
    x, module = sample((4, 4, 3, 6)), getattr(ours, name)(**kwargs)
    weights = np.expand_dims([1, 0.5, 0.5, 1], [a for a in range(4) if a != axis])
    once, again = np.array([0, 2, 3, 4]), np.array([0, 0, 1, 2, 3, 3])
    variables = module.init(KEY, x)
    y, after = train(module, variables, x, mask=jnp.asarray(weights))
    twice, expected = train(module, variables, jnp.take(x, again, axis))
    assert_allclose(y, jnp.take(twice, once, axis), atol=1e-5)
    assert_trees_close(after, expected, rtol=1e-5, atol=1e-6)


def test_debias_starts_at_the_first_batch():
    x = sample((8, 6))
    norm = ours.BatchNorm(debias=True, momentum=0.9, **TRAINING)
    variables = norm.init(KEY, x)
    assert variables["batch_stats"]["weight"] == 0
    _, variables = train(norm, variables, x)
    stats = variables["batch_stats"]
    assert_allclose(stats["mean"], np.asarray(x).mean(0), rtol=1e-5)
    assert_allclose(stats["var"], np.asarray(x).var(0), rtol=1e-5)
    assert_allclose(stats["weight"], 0.1, rtol=1e-6)


@pytest.mark.parametrize("kwargs", [{"debias": True}, {"decay": None}])
def test_averages_that_flax_trained_go_on(kwargs):
    """Their checkpoint has no weight; from 0 the first batch would replace them."""
    x = sample((8, 6))
    trained = {"mean": jnp.full(6, 5.0), "var": jnp.full(6, 4.0)}
    variables = {"params": {"scale": jnp.ones(6), "bias": jnp.zeros(6)}}
    variables["batch_stats"] = trained
    norm = ours.BatchNorm(use_running_average=True, momentum=0.9, **kwargs)
    assert_allclose(norm.apply(variables, x), (x - 5) / 2, rtol=1e-4)
    norm = ours.BatchNorm(momentum=0.9, **kwargs, **TRAINING)
    _, variables = train(norm, variables, x)
    share = 0.1 if "debias" in kwargs else 0.5
    mean = 5 + share * (np.asarray(x).mean(0) - 5)
    assert_allclose(variables["batch_stats"]["mean"], mean, rtol=1e-5)
    weight = 1 if "debias" in kwargs else 2
    assert_allclose(variables["batch_stats"]["weight"], weight)


@pytest.mark.parametrize("kwargs", [{"decay": None}, {"momentum": None}])
def test_no_decay_is_the_average_of_all_batches(kwargs):
    x = sample((5, 8, 6))
    norm = ours.BatchNorm(**kwargs, **TRAINING)
    variables = norm.init(KEY, x[0])
    for batch in x:
        _, variables = train(norm, variables, batch)
    stats = variables["batch_stats"]
    assert_allclose(stats["mean"], np.asarray(x).mean((0, 1)), rtol=1e-5)
    assert_allclose(stats["var"], np.asarray(x).var(1).mean(0), rtol=1e-5)
    assert stats["weight"] == 5


def test_decay_takes_the_place_of_momentum():
    x = sample((8, 6))
    outcomes = []
    for kwargs in ({"momentum": 0.3}, {"decay": 0.3}):
        norm = ours.BatchNorm(**kwargs, **TRAINING)
        outcomes.append(train(norm, norm.init(KEY, x), x)[1])
    assert_trees_close(*outcomes)


def test_ddof():
    x = sample((4, 6))
    norm = ours.BatchNorm(ddof=1, momentum=0.0, **TRAINING)
    _, variables = train(norm, norm.init(KEY, x), x)
    expected = np.asarray(x).var(0, ddof=1)
    assert_allclose(variables["batch_stats"]["var"], expected, rtol=1e-5)


def test_group_norm_of_another_feature_axis():
    x = sample()
    last = ours.GroupNorm(3)
    first = ours.GroupNorm(3, feature_axis=1)
    variables = last.init(KEY, x)
    y = first.apply(variables, jnp.moveaxis(x, -1, 1))
    assert_allclose(jnp.moveaxis(y, 1, -1), last.apply(variables, x), atol=1e-6)


LEARNED = [case for case in CASES if not {"use_scale", "use_bias"} & set(case.kwargs)]


@pytest.mark.parametrize("case", LEARNED, ids=str)
def test_scale_and_bias_at_call_time(case):
    x = sample()
    module = build_linen(case, ours, use_scale=False)
    given = {"scale": 1 + sample((4, 1, 1, 1), seed=1)}
    if case.name != "RMSNorm":
        module = build_linen(case, ours, use_scale=False, use_bias=False)
        given["bias"] = sample((4, 1, 1, 1), seed=2)
    variables = module.init(KEY, x, **given)
    assert "params" not in variables
    plain, _ = train(module, variables, x)
    y, _ = train(module, variables, x, **given)
    assert_allclose(y, plain * given["scale"] + given.get("bias", 0), atol=1e-5)


@pytest.mark.parametrize("options", [{}, {"debias": True}, {"decay": None}], ids=str)
def test_statistics_of_half_precision_are_widened(options):
    x = sample((8, 6))
    norm = ours.BatchNorm(**TRAINING, **options)
    variables = norm.init(KEY, x)
    half = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), variables)
    _, updates = train(norm, half, x)
    for statistic in updates["batch_stats"].values():
        assert statistic.dtype == jnp.float32


def test_evaluation_needs_no_device_axis():
    """A model that trains under pmap is evaluated outside of it, as in Flax."""
    x = sample()
    kwargs = {
        "axis_name": "batch",
        "axis_index_groups": [[0, 1]],
        **EVALUATING,
    }
    theirs, mine = linen.BatchNorm(**kwargs), ours.BatchNorm(**kwargs)
    variables = theirs.init(KEY, x)
    assert_allclose(mine.apply(variables, x), theirs.apply(variables, x), atol=1e-6)


def test_complex_output_of_real_input():
    norm = ours.LayerNorm(dtype=jnp.complex64, param_dtype=jnp.complex64)
    x = sample()
    y = norm.apply(norm.init(KEY, x), x)
    assert y.dtype == jnp.complex64
    plain = ours.LayerNorm()
    assert_allclose(y, plain.apply(plain.init(KEY, x), x), rtol=1e-5, atol=1e-6)


def test_all_axes_may_be_features():
    """Scale and bias broadcast as elsewhere."""
    norm, x = ours.BatchNorm(axis=(0, 1), use_scale=False, use_bias=False), sample()
    x = x[..., 0, :].reshape(-1, 6)[:4]
    scale, bias = jnp.arange(6.0)[None], jnp.arange(4.0)[:, None]
    y = norm.apply(norm.init(KEY, x, **EVALUATING), x, **EVALUATING, scale=scale)
    assert_allclose(y, x * scale / np.sqrt(1 + 1e-5), rtol=1e-5)
    y = norm.apply(norm.init(KEY, x, **EVALUATING), x, **EVALUATING, bias=bias)
    assert_allclose(y, x / np.sqrt(1 + 1e-5) + bias, rtol=1e-5)


def test_a_subclass_may_have_a_bias_of_its_own():
    x = sample((4, 6))
    for package in (linen, ours):

        class Biased(package.RMSNorm):
            use_bias: bool = True
            bias_init = staticmethod(linen.initializers.ones)

            @linen.compact
            def __call__(self, x):
                bias = self.param("bias", self.bias_init, x.shape[-1:])
                return super().__call__(x) + bias

        plain, _ = package.RMSNorm().init_with_output(KEY, x)
        y, _ = Biased().init_with_output(KEY, x)
        assert_allclose(y, plain + 1, rtol=1e-6, atol=1e-6)
