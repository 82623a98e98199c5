"""Derivatives against finite differences, as compiled programs; and in float64."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.test_util import check_jvp, check_vjp

from tests.compiling import quick_jit


def check_grads(
    f: Callable[..., Any], args: tuple[Any, ...], order: int, **tolerances: float
) -> None:
    """Make the checks of `jax.test_util.check_grads`, but compile what they run."""

    def pull(args: tuple[Any, ...], cotangent: Any) -> Any:
        y, vjp = jax.vjp(f, *args)
        return y, vjp(cotangent)

    def pull_own_output(*args: Any) -> Any:
        y, vjp = jax.vjp(f, *args)
        return vjp(y)

    args = tuple(args)
    run, push, pull = map(quick_jit, (f, partial(jax.jvp, f), pull))

    def vjp(*args: Any) -> Any:
        y, _ = pull(args, run(*args))
        return y, lambda cotangent: pull(args, cotangent)[1]

    check_jvp(run, push, args, **tolerances)
    check_vjp(run, vjp, args, **tolerances)
    if order > 1:
        check_grads(partial(jax.jvp, f), (args, args), order - 1, **tolerances)
        check_grads(pull_own_output, args, order - 1, **tolerances)


def in_float64(f: Callable[..., Any], *arrays: Any) -> Any:
    """Run `f`, compiled, under x64 on the same values."""
    with jax.enable_x64(True):
        cast = [None if a is None else jnp.asarray(a, jnp.float64) for a in arrays]
        return jax.tree.map(np.asarray, quick_jit(f)(*cast))


def gradients(f: Callable[..., Any], cotangent: Any) -> Callable[..., Any]:
    """Return the function that pulls `cotangent` back to x, scale and bias."""

    def pull(x: Any, scale: Any, bias: Any, weights: Any = None) -> Any:
        y, vjp = jax.vjp(lambda *args: f(*args, weights), x, scale, bias)
        return vjp(jnp.asarray(cotangent, y.dtype))

    return pull
