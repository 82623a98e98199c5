"""Compilation in a hurry, for programs that run once on a few numbers.

They are asked whether transformations, devices and dtypes go together, and compared
with what another way of the same gives. The machine code is made fast and runs slowly,
and a few last digits differ. What shows how accurate a norm is, how many bytes it moves
and how many collectives it takes is compiled as users compile it.
"""

from collections.abc import Callable
from functools import cache
from typing import Any

import jax

WISHES = [
    {"xla_backend_optimization_level": 0},
    {"xla_cpu_use_fusion_emitters": False},  # JAX 0.12 has no others
]


@cache
def quick_options() -> dict[str, Any]:
    """Return the options of the compiler that this version of it knows."""
    program = jax.jit(lambda: 0).lower()
    known: dict[str, Any] = {}
    for wish in WISHES:
        try:
            program.compile(compiler_options=wish)
        except jax.errors.JaxRuntimeError:
            continue
        known |= wish
    return known


def quick_jit(f: Callable[..., Any], **options: Any) -> Any:
    """Return `f` under `jax.jit`, compiled in a hurry."""
    return jax.jit(f, compiler_options=quick_options(), **options)
