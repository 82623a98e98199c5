"""Derivatives against finite differences, as compiled programs."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
from jax.test_util import check_jvp, check_vjp

# Each program runs a few times on a few numbers: code for it is made fast, not well.
# What XLA does to the program itself, such as fusing, stays as it is.
quick_jit = partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


def check_grads(
    f: Callable[..., Any], args: tuple[Any, ...], order: int, **tolerances: float
) -> None:
    """Check as `jax.test_util.check_grads` does, which runs `f` without jit.

    All that it looks at is looked at here, for a fraction of the programs to compile.
    """

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
