"""The nnx modules: Flax's behaviour, its transformations, and what is added."""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from flax.nnx import bridge
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from numpy.testing import assert_allclose

import jaxnorm.linen
import jaxnorm.nnx as ours
from tests.flax_modules import CASES, assert_trees_close, pure, rngs, sample

KEY = jax.random.key(0)


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


@pytest.mark.usefixtures("way_to_sum")
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


@pytest.mark.parametrize("case", [CASES[i] for i in (0, 3, 6, 8, 10)], ids=str)
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


def test_metadata():
    norm = ours.LayerNorm(
        6, scale_metadata={"a": 1}, bias_metadata={"b": 2}, rngs=rngs()
    )
    assert norm.scale.get_metadata("a") == 1
    assert norm.bias.get_metadata("b") == 2


# Training and evaluation.


class Model(nnx.Module):
    """Every kind of variable."""

    def __init__(self, package=ours, *, rngs, **kwargs):
        self.dense = nnx.Linear(6, 6, rngs=rngs)
        self.norm = package.BatchNorm(6, rngs=rngs, **kwargs)
        self.layer = package.LayerNorm(6, rngs=rngs)

    def __call__(self, x):
        return self.layer(self.norm(self.dense(x)))


def test_train_eval_attributes_and_views():
    model, x = Model(rngs=rngs()), sample((8, 6))
    model.eval()
    before = pure(model)
    model(x)
    assert_trees_close(pure(model), before)
    model.train()
    model(x)
    moved = pure(model)
    assert (moved["norm"]["mean"] != before["norm"]["mean"]).all()
    model.set_attributes(use_running_average=True)
    y = model(x)
    assert_trees_close(pure(model), moved)
    model.train()
    view = nnx.view(model, use_running_average=True)
    assert view.norm.use_running_average and not model.norm.use_running_average
    assert_allclose(view(x), y)


def test_a_traced_flag_compiles_once():
    traces = []

    @nnx.jit
    def step(norm, x, evaluating):
        traces.append(0)
        return norm(x, use_running_average=evaluating)

    x = sample((8, 6))
    for evaluating in (False, True):
        norm, expected = ours.BatchNorm(6, rngs=rngs()), ours.BatchNorm(6, rngs=rngs())
        y = step(norm, x, jnp.array(evaluating))
        assert_allclose(y, expected(x, use_running_average=evaluating), atol=1e-6)
        assert_trees_close(pure(norm), pure(expected), rtol=1e-6)
    assert len(traces) == 1


@pytest.mark.parametrize("flag", [np.array, np.bool_, jnp.array, int])
def test_a_flag_may_be_any_scalar_that_is_a_bool(flag):
    x = sample((8, 6))
    for evaluating in (False, True):
        norm, expected = ours.BatchNorm(6, rngs=rngs()), ours.BatchNorm(6, rngs=rngs())
        y = norm(x, use_running_average=flag(evaluating))
        np.testing.assert_array_equal(y, expected(x, use_running_average=evaluating))
        assert_trees_close(pure(norm), pure(expected), rtol=0)


def test_an_optimizer_trains_it():
    model = Model(debias=True, rngs=rngs())
    optimizer = nnx.Optimizer(model, optax.adam(0.01), wrt=nnx.Param)
    x, target = sample((8, 6)), sample((8, 6), seed=1)

    @nnx.jit
    def step(model, optimizer):
        def loss(model):
            return jnp.mean((model(x) - target) ** 2)

        value, grads = nnx.value_and_grad(loss)(model)
        optimizer.update(model, grads)
        return value

    losses = [step(model, optimizer) for _ in range(20)]
    assert losses[-1] < 0.8 * losses[0]
    assert model.norm.weight[...] > 0


# Transformations.


def test_split_and_merge_in_both_directions():
    x = sample((8, 6))
    for source, target in ((nnx, ours), (ours, nnx)):
        model, other = Model(source, rngs=rngs()), Model(target, rngs=nnx.Rngs(1))
        model(x)
        graphdef, _ = nnx.split(other)
        merged = nnx.merge(graphdef, nnx.state(model))
        nnx.update(other, nnx.state(model))
        model.eval()
        merged.eval()
        other.eval()
        assert_allclose(merged(x), model(x), rtol=1e-5, atol=1e-6)
        assert_allclose(other(x), model(x), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("transform", [nnx.jit, nnx.remat])
def test_jit_and_remat(transform):
    x = sample((8, 6))

    def loss(model, x):
        return jnp.sum(model(x) ** 3)

    model, expected = Model(rngs=rngs()), Model(rngs=rngs())
    value, grads = nnx.value_and_grad(transform(loss))(model, x)
    plain, plain_grads = nnx.value_and_grad(loss)(expected, x)
    assert_allclose(value, plain, rtol=1e-5)
    assert_trees_close(
        nnx.to_pure_dict(grads), nnx.to_pure_dict(plain_grads), rtol=1e-3, atol=1e-4
    )
    assert_trees_close(pure(model), pure(expected), rtol=1e-5)


def test_scan_over_layers_and_vmap_over_models():
    x = sample((8, 6))

    @nnx.split_rngs(splits=3)
    @nnx.vmap(in_axes=0)
    def make(rngs):
        return Model(rngs=rngs)

    models, same = make(rngs()), make(rngs())

    @nnx.scan(in_axes=(0, nnx.Carry), out_axes=nnx.Carry)
    def through(model, x):
        return model(x)

    @nnx.vmap(in_axes=(0, None))
    def side_by_side(model, x):
        return model(x)

    y, first = nnx.jit(through)(models, x), nnx.jit(side_by_side)(same, x)[0]
    for layer in range(3):
        state = jax.tree.map(lambda leaf, i=layer: leaf[i], pure(make(rngs())))
        one = Model(rngs=rngs())
        nnx.update(one, state)
        x = one(x)
        if layer == 0:
            assert_allclose(first, x, atol=1e-5)
        mean = pure(models)["norm"]["mean"][layer]
        assert_allclose(mean, one.norm.mean[...], rtol=1e-4, atol=1e-6)
    assert_allclose(y, x, atol=1e-5)


def test_scan_over_steps_carries_the_statistics():
    x = sample((5, 8, 6))
    norm, expected = (ours.BatchNorm(6, decay=None, rngs=rngs()) for _ in range(2))

    @nnx.scan(in_axes=(nnx.Carry, 0), out_axes=nnx.Carry)
    def run(norm, x):
        norm(x)
        return norm

    norm = run(norm, x)
    for batch in x:
        expected(batch)
    assert_trees_close(pure(norm), pure(expected), rtol=1e-5)
    assert_allclose(norm.mean[...], np.asarray(x).mean((0, 1)), rtol=1e-5)


def test_shard_map_pools_over_devices():
    mesh = jax.make_mesh((4,), ("data",))
    x = sample((16, 6))
    mask = (jnp.arange(16) < 9)[:, None]  # one shard is empty, one almost
    norm, expected = (
        ours.BatchNorm(6, axis_name=name, rngs=rngs()) for name in ("data", None)
    )
    run = nnx.jit(
        nnx.shard_map(
            lambda norm, x, mask: norm(x, mask=mask),
            mesh=mesh,
            in_specs=(P(), P("data"), P("data")),
            out_specs=P("data"),
        )
    )
    # A mesh has Explicit axes by default, so everything must lie on it.
    everywhere, rows = NamedSharding(mesh, P()), NamedSharding(mesh, P("data"))
    nnx.update(norm, jax.device_put(nnx.state(norm), everywhere))
    y = run(norm, jax.device_put(x, rows), jax.device_put(mask, rows))
    assert_allclose(np.asarray(y)[:9], expected(x, mask=mask)[:9], atol=1e-5)
    assert_trees_close(pure(norm), pure(expected), rtol=1e-5, atol=1e-6)


def test_bridge_in_both_directions():
    x = sample((8, 6))
    model = bridge.ToLinen(ours.BatchNorm, args=(6,))
    variables = model.init(KEY, x)
    assert {"params", "batch_stats"} <= set(variables)
    y, updates = model.apply(variables, x, mutable=True)
    norm = ours.BatchNorm(6, rngs=rngs())
    assert_allclose(y, norm(x), atol=1e-6)
    assert_allclose(
        jax.tree.leaves(updates["batch_stats"])[0], norm.mean[...], rtol=1e-6
    )

    wrapped = bridge.ToNNX(
        jaxnorm.linen.BatchNorm(use_running_average=False), rngs=rngs()
    )
    wrapped.lazy_init(x)
    assert_allclose(wrapped(x, mutable=["batch_stats"]), norm(x), atol=1e-6)


def test_tabulate_shows_the_modules():
    x = sample((8, 6))
    tables = [
        nnx.tabulate(Model(p, rngs=rngs()), x, console_kwargs={"width": 200})
        for p in (nnx, ours)
    ]
    assert "BatchNorm" in tables[1] and "BatchStat" in tables[1]
    assert len(tables[0].splitlines()) == len(tables[1].splitlines())


# What is added.


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


@pytest.mark.parametrize("case", [CASES[i] for i in (0, 3, 6, 8, 10)], ids=str)
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
        more = {"use_running_average": False} if case.name == "BatchNorm" else {}
        module = case.build("linen", jaxnorm.linen, **more)
        y, _ = module.apply(module.init(KEY, x), x, mutable=["batch_stats"])
        assert_allclose(case.build("nnx", ours)(x), y)


def test_evaluation_needs_no_device_axis():
    """A model that trains under pmap is evaluated outside of it, as in Flax."""
    x = sample()
    kwargs = {"axis_name": "batch", "use_running_average": True}
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
