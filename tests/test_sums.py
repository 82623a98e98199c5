"""The packed sums do what the plain ones do, and only where they may."""

import re

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export
from jax.sharding import PartitionSpec as P

import jaxnorm as jn
from jaxnorm import slices, sums
from tests.collectives import list_collectives
from tests.compiling import quick_jit
from tests.spreading import AUTO, EXPLICIT, MESH, each_kind_of_axes, make_mesh, put

RNG = np.random.default_rng(0)


def terms(x, shift):
    d = x.astype(jnp.float32) - shift
    return d, jnp.square(d)


def packs(f, *args):
    """Whether the program for a CPU holds the complex sums."""
    return "complex<f32>" in jax.jit(f).lower(*args).as_text()


# A shape, the axes to sum over, and whether the sums are packed.
SHAPES = [
    ((16, 5), (0,), True),
    ((2, 3, 4, 5), (0, 1, 2), True),  # merged: 24 rows
    ((3, 5, 7), (0, 1), True),  # 15 rows: single ones
    ((17, 3), (0,), True),  # nine slices of two; the last overlaps another
    ((49, 3), (0,), True),  # an overlap of three of four rows
    ((170, 3), (0,), True),  # slices of twelve: windows of six
    ((2, 320, 3), (1,), True),
    ((1100, 2), (0,), True),  # slices of 70: windows of 14
    ((37 * 16, 2), (0,), True),  # an overlap of eight of 40 rows
    ((16 * 640, 1), (0,), True),  # windows of windows
    ((3, 7), (0,), False),  # too few
    ((3, 4, 4, 2, 4), (1, 2, 4), True),  # groups: merged and last
]
# Along the last axis sums are packed if that is asked for, or in a transpose.
ROWS = [
    ((5, 2), (1,)),
    ((5, 3), (1,)),
    ((16, 8), (1,)),
    ((5, 64), (1,)),
    ((5, 70), (1,)),  # slices of 16, and of 8 in half precision, that overlap
    ((3, 2, 1536), (1, 2)),  # merged and folded
    ((2, 4 * 1009), (1,)),  # folded in four rows of a prime size
    ((2, 1009), (1,)),  # longer slices
]
both_dtypes = pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])


@pytest.mark.parametrize(
    ("shape", "axis", "packed", "rows"),
    [(*case, False) for case in SHAPES] + [(*case, True, True) for case in ROWS],
)
@both_dtypes
def test_sum_terms(shape, axis, packed, rows, dtype):
    x = jnp.asarray(RNG.normal(3, 1, shape), dtype)
    shift = 0.5 * jnp.mean(x, axis, jnp.float32, keepdims=True)

    def f(x, shift):
        return sums.sum_terms(terms, (x, shift), axis, pack_last_axis=rows)

    d = np.asarray(x, np.float64) - np.asarray(shift, np.float64)
    for got, expected in zip(jax.jit(f)(x, shift), (d, d**2), strict=True):
        expected = expected.sum(axis, keepdims=True)
        np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-5)
    assert packs(f, x, shift) == packed


@pytest.mark.parametrize(("shape", "axis"), ROWS)
def test_sums_along_the_last_axis_are_plain_unless_asked_for(shape, axis):
    x = jnp.ones(shape)
    assert not packs(lambda x: sums.sum_terms(terms, (x, x[:1] * 0), axis), x)


ALL = SHAPES + [(*case, True) for case in ROWS]


@pytest.mark.parametrize(("shape", "axis", "packed"), ALL)
@both_dtypes
def test_the_transpose_of_combine_is_a_pair_of_sums(shape, axis, packed, dtype):
    x, ct = RNG.normal(3, 1, (2, *shape)).astype(dtype).astype(np.float32)
    small = tuple(1 if a in axis else n for a, n in enumerate(shape))
    p, q = RNG.normal(size=(2, *small)).astype(np.float32)

    def f(p, q):
        def factors(x):
            x = x.astype(jnp.float32)
            return jnp.sin(x), jnp.cos(x)

        return sums.combine(factors, (jnp.asarray(x, dtype),), p, q)

    u, v = np.sin(x), np.cos(x)
    np.testing.assert_allclose(jax.jit(f)(p, q), (u * p + q) * v, atol=1e-5)
    transpose = jax.linear_transpose(f, p, q)
    for value, expected in zip(
        jax.jit(transpose)(ct), (u * v * ct, v * ct), strict=True
    ):
        expected = expected.astype(np.float64).sum(axis, keepdims=True)
        np.testing.assert_allclose(value, expected, rtol=1e-5, atol=3e-5)
    assert packs(transpose, ct) == packed
    assert not packs(f, p, q)


@pytest.mark.parametrize(("shape", "axis", "packed"), ALL)
@both_dtypes
def test_sums_of_linear_terms_and_their_transpose(shape, axis, packed, dtype):
    x, t = RNG.normal(3, 1, (2, *shape)).astype(dtype).astype(np.float32)
    small = tuple(1 if a in axis else n for a, n in enumerate(shape))
    cts = tuple(RNG.normal(size=(2, *small)).astype(np.float32))

    def f(t):
        def products(t, x):
            return jnp.sin(x.astype(jnp.float32)) * t, t

        return sums.sum_linear_terms(products, t, (jnp.asarray(x, dtype),), axis)

    for value, expected in zip(jax.jit(f)(t), (np.sin(x) * t, t), strict=True):
        expected = expected.astype(np.float64).sum(axis, keepdims=True)
        np.testing.assert_allclose(value, expected, rtol=1e-5, atol=3e-5)
    transpose = jax.linear_transpose(f, t)
    (got,) = jax.jit(transpose)(cts)
    np.testing.assert_allclose(got, np.sin(x) * cts[0] + cts[1], rtol=1e-5, atol=1e-5)
    assert packs(f, t) == packed
    assert not packs(transpose, cts)


# An odd number of slices, one that is even, and along the last axis.
ONE_TERM = [((17, 3), (0,)), ((16, 5), (0,)), ((2, 100), (1,)), ((3, 2, 1536), (1, 2))]


@pytest.mark.parametrize(("shape", "axis"), ONE_TERM)
@both_dtypes
def test_one_term_alone_is_two_slices_at_once(shape, axis, dtype):
    x, t = RNG.normal(3, 1, (2, *shape)).astype(dtype).astype(np.float32)
    small = tuple(1 if a in axis else n for a, n in enumerate(shape))
    p = RNG.normal(size=small).astype(np.float32)
    operands = (jnp.asarray(x, dtype),)

    def square(x):
        return (jnp.square(x.astype(jnp.float32)),)

    def product(t, x):
        return (jnp.sin(x.astype(jnp.float32)) * t,)

    def squares(x):
        return sums.sum_terms(square, (x,), axis, pack_last_axis=True)

    def products(t):
        return sums.sum_linear_terms(product, t, operands, axis)

    def combine(p):
        def factors(x):
            return jnp.sin(x.astype(jnp.float32)), None

        return sums.combine(factors, operands, p, None)

    product_sum = (np.sin(x) * t).sum(axis, np.float64, keepdims=True)
    square_sum = (x.astype(np.float64) ** 2).sum(axis, keepdims=True)
    spread = np.sin(x) * p
    for f, argument, expected, packed in (
        (squares, operands[0], square_sum, True),
        (products, t, product_sum, True),
        (jax.linear_transpose(combine, p), t, product_sum, True),
        (combine, p, spread, False),
        (lambda p: jax.linear_transpose(products, t)((p,)), p, spread, False),
    ):
        (value,) = jax.tree.leaves(jax.jit(f)(argument))
        np.testing.assert_allclose(value, expected, rtol=1e-5, atol=3e-5)
        assert packs(f, argument) == packed


def test_an_operand_may_vary_along_part_of_the_merged_axes():
    x = RNG.normal(size=(4, 8, 3)).astype(np.float32)
    weights = RNG.uniform(size=(4, 1, 1)).astype(np.float32)

    def f(x, weights):
        return sums.sum_terms(lambda x, w: (x * w, w + 0 * x), (x, weights), (0, 1))

    first, second = jax.jit(f)(x, weights)
    np.testing.assert_allclose(first[0, 0], (x * weights).sum((0, 1)), rtol=1e-5)
    np.testing.assert_allclose(second[0, 0], 8 * weights.sum(), rtol=1e-5)
    assert packs(f, x, weights)


@pytest.mark.parametrize("platform", ["cuda", "tpu"])
@pytest.mark.parametrize("axis", [0, 1])
def test_other_platforms_take_plain_sums(platform, axis):
    def f(x):
        first, second = sums.sum_terms(terms, (x, x[:1]), (0,))
        moments = jn.compute_moments(x, axis)
        return first, second, jn.normalize(x, first[0], second[0]), moments

    def text(platform):
        x = jnp.ones((128, 512))
        return export.export(jax.jit(f), platforms=[platform])(x).mlir_module()

    assert "complex<f32>" not in text(platform)
    assert "complex<f32>" in text("cpu")


@each_kind_of_axes
def test_an_array_is_cut_on_any_mesh(mode):
    def f(x):
        return sums.sum_terms(terms, (x, jnp.min(x, 0, keepdims=True)), (0,))[1]

    x = np.ones((64, 4), np.float32)
    assert jax.device_count() > 1
    assert packs(f, x)
    mesh, spec = make_mesh(mode, MESH), P("data")
    sharded = put(mode, x, "data")
    assert packs(f, sharded)
    with jax.set_mesh(mesh):
        assert packs(f, x)
        assert packs(f, sharded)
    assert packs(jax.shard_map(f, mesh=mesh, in_specs=spec, out_specs=spec), sharded)


# A shape, the axes to sum over, how the array is spread; and whether sums are packed.
SPREAD = [
    ((64, 6), (0,), P("data"), True),
    ((64, 6), (0,), P(("data", "model")), True),
    ((64, 6), (0,), P(None, "model"), True),
    ((24, 6), (0,), P("data"), False),  # three rows on each device
    ((16, 6, 6), (0, 1), P("data"), False),
    ((32, 4, 8, 6), (0, 1, 2), P("data", "model"), True),
    ((4, 32, 8, 6), (0, 1, 2), P("data", "model"), True),
    ((4, 8, 40, 6), (1, 2), P("data", "model"), True),
    ((4, 8, 40, 6), (1, 2), P(None, "model", "data"), True),  # five columns on each
    ((4, 8, 48, 6), (1, 2), P("model", None, "data"), True),  # an overlap
    ((8, 64), (1,), P("data"), True),  # rows, of eight columns on each device
    ((8, 64), (1,), P(None, "data"), True),
    ((8, 1024), (1,), P("data", "model"), True),
    ((8, 1000), (1,), P(("data", "model")), True),
    ((4, 2, 512), (0, 2), P(None, "model", "data"), False),
    ((8, 6), (1,), P("data", "model"), True),  # three columns on each
    ((8, 8), (1,), P("data"), False),
]


@pytest.mark.parametrize(
    ("mode", "dtype"),
    [(AUTO, jnp.float32), (AUTO, jnp.bfloat16), (EXPLICIT, jnp.float32)],
    ids=str,
)
@pytest.mark.parametrize(("shape", "axis", "spec", "packed"), SPREAD)
def test_slices_are_of_what_each_device_has(shape, axis, spec, packed, mode, dtype):
    """However it is spread. What is exchanged is what plain sums exchange."""
    values = jnp.asarray(RNG.normal(3, 1, (2, *shape)), dtype)
    x, t = (put(mode, v, *spec) for v in values)
    shift = jnp.full((1,) * len(shape), 3.0)

    def products(t, x, shift):
        return t * terms(x, shift)[0], t.astype(jnp.float32)

    def two_sums(x, t):
        return sums.sum_terms(terms, (x, shift), axis, pack_last_axis=True)

    def linear_sums(x, t):
        return sums.sum_linear_terms(products, t.astype(jnp.float32), (x, shift), axis)

    plain_sums = quick_jit(lambda x: sums._sum_plainly(terms, axis, x, shift))
    exchanged = list_collectives(plain_sums, x)
    x64, t64 = (np.asarray(v, np.float64) for v in values)
    d = x64 - 3
    for f, each in ((two_sums, (d, d**2)), (linear_sums, (t64 * d, t64))):
        assert packs(f, x, t) == packed
        run = quick_jit(f)
        assert list_collectives(run, x, t) == exchanged
        for got, term in zip(run(x, t), each, strict=True):
            expected = term.sum(axis, keepdims=True)
            np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-4)


def test_an_axis_that_is_known_to_be_whole_is_not_folded():
    x = jnp.ones((8, 32, 7, 3))
    cut = slices.cut((x,), (1, 2), devices=8, whole_axis=1)
    assert (cut.group, cut.fold) == ((1,), 1)
    assert slices.cut((x,), (1, 2), devices=8).group == (2,)
    assert slices.cut((x,), (1,), devices=8) is None  # four rows on each device


@pytest.mark.parametrize("row", [256, 512, 1024, 2048, 4096])
@pytest.mark.parametrize("length", [1568, 4096, 6272, 25_088, 100_352])
def test_slices_do_not_crowd_the_lines_of_a_cache(length, row):
    """At most eight of them begin at the same place of a page of 4096 bytes."""
    cut = slices.cut((jax.ShapeDtypeStruct((length, row // 4), jnp.float32),), (0,))
    starts = [i * cut.slice_rows * row % 4096 for i in range(cut.num_slices)]
    assert max(map(starts.count, starts)) <= 8


def test_a_row_in_two_slices_is_left_out_of_one():
    """It is not multiplied by 0, which would make a NaN of an infinite value."""
    x = np.ones((17, 3), np.float32)
    x[15] = np.inf  # in two slices
    first, second = jax.jit(lambda x: sums.sum_terms(terms, (x, x[:1]), (0,)))(x)
    np.testing.assert_array_equal((first, second), np.full((2, 1, 3), np.inf))


def test_what_is_held_is_as_it_was():
    x = jnp.asarray([0.0, -0.0, 1e-37, -3.4e38, 0.1, jnp.nan, jnp.inf, -jnp.inf])
    held = jax.jit(sums.hold)(x)
    np.testing.assert_array_equal(np.signbit(held), np.signbit(x))
    np.testing.assert_array_equal(held, x)
    chex.assert_trees_all_equal(jax.jacfwd(sums.hold)(x[:5]), jnp.eye(5))
    chex.assert_trees_all_equal(jax.jacrev(sums.hold)(x[:5]), jnp.eye(5))
    chex.assert_trees_all_equal(jax.vmap(sums.hold)(x[:4].reshape(2, 2)).ravel(), x[:4])


def test_what_is_held_is_computed_once():
    """Its own kernel, and not a part of the loop over the large array."""

    def f(x, small):
        return x * sums.hold(small * 3 + 1)

    text = jax.jit(f).lower(jnp.ones((64, 32)), jnp.ones((1, 32))).compile().as_text()
    (loop,) = re.findall(r"ROOT .* = f32\[64,32\].* fusion\((.*?)\)", text)
    assert len(loop.split(",")) == 2
    assert re.search(r"= f32\[1,32\].* divide\(", text)


@pytest.mark.parametrize("seed", range(4))
def test_several_axes_are_as_accurate_far_from_zero(seed):
    """Of values with outliers in a corner, by packed sums."""
    z = np.random.default_rng(seed).standard_normal((3, 7, 9, 8))
    z.reshape(3, -1, 8)[:, :12] += 50
    x = (z + 1e6).astype(np.float32)
    axis = (1, 2, 3)
    exact = x.astype(np.float64)
    centered = exact - exact.mean(axis, keepdims=True)
    expected = centered / np.sqrt(exact.var(axis, keepdims=True) + 1e-12)
    got = jn.layer_norm(jnp.asarray(x), axis=axis, eps=1e-12)
    error = np.abs(got - expected) / np.maximum(1, np.abs(expected))
    assert np.max(error) <= 5e-7
