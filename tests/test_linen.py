"""The linen modules: Flax's behaviour, its transformations, and what is added."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen
from numpy.testing import assert_allclose

import jaxnorm.linen as ours
from tests.flax_modules import CASES, assert_trees_close, sample, train

KEY = jax.random.key(0)
TRAINING = {"use_running_average": False}
EVALUATING = {"use_running_average": True}


@partial(jax.jit, static_argnums=0)
def init(module, x):
    return module.init(KEY, x)


def build(case, package, **more):
    if case.name == "BatchNorm":
        more = TRAINING | more
    return case.build("linen", package, **more)


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


@pytest.mark.usefixtures("way_to_sum")
@pytest.mark.parametrize("case", CASES, ids=str)
def test_variables_and_outputs_are_flaxs(case):
    x = sample()
    inits = {
        "scale_init": linen.initializers.uniform(),
        "bias_init": linen.initializers.normal(),
    }
    if case.name == "RMSNorm":
        inits.pop("bias_init")
    theirs, mine = (build(case, package, **inits) for package in (linen, ours))
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
                build(case, ours, use_running_average=None, **inits),
                build(case, linen, use_running_average=None, **inits),
            )
        )
        assert_allclose(y, y_theirs, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("case", [CASES[i] for i in (0, 3, 6, 8, 10)], ids=str)
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
        module = build(case, package, **dtypes)
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
        theirs, mine = (build(case, package) for package in (linen, ours))
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


# Training and evaluation.


def test_a_traced_flag_compiles_once():
    norm, x, traces = ours.BatchNorm(), sample((8, 6)), []
    variables = norm.init(KEY, x, use_running_average=False)

    @jax.jit
    def step(variables, evaluating):
        traces.append(0)
        return norm.apply(
            variables, x, use_running_average=evaluating, mutable=["batch_stats"]
        )

    for evaluating in (False, True):
        y, updates = step(variables, jnp.array(evaluating))
        expected, stats = norm.apply(
            variables, x, use_running_average=evaluating, mutable=["batch_stats"]
        )
        assert_allclose(y, expected, atol=1e-6)
        assert_trees_close(updates, stats, rtol=1e-6)
    assert len(traces) == 1


def test_nothing_is_updated_while_initializing():
    norm = ours.BatchNorm(axis_name="batch", **TRAINING)  # not bound here
    y, variables = norm.init_with_output(KEY, sample((8, 6)))
    assert_allclose(variables["batch_stats"]["mean"], 0)
    assert_allclose(np.asarray(y).mean(0), 0, atol=1e-6)


# Transformations.


class Block(linen.Module):
    """A layer with every kind of variable, of the shape that a scan carries."""

    evaluating: bool = False

    @linen.compact
    def __call__(self, x, _=None):
        x = linen.Dense(6)(x)
        x = ours.BatchNorm(use_running_average=self.evaluating)(x)
        return ours.SpectralNorm(linen.Dense(6))(
            ours.LayerNorm()(x), update_stats=not self.evaluating
        ), None


def test_scan_over_layers():
    layers = linen.scan(
        Block,
        variable_axes={"params": 0, "batch_stats": 0},
        split_rngs={"params": True},
        length=3,
    )
    x = sample((8, 6))
    variables = init(layers(), x)
    assert variables["batch_stats"]["BatchNorm_0"]["mean"].shape == (3, 6)
    (y, _), updates = train(layers(), variables, x)
    for layer in range(3):
        one = jax.tree.map(lambda leaf, i=layer: leaf[i], variables)
        (x, _), stats = train(Block(), one, x)
        assert_allclose(
            updates["batch_stats"]["BatchNorm_0"]["var"][layer],
            stats["batch_stats"]["BatchNorm_0"]["var"],
            rtol=1e-5,
        )
    assert_allclose(y, x, atol=1e-5)


def test_scan_over_steps_carries_the_statistics():
    norm, x = ours.BatchNorm(debias=True, **TRAINING), sample((5, 8, 6))
    variables = norm.init(KEY, x[0])

    def step(stats, x):
        _, updates = norm.apply(stats, x, mutable=["batch_stats"])
        return {**stats, **updates}, None

    scanned, _ = jax.lax.scan(step, variables, x)
    for batch in x:
        _, variables = train(norm, variables, batch)
    assert_trees_close(scanned, variables, rtol=1e-6)


def test_lifted_vmap():
    x = sample((8, 6))
    variables = init(Block(), x)
    (expected, _), after = train(Block(), variables, x)
    lifted = linen.vmap(
        Block,
        variable_axes={"params": None, "batch_stats": 0},
        split_rngs={"params": False},
    )
    repeat = {"params": variables["params"]}
    repeat["batch_stats"] = jax.tree.map(
        lambda leaf: jnp.stack([leaf] * 2), variables["batch_stats"]
    )
    (y, _), updates = train(lifted(), repeat, jnp.stack([x, x]))
    assert_allclose(y[1], expected, atol=1e-5)
    stats = jax.tree.map(lambda leaf: leaf[1], updates["batch_stats"])
    assert_trees_close(stats, after["batch_stats"], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("lift", ["remat", "jit"])
def test_lifted_transformations(lift):
    x = sample((8, 6))
    plain = Block()
    variables = init(plain, x)

    def loss(params, module):
        variables_ = {**variables, "params": params}
        (y, _), updates = module.apply(variables_, x, mutable=["batch_stats"])
        return jnp.sum(y**3), updates

    lifted = getattr(linen, lift)(Block)()
    differentiate = jax.jit(jax.value_and_grad(loss, has_aux=True), static_argnums=1)
    (a, updates), grads = differentiate(variables["params"], lifted)
    (b, stats), expected = differentiate(variables["params"], plain)
    assert_allclose(a, b, rtol=1e-5)
    assert_trees_close(updates, stats, rtol=1e-5, atol=1e-6)
    assert_trees_close(grads, expected, rtol=1e-3, atol=1e-3)


def test_axis_index_groups():
    """Statistics of two pairs of devices, in norms with and without running ones."""
    x = sample((4, 6, 3))
    groups = [[0, 1], [2, 3]]
    pooled = {"axis_name": "d", "axis_index_groups": groups, "epsilon": 1e-5}
    for module in (
        ours.BatchNorm(**pooled, **TRAINING),
        ours.LayerNorm(reduction_axes=0, **pooled),
    ):
        variables = module.init(KEY, x[0])
        y, _ = jax.pmap(lambda x, m=module, v=variables: train(m, v, x), "d")(x)
        pairs = np.asarray(x, np.float64).reshape(2, 12, 3)
        expected = (pairs - pairs.mean(1, keepdims=True)) / np.sqrt(
            pairs.var(1, keepdims=True) + 1e-5
        )
        assert_allclose(np.asarray(y).reshape(2, 12, 3), expected, atol=1e-5)


# What is added.


@pytest.mark.parametrize("case", CASES, ids=str)
def test_a_constant_mask_changes_nothing(case):
    x = sample()
    module = build(case, ours)
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
    module = build(case, ours, use_scale=False)
    given = {"scale": 1 + sample((4, 1, 1, 1), seed=1)}
    if case.name != "RMSNorm":
        module = build(case, ours, use_scale=False, use_bias=False)
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
    kwargs = {"axis_name": "batch", "axis_index_groups": [[0, 1]], **EVALUATING}
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
    x, evaluation = x[..., 0, :].reshape(-1, 6)[:4], {"use_running_average": True}
    scale, bias = jnp.arange(6.0)[None], jnp.arange(4.0)[:, None]
    y = norm.apply(norm.init(KEY, x, **evaluation), x, **evaluation, scale=scale)
    assert_allclose(y, x * scale / np.sqrt(1 + 1e-5), rtol=1e-5)
    y = norm.apply(norm.init(KEY, x, **evaluation), x, **evaluation, bias=bias)
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
