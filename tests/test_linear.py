"""A linear function with a given transpose, under every transformation."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from jaxnorm import linear, sharding
from tests.compiling import quick_jit

RNG = np.random.default_rng(0)
X, A, B = (jnp.asarray(v, jnp.float32) for v in RNG.normal(size=(3, 4, 5)))


def sums(x, y, a, b):
    """Two linear functions of `a` and `b`; `y` may be left out."""
    y = 1 if y is None else y
    return (x * y * a + b).sum(0), (jnp.sin(x) * b).sum(0)


def spread(x, y, p, q):
    y = 1 if y is None else y
    return x * y * p, p + jnp.sin(x) * q


def marked(f, mark):
    """As `f`, to be told from it in a program."""
    return lambda *values: tuple(v * mark / mark for v in f(*values))


SUMS = linear.Forms(sums, cpu=marked(sums, 3.0))
SPREAD = linear.Forms(spread, cpu=marked(spread, 5.0))


def given(x, a, b, y=None):
    return linear.call(SUMS, SPREAD, (x, y), (a, b))


def plain(x, a, b, y=None):
    return sums(x, y, a, b)


def loss(f):
    return lambda *args: sum(jnp.sum(v**3) for v in f(*args))


def assert_alike(transform, *args):
    got, expected = transform(given)(*args), transform(plain)(*args)
    chex.assert_trees_all_close(got, expected, rtol=1e-5, atol=1e-5)
    compiled = quick_jit(transform(given))(*args)
    chex.assert_trees_all_close(compiled, got, rtol=1e-5, atol=1e-5)


TRANSFORMS = {
    "value": lambda f: f,
    "grad": lambda f: jax.grad(loss(f), (0, 1, 2)),
    "jvp": lambda f: lambda *args: jax.jvp(f, args, args[::-1]),
    "jacrev": lambda f: jax.jacrev(f, (0, 1)),
    "jacfwd": lambda f: jax.jacfwd(f, (0, 2)),
    "hessian": lambda f: jax.hessian(loss(f), (0, 1)),
    "reverse over reverse": lambda f: jax.jacrev(jax.grad(loss(f), (0, 2)), (0, 1)),
    "reverse over forward": lambda f: jax.grad(
        lambda *args: jax.jvp(loss(f), args, args)[1], (0, 1)
    ),
    "third order": lambda f: jax.jacfwd(
        jax.grad(lambda x, a, b: jnp.sum(jax.grad(loss(f), 1)(x, a, b) ** 2))
    ),
    "remat": lambda f: jax.grad(jax.checkpoint(loss(f)), (0, 1)),
    "transpose of transpose": lambda f: (
        lambda x, a, b: jax.linear_transpose(
            lambda *ct: jax.linear_transpose(lambda a, b: f(x, a, b), a, b)(ct),
            *f(x, a, b),
        )((a, b))
    ),
}


@pytest.mark.parametrize("name", TRANSFORMS)
def test_it_is_transformed_like_its_plain_form(name):
    assert_alike(TRANSFORMS[name], X, A, B)


@pytest.mark.parametrize("axes", [(0, 0, 0), (0, None, 1), (None, 2, None), (1, 0, 2)])
@pytest.mark.parametrize("name", ["value", "grad", "jvp", "hessian"])
def test_vmap(name, axes):
    def batch(v, axis):
        many = jnp.stack([v, 2 * v, v - 1])
        return v if axis is None else jnp.moveaxis(many, 0, axis)

    args = [batch(v, axis) for v, axis in zip((X, A, B), axes, strict=True)]
    assert_alike(lambda f: jax.vmap(TRANSFORMS[name](f), axes), *args)


def test_vmap_twice_and_in_scan():
    many = [jnp.stack([v, v + 1]) for v in (X, A, B)]
    outer = [v[None] for v in many]
    assert_alike(lambda f: jax.vmap(jax.vmap(jax.grad(loss(f)))), *outer)

    def scanned(f):
        def step(carry, v):
            return carry + jax.grad(loss(f))(*v), None

        return lambda *v: jax.lax.scan(step, jnp.zeros_like(X), v)[0]

    assert_alike(scanned, *many)


def test_operands_that_are_left_out_or_not_numbers_of_the_reals():
    def masked(f):
        return jax.grad(lambda x, a, b: loss(f)(x, a, b, X > 0), (0, 1))

    assert_alike(masked, X, A, B)


@pytest.mark.parametrize("check_vma", [True, False])
def test_shard_map(check_vma):
    mesh = jax.make_mesh((4,), ("d",), axis_types=(AxisType.Auto,))
    spec = P("d")

    def sharded(f):
        def local(x, a, b):
            a, b = sharding.vary((a, b), x)
            return jax.tree.map(lambda v: v[None], f(x, a, b))

        mapped = jax.shard_map(
            local,
            mesh=mesh,
            in_specs=(spec, P(), spec),
            out_specs=spec,
            check_vma=check_vma,
        )
        return jax.grad(loss(mapped), (0, 1, 2))

    assert_alike(sharded, X, A[:1], B)


def test_its_types_are_those_of_where_it_is_evaluated():
    """A program traced outside of shard_map does not hide what varies inside."""
    mesh = jax.make_mesh((4,), ("d",), axis_types=(AxisType.Auto,))
    same = linear.Forms(lambda v: (v,))
    program = jax.make_jaxpr(lambda x: linear.call(same, same, (), (x,))[0])(X[:1])

    def local(x):
        return jax.core.eval_jaxpr(program.jaxpr, program.consts, x)[0]

    with pytest.raises(ValueError, match="require replication"):
        jax.shard_map(local, mesh=mesh, in_specs=P("d"), out_specs=P())(X)


def test_each_platform_takes_its_form():
    def text(f, *args, platform):
        exported = export.export(jax.jit(f), platforms=[platform])(*args)
        return exported.mlir_module()

    gradient = jax.grad(loss(given), (1, 2))
    for f, mark in ((given, "3.0"), (gradient, "5.0")):
        assert f"<{mark}" in text(f, X, A, B, platform="cpu")
        for platform in ("cuda", "tpu"):
            assert f"<{mark}" not in text(f, X, A, B, platform=platform)


def test_each_platform_may_have_a_form_of_its_own():
    forms = SUMS._replace(gpu=marked(sums, 6.0), tpu=marked(sums, 7.0))
    marks = {"cpu": "<3.0", "cuda": "<6.0", "rocm": "<6.0", "tpu": "<7.0"}

    def text(platform):
        f = jax.jit(
            lambda x: jax.vmap(lambda x: linear.choose(forms, (x, None, x, x)))(x)
        )
        return export.export(f, platforms=[platform])(X[None]).mlir_module()

    for platform, own in marks.items():
        program = text(platform)
        assert {mark for mark in marks.values() if mark in program} == {own}


def test_programs_whose_arrays_may_be_spread_take_the_forms_for_it():
    def if_spread(n):
        return linear.Forms(marked(sums, 8.0), cpu=marked(sums, float(n)))

    forms = linear.Forms(sums, cpu=marked(sums, 9.0), spread=if_spread)
    mesh = jax.make_mesh((2, 3), ("d", "e"), axis_types=(AxisType.Auto,) * 2)
    sharded = jax.device_put(X, NamedSharding(mesh, P("d")))

    def choose(x):
        return linear.choose(forms, (x, None, x, x))[1]

    def mapped(f, **options):
        return jax.shard_map(f, mesh=mesh, in_specs=P("d"), out_specs=P("d"), **options)

    def taken(f, x):
        text = jax.jit(f).lower(x).as_text()
        return [mark for mark in ("9.0", "2.0", "3.0", "6.0") if f"<{mark}" in text]

    assert taken(choose, X) == ["9.0"]
    assert taken(choose, sharded) == ["6.0"]
    assert taken(jax.vmap(choose), sharded[:, None]) == ["6.0"]
    assert taken(mapped(choose), sharded) == ["9.0"]
    assert taken(mapped(choose, axis_names={"d"}), sharded) == ["3.0"]
    once = jax.jit(choose)
    assert taken(lambda x: (once(x), mapped(once)(x)), sharded) == ["9.0", "6.0"]
    spread = NamedSharding(mesh.abstract_mesh, P("d"))
    x = jax.ShapeDtypeStruct(X.shape, X.dtype, sharding=spread)
    elsewhere = jax.jit(choose).trace(x).lower(lowering_platforms=("cuda",))
    assert "<8.0" in elsewhere.as_text()
    # One traced function, compiled for one device and for six.
    for x in (X, sharded):
        chex.assert_trees_all_close(once(x), sums(X, None, X, X)[1], rtol=1e-5)


def test_one_program_for_several_platforms():
    exported = export.export(jax.jit(given), platforms=["cpu", "cuda"])(X, A, B)
    chex.assert_trees_all_close(exported.call(X, A, B), plain(X, A, B), rtol=1e-5)


def test_without_jit():
    with jax.disable_jit():
        assert_alike(lambda f: jax.grad(loss(f), (0, 1)), X, A, B)


@pytest.mark.parametrize("check_vma", [True, False])
def test_a_form_is_chosen_in_every_shard_of_a_mapped_shard_map(check_vma):
    """There `lax.platform_dependent` cannot be lowered, and `choose` can."""
    mesh = jax.make_mesh((4, 2), ("data", "model"), axis_types=(AxisType.Auto,) * 2)
    x = jnp.stack([X, 2 * X])

    def choose(x):
        return linear.choose(SUMS, (x, None, x, x))[1]

    f = jax.shard_map(
        choose,
        mesh=mesh,
        in_specs=P("data"),
        out_specs=P("data"),
        check_vma=check_vma,
    )
    mapped = jax.jit(jax.vmap(f, spmd_axis_name="model"))
    rows = x.reshape(2, 4, 1, 5)
    expected = jax.vmap(jax.vmap(lambda x: sums(x, None, x, x)[1]))(rows)
    np.testing.assert_allclose(mapped(x), expected.reshape(2, -1), rtol=1e-6)


def test_a_choice_is_differentiated_in_its_plain_form():
    forms = linear.Forms(sums, cpu=marked(sums, 7.0))

    def choose(x):
        return linear.choose(forms, (x, None, x, x))

    def text(f, platform="cpu"):
        return export.export(jax.jit(f), platforms=[platform])(X).mlir_module()

    assert "<7.0" in text(choose)
    assert "<7.0" not in text(choose, "cuda")
    # The derivative of a sum of squares does not need the sum itself.
    gradient = jax.grad(lambda x: choose(x)[0].sum())
    assert "<7.0" not in text(gradient)
    expected = jax.grad(lambda x: sums(x, None, x, x)[0].sum())(X)
    chex.assert_trees_all_close(gradient(X), expected, rtol=1e-5)
