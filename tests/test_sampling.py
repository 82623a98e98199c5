"""The sample that a shift is taken from: what is in it, and what reading it costs."""

import math
import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

import jaxnorm as jn
from benchmarks import costs
from jaxnorm.sampling import approximate_mean
from tests.conftest import every_platform
from tests.spreading import AUTO, EXPLICIT, make_mesh

RNG = np.random.default_rng(0)
both_dtypes = pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16], ids=str)


@pytest.mark.parametrize(
    ("rows", "dtype", "size"),
    [
        (3, jnp.float32, 0),
        (6, jnp.float32, 0),
        (8, jnp.float32, 1),
        (49, jnp.float32, 3),
        (49, jnp.bfloat16, 1),
        (800, jnp.float32, 40),
        (20000, jnp.float32, 1000),
        (20000, jnp.bfloat16, 162),
    ],
)
def test_packed_slices_are_from_four_places(rows, dtype, size):
    x = np.sort(RNG.normal(5, 1, (rows, 3)), 0).astype(dtype)
    assert approximate_mean(jnp.asarray(x), (0,))[1] == (size == 0)
    near = jax.jit(lambda x: approximate_mean(x, (0,))[0])(x)
    x, is_mean = x.astype(np.float32), size == 0
    taken = np.concatenate([x[i * (rows // 4) :][:size] for i in range(4)])
    expected = x if is_mean else taken
    np.testing.assert_allclose(near[0], expected.mean(0, np.float64), rtol=1e-6)


# A shape, the axes, and slices: of float32 on a GPU, of bfloat16 on a GPU and a TPU.
SLICES = [
    ((800, 3), (0,), np.s_[:200], np.s_[:25], np.s_[:25]),
    ((64, 28, 28, 3), (0, 1, 2), np.s_[:16], np.s_[:2], np.s_[:, :1]),
    ((32, 7, 7, 3), (0, 1, 2), np.s_[:8], np.s_[:1], np.s_[:, :1]),
    ((3, 31, 9, 2), (0, 1, 2), np.s_[:1], np.s_[:1], np.s_[:, :1]),
    ((2, 40, 6, 3), (1, 2), np.s_[:, :10], np.s_[:, :2], np.s_[:, :2]),
    ((2, 3, 40, 3), (0, 1, 2), np.s_[:, :1], np.s_[:, :1], np.s_[:, :1]),
    ((4, 400), (1,), np.s_[:], np.s_[:], np.s_[:]),
    ((4, 20, 30), (1, 2), np.s_[:], np.s_[:], np.s_[:]),
]


@pytest.mark.parametrize("platform", ["gpu", "tpu"], indirect=True)
@both_dtypes
@pytest.mark.parametrize(("shape", "axis", "wide", "on_gpu", "on_tpu"), SLICES)
def test_one_slice_elsewhere(shape, axis, dtype, wide, on_gpu, on_tpu, platform):
    """Or all of it: of rows, and of float32 on a TPU."""
    x = jnp.asarray(RNG.integers(0, 16, shape), dtype)  # whose sums are exact
    taken = {
        ("gpu", jnp.float32): wide,
        ("gpu", jnp.bfloat16): on_gpu,
        ("tpu", jnp.float32): np.s_[:],
        ("tpu", jnp.bfloat16): on_tpu,
    }[platform, dtype]
    f = jax.jit(lambda x: approximate_mean(x, axis, pack_last_axis=True)[0])
    expected = np.asarray(x, np.float64)[taken].mean(axis, keepdims=True)
    np.testing.assert_allclose(f(x), expected, rtol=1e-6)


@pytest.mark.parametrize("mode", [AUTO, EXPLICIT], ids=str)
def test_of_rows_that_are_spread_each_part_has_its_own(mode):
    """Nothing is exchanged for it, and not all of the rows are read."""
    mesh = make_mesh(mode)
    x = RNG.normal(5, 1, (64, 6, 3)).astype(np.float32)
    sharded = jax.device_put(x, NamedSharding(mesh, P("data")))
    parts = x.reshape(8, 8, 6, 3)[:, :2].mean((1, 2), np.float64, keepdims=True)

    def f(x):
        split = jax.lax.reshape(
            x,
            (8, 8, 6, 3),
            out_sharding=NamedSharding(mesh, P("data")) if mode is EXPLICIT else None,
        )
        return approximate_mean(split, (1, 2), whole_axis=1)[0]

    np.testing.assert_allclose(jax.jit(f)(sharded), parts, rtol=1e-6)
    text = jax.jit(f).lower(sharded).compile().as_text()
    assert not re.search("all-|collective", text)


@pytest.mark.parametrize(
    ("shape", "whole_axis", "taken", "spread"),
    [
        (shape, whole_axis, taken, axis)
        for shape, whole_axis, taken, may_be_spread in [
            ((8, 40, 160, 3), None, np.s_[:, :, ::5], (0, 1, 2)),  # of folds of twenty
            ((8, 40, 160, 3), 1, np.s_[:, np.r_[0:2, 10:12, 20:22, 30:32]], (0, 2)),
            ((8, 40, 6, 3), None, np.s_[:], (0, 1)),  # slices would be most of a fold
            ((8, 8, 6, 3), 1, np.s_[:, :2], (0,)),
        ]
        for axis in may_be_spread
    ],
)
def test_packed_slices_of_what_is_spread(shape, whole_axis, taken, spread):
    """They are of each fold, which is on one device. Only their sums are exchanged."""
    x = RNG.normal(5, 1, shape).astype(np.float32)
    sharding = NamedSharding(make_mesh(AUTO), P(*[None] * spread, "data"))
    sharded = jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)
    f = jax.jit(lambda x: approximate_mean(x, (1, 2), whole_axis=whole_axis)[0])
    compiled = f.lower(sharded).compile()
    assert set(costs.list_collectives(compiled)) == (
        {"all-reduce"} if spread else set()
    )
    expected = x[taken].mean((1, 2), np.float64, keepdims=True)
    np.testing.assert_allclose(compiled(jax.device_put(x, sharding)), expected, 1e-6)


@both_dtypes
def test_of_float32_several_tpus_read_all_rows_too(dtype):
    spread = NamedSharding(make_mesh(AUTO), P("data"))
    x = jax.device_put(np.ones((64, 6, 3), dtype), spread)
    norm = jax.jit(partial(jn.batch_norm, training=True))
    program = norm.trace(x, jn.init_stats(3)).lower(lowering_platforms=("tpu",))
    sliced = re.search(r"stablehlo\.slice .*tensor<8x8x6x3x", program.as_text())
    assert bool(sliced) == (dtype == jnp.bfloat16)


@every_platform
@pytest.mark.parametrize("shape", [(0, 3), (3, 0), (1, 1), (5,)])
def test_small_and_empty_arrays(shape, platform):
    x = np.ones(shape, np.float32)
    near = jax.jit(lambda x: approximate_mean(x, (0,))[0])(x)
    expected = np.ones((1, *shape[1:])) if shape[0] else np.full((1, 3), np.nan)
    np.testing.assert_array_equal(near, expected)


def program(f, x, platform):
    """Return what a program does with arrays of the size of `x`, by its operations."""
    text = export.export(jax.jit(f), platforms=[platform])(x).mlir_module()
    types = re.findall(r"stablehlo\.(\w+) [^\n]*? : .*?tensor<([\dx]*)x\w+>", text)
    large = x.size // 8
    return [op for op, sizes in types if math.prod(map(int, sizes.split("x"))) > large]


@both_dtypes
@pytest.mark.parametrize("platform", ["cuda", "tpu"])
@pytest.mark.parametrize("shape", [(32, 28, 28, 16), (8192, 16)])
def test_elsewhere_the_input_is_sliced_in_place(shape, platform, dtype):
    """On a TPU a reshape would be a copy, and on a GPU every slice is a kernel."""
    x = jnp.ones(shape, dtype)
    norm = partial(jn.batch_norm, stats=jn.init_stats(16), training=True)
    operations = program(lambda x: norm(x)[0], x, platform)
    whole = platform == "tpu" and dtype == jnp.float32
    assert operations.count("slice") == (0 if whole else 1)
    assert not {"reshape", "concatenate", "complex"} & set(operations)


@pytest.mark.parametrize("platform", ["cuda", "tpu"])
def test_rows_are_read_whole(platform):
    """On a GPU their sums and the output are then one kernel."""
    assert "slice" not in program(jn.layer_norm, jnp.ones((64, 512)), platform)
