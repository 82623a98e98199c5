"""The matrix: every way JAX spreads a batch, one answer, on eight devices.

A cell is one way to spread the batch, one place of `jax.grad`, one filling of the
shards, one dtype and one norm. It holds the output, the gradients of x, scale and bias,
and the running statistics, and equals what one device gives on the whole batch. No cell
is impossible in JAX. Two ways ask something of their user, as JAX always does there:
`pmap`, `vmap` and `shard_map(check_vma=False)` leave the gradients of parameters that
are taken inside for the user to sum over the devices.
"""

from functools import cache, partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import jaxnorm as jn
from tests.compiling import quick_jit
from tests.spreading import MODES, PMAP, place, spread
from tests.sync_norms import FEATURES, NORMS

PLACES = ["grad outside", "grad inside"]
FILLINGS = ["equal", "uneven", "one empty", "all empty"]
DTYPES = ["float32", "bfloat16"]

EMPTY_SHARD = slice(6, 8)  # of the 16 positions of which each device holds two

CELLS = [(norm, dtype) for dtype in DTYPES for norm in NORMS]
AXES = {(norm, dtype): NORMS[norm][1] for norm, dtype in CELLS}


def draw(cell, seed, mean, deviation):
    shape = (16, 3, FEATURES) if AXES[cell] == 0 else (3, 16, FEATURES)
    values = np.random.default_rng(seed).normal(mean, deviation, shape)
    return jnp.asarray(values, cell[1])


X = {cell: draw(cell, 0, 3, 2) for cell in CELLS}
CT = {cell: draw(cell, 1, 0, 1) for cell in CELLS}
SCALE, BIAS = np.random.default_rng(2).normal(1, 0.5, (2, FEATURES)).astype(np.float32)
PARAMS = dict.fromkeys(CELLS, (SCALE, BIAS))


def weights(filling):
    """Return weights for every cell; None where all shards are full."""
    if filling == "equal":
        return dict.fromkeys(CELLS)
    rows = np.zeros((16, 3, 1))
    if filling == "uneven":
        rows = np.random.default_rng(3).uniform(0.5, 2, rows.shape)
        rows[2:4, 1:] = rows[5] = 0
    if filling == "one empty":
        rows[:] = 1
        rows[EMPTY_SHARD] = 0
    return {
        cell: jnp.asarray(rows.swapaxes(0, AXES[cell]), jnp.float32) for cell in CELLS
    }


def forward(axis_name, x, weights, params):
    """Run all cells that share a compilation; return outputs and statistics."""
    results = {
        cell: NORMS[cell[0]][0](
            x[cell],
            *params[cell],
            weights=weights[cell],
            axis_name=axis_name,
        )
        for cell in CELLS
    }
    return [{cell: result[i] for cell, result in results.items()} for i in (0, 1)]


def gradients(run, x, ct, weights, params):
    """Return outputs, gradients of x, statistics and gradients of the parameters."""

    def loss(x, params):
        y, stats = run(x, weights, params)
        return sum(jnp.sum(y[cell] * ct[cell], dtype=jnp.float32) for cell in CELLS), (
            y,
            stats,
        )

    (dx, dparams), (y, stats) = jax.grad(loss, (0, 1), has_aux=True)(x, params)
    return y, dx, stats, dparams


def on_each_device(mode, x, ct, weights, params):
    """Take the gradients inside; where JAX leaves their sum to the user, take it."""
    run = partial(forward, mode.axis_name)
    *rest, dparams = gradients(run, x, ct, weights, params)
    return *rest, dparams if mode.sums_gradients else lax.psum(dparams, mode.axis_name)


@cache
def everything(mode, where, filling):
    """Return outputs, gradients and statistics of all cells, as whole arrays."""
    args = X, CT, weights(filling), PARAMS
    if mode is None:
        return quick_jit(partial(gradients, partial(forward, None)))(*args)
    return compiled(mode, where)(*place(mode, args, (AXES, AXES, AXES, None)))


@cache
def compiled(mode, where):
    """Return (x, ct, weights, params) -> results, for all fillings."""
    if where == "grad inside":
        return quick_jit(
            spread(
                mode,
                partial(on_each_device, mode),
                in_axes=(AXES, AXES, AXES, None),
                out_axes=(AXES, AXES, None, None),
            )
        )
    run = spread(
        mode,
        partial(forward, mode.axis_name),
        in_axes=(AXES, AXES, None),
        out_axes=[AXES, None],
    )
    outside = partial(gradients, run)
    return outside if mode is PMAP else quick_jit(outside)  # pmap compiles by itself


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("filling", FILLINGS)
@pytest.mark.parametrize("where", PLACES)
@pytest.mark.parametrize("mode", MODES, ids=str)
def test_matrix(mode, where, filling, dtype, norm):
    cell = norm, dtype
    y, dx, *small = (part[cell] for part in everything(mode, where, filling))
    ey, edx, *esmall = (part[cell] for part in everything(None, None, filling))
    assert y.dtype == dx.dtype == dtype
    # Sums of 144 float32 terms in another order; a bfloat16 output is then rounded.
    rtol = 2e-6 if dtype == "float32" else 2**-8
    chex.assert_trees_all_close((y, dx), (ey, edx), rtol=rtol, atol=1e-5)
    chex.assert_trees_all_close(small, esmall, rtol=2e-6, atol=2e-5)
    if filling == "all empty":
        stats, dparams = small
        assert not any(np.any(leaf) for leaf in jax.tree.leaves((y, dx, dparams)))
        if norm == "batch":
            chex.assert_trees_all_equal(stats, jn.init_stats(FEATURES))
