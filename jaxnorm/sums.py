"""Sums over a large array, and the transposes of what broadcasts over one, in one pass.

A statistic needs the sums of d and d^2, its gradient those of ct and d * ct. XLA:CPU
makes one kernel of each sum, so it reads everything twice, and it writes d to memory in
between. Here the array is cut into slices, which are added up elementwise, both sums at
once as the real and the imaginary part of a complex number. That is one loop, which
reads each array once, in its own dtype, and writes nothing large.

Other platforms fuse the two reductions by themselves, so they take the plain sums. In a
program whose arrays may be spread over devices, slices are of what each device has. The
form is chosen at lowering: one traced program is right everywhere.

The terms of a sum are given as a function of its operands, so that slices are cut from
arrays that are in memory already, not from terms that would have to be written first.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxnorm import linear, sharding, slices
from jaxnorm.slices import Arrays, AxisTuple

Terms = Callable[..., tuple[jax.Array, ...]]


def sum_terms(
    f: Terms,
    operands: Arrays,
    axis: AxisTuple,
    *,
    pack_last_axis: bool = False,
    whole_axis: int | None = None,
) -> tuple[jax.Array, ...]:
    """Return the sums of the arrays f(*operands), one or two, over `axis`, kept.

    Sums along the last axis are left plain unless `pack_last_axis`: XLA:CPU fuses up
    to three of them with the operations around them, if nothing else uses the sums.
    `whole_axis` is one of `axis` that the compiler does not spread over devices.
    """
    cut = slices.cut(operands, axis)
    if cut is None or (cut.along_last_axis and not pack_last_axis):
        return _sum_plainly(f, axis, *operands)
    return linear.choose(_sums(f, axis, whole_axis), operands)


def sum_linear_terms(
    f: Terms, t: jax.Array, operands: Arrays, axis: AxisTuple
) -> tuple[jax.Array, ...]:
    """Return the sums of the arrays f(t, *operands), one or two, linear in `t`.

    The transpose is elementwise. For f(t) = (u * v * t, v * t) it is what `combine`
    computes, (u * p + q) * v.
    """
    if slices.cut((t, *operands), axis) is None:
        return _sum_plainly(f, axis, t, *operands)
    t = sharding.vary(t, *operands)
    count = len(jax.eval_shape(f, t, *operands))
    add_up, broadcast = _sums_and_transpose(f, count, axis, t)
    return linear.call(add_up, broadcast, operands, (t,))


def combine(
    f: Callable[..., tuple[jax.Array, jax.Array | None]],
    operands: Arrays,
    p: jax.Array,
    q: jax.Array | None,
) -> jax.Array:
    """Return (u * p + q) * v for (u, v) = f(*operands); v None is 1, and q None 0.

    Linear in the small `p` and `q`, of the rank of u: the transpose is a pair of sums,
    of u * v * ct and v * ct, or the first of them.
    """

    alone = q is None  # a function that is kept must not refer to what is traced

    def products(t: jax.Array, *operands: Any) -> tuple[jax.Array, ...]:
        u, v = f(*operands)
        t = t if v is None else v * t
        return (u * t,) if alone else (u * t, t)

    given = [p] if q is None else [p, q]
    present = [v for v in (*given, *jax.eval_shape(f, *operands)) if v is not None]
    dtype = jnp.result_type(*(v.dtype for v in present))
    wide = [v.astype(dtype) for v in jnp.broadcast_arrays(*given)]
    # Held last: what marks them as varying is not computed for each element either.
    small = [hold(v) for v in sharding.vary_like(wide, operands)]
    constant = tuple(a for a in range(p.ndim) if small[0].shape[a] == 1)
    like = jax.ShapeDtypeStruct(operands[0].shape, dtype)
    if slices.cut((like, *operands), constant) is None:
        u, v = f(*operands)
        y = u * small[0] if q is None else u * small[0] + small[1]
        return y if v is None else y * v
    add_up, broadcast = _sums_and_transpose(products, len(small), constant, like)
    (combined,) = linear.call(broadcast, add_up, operands, small)
    return combined


def _same(x: jax.Array) -> tuple[jax.Array]:
    return (x,)


def _quotient(x: jax.Array) -> tuple[jax.Array]:
    one = np.ones((), x.dtype)
    return (x / lax.clamp(one, x, one),)


_AS_IT_IS, _HELD = linear.Forms(_same), linear.Forms(_same, cpu=_quotient)


def hold(x: jax.Array) -> jax.Array:
    """Return `x`, of the size of the features, computed once.

    XLA:CPU recomputes a small operand for every element of the large array that it is
    combined with, unless the operand is a quotient. This quotient equals `x`, but XLA
    cannot simplify it: it would have to know that x is not NaN. (An operand of size 1
    along the last axis is computed once per row anyway.)
    """
    return _identity(x, _HELD, _AS_IT_IS)


def hold_cotangent(x: jax.Array) -> jax.Array:
    """Return `x`, but hold its cotangent: for sums, whose transpose is a broadcast."""
    return _identity(x, _AS_IT_IS, _HELD)


def _identity(
    x: jax.Array, forward: linear.Forms, transpose: linear.Forms
) -> jax.Array:
    if not x.ndim or x.shape[-1] == 1 or jnp.iscomplexobj(x):
        return x
    (held,) = linear.call(forward, transpose, (), (x,))
    return held


def _sum_plainly(f: Terms, axis: AxisTuple, *operands: Any) -> tuple[jax.Array, ...]:
    return _sum_each(f(*operands), axis)


def _sum_each(terms: Sequence[jax.Array], axis: AxisTuple) -> tuple[jax.Array, ...]:
    if not axis:  # nothing more for XLA to compile
        return tuple(terms)
    return tuple(jnp.sum(term, axis, keepdims=True) for term in terms)


def _sum_packed(
    f: Terms, axis: AxisTuple, devices: int, whole_axis: int | None, *operands: Any
) -> tuple[jax.Array, ...]:
    """Add up slices as complex numbers: two terms of one slice, or one term of two."""
    cut = slices.cut(operands, axis, devices, whole_axis)
    if cut is None:  # what each of several devices has is short
        return _sum_plainly(f, axis, *operands)
    terms = zip(*(f(*part) for part in cut.slices(operands)), strict=True)
    real, *rest = (cut.each_row_once(term) for term in terms)
    if rest:
        (imaginary,) = rest
    else:
        real, imaginary = real[::2], real[1::2]
        if len(imaginary) < len(real):
            imaginary.append(jnp.zeros_like(real[-1]))
    total = cut.reduce(slices.tree_sum([*map(lax.complex, real, imaginary)]))
    parts = (total.real, total.imag) if rest else (total.real + total.imag,)
    return _sum_each(parts, cut.others(axis))


def _sums(f: Terms, axis: AxisTuple, whole_axis: int | None = None) -> linear.Forms:
    """Return the forms of a sum: packed on CPUs."""
    plain = partial(_sum_plainly, f, axis)

    def packed(devices: int) -> linear.Forms:
        return linear.Forms(
            plain, cpu=partial(_sum_packed, f, axis, devices, whole_axis)
        )

    return packed(1)._replace(spread=packed)


def _sums_and_transpose(
    f: Terms, count: int, axis: AxisTuple, like: jax.Array | jax.ShapeDtypeStruct
) -> tuple[linear.Forms, linear.Forms]:
    """Return the sums of f(t, *operands), linear in `t`; and the transpose.

    `f` returns `count` arrays, and `t` is as `like`. Both take the operands first.
    """
    shape, dtype = like.shape, like.dtype

    def operands_last(add_up: linear.Function) -> linear.Function:
        return lambda *values: add_up(values[-1], *values[:-1])

    def broadcast(*values: Any) -> tuple[jax.Array]:
        operands, small = values[:-count], values[-count:]
        t = lax.full_like(small[0], 0, dtype, shape)  # varies over devices alike
        t = sharding.shard_like(t, operands[0])
        each = tuple(jnp.broadcast_to(v, shape) for v in small)
        each = sharding.shard_like_results(each, f, t, *operands)
        return jax.linear_transpose(lambda t: f(t, *operands), t)(each)

    return _sums(f, axis).map(operands_last), linear.Forms(broadcast)
