"""Arithmetic that is right at the edges: empty sets, complex numbers, overflow."""

import jax
import jax.numpy as jnp
from jax import lax

from jaxnorm import linear


def reciprocal(count: jax.Array) -> jax.Array:
    """Return 1 / count, and 0 where count is 0."""
    empty = count == 0
    return jnp.where(empty, 0, 1 / jnp.where(empty, 1, count))


def square(x: jax.Array) -> jax.Array:
    """Return |x|^2, real also for complex input, smooth at 0."""
    return inner(x, x)


def inner(x: jax.Array, y: jax.Array) -> jax.Array:
    """Return the real part of conj(x) * y."""
    if jnp.iscomplexobj(x) or jnp.iscomplexobj(y):
        return x.real * y.real + x.imag * y.imag
    return x * y


def show_overflow(squares: jax.Array) -> jax.Array:
    """Turn an infinite sum of squares into NaN: its inverse root, 0, would hide it.

    A remainder uses the sum once, so that XLA:GPU still makes one kernel of rows and
    their root mean square. On CPUs it is slow, and of TPUs it is not known to be exact.
    """
    forms = linear.Forms(_sum_with_zero, gpu=_remainder)
    return linear.choose(forms, (squares,))[0]


def _remainder(v: jax.Array) -> tuple[jax.Array]:
    return (lax.rem(v, lax.full_like(v, jnp.inf)),)


def _sum_with_zero(v: jax.Array) -> tuple[jax.Array]:
    return (v + 0 * v,)


def settle(shift: jax.Array) -> jax.Array:
    """Return `shift`, if finite, such that all that uses it sees it rounded alike.

    XLA recomputes a value where it is used, and may fuse its last product with a
    subtraction there, without rounding it. Deviations and moments would then refer to
    shifts that are half a unit in the last place apart, which at mean/std = 1e6 is 3%
    of std. A maximum in between prevents it (optimization_barrier is dropped on CPU).
    """
    if jnp.iscomplexobj(shift):
        return lax.complex(settle(shift.real), settle(shift.imag))
    return jnp.maximum(shift, jnp.finfo(shift.dtype).min)
