"""What a compiled program costs, as its compiler counts it: the same on every run."""

import re
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax

from benchmarks.shapes import Case, Mode

COLLECTIVE = re.compile(
    r"= .*\b(all-reduce|all-gather|all-to-all|reduce-scatter|collective-permute)"
    r"(?:-start)?\("
)


class Costs(NamedTuple):
    """Deterministic costs; None where the backend, or the mode, has no such number.

    Attributes:
      bytes_per_element: bytes that the kernels read and write, per element of x.
      residual_per_input: bytes kept from the forward for the backward pass, per byte
        of x; the gradients are those for x, scale and bias.
      temp_bytes: memory beside arguments and results.
      collectives: operations that talk to other devices.
    """

    bytes_per_element: float | None
    residual_per_input: float | None
    temp_bytes: int | None
    collectives: int


def measure_costs(
    case: Case,
    mode: Mode,
    function: Callable[..., Any],
    compiled: Any,
    arrays: Sequence[jax.Array],
) -> Costs:
    """Look into a compiled program and into the residuals of its function."""
    # The program of several devices is that of each of them, for its share of x.
    share = case.size // case.devices
    accessed = bytes_accessed(compiled)
    memory = compiled.memory_analysis()
    residual = None
    if mode == "vjp":
        residual = residual_bytes(function, arrays) / arrays[0].nbytes
    return Costs(
        bytes_per_element=None if accessed is None else accessed / share,
        residual_per_input=residual,
        temp_bytes=None if memory is None else memory.temp_size_in_bytes,
        collectives=len(list_collectives(compiled)),
    )


def bytes_accessed(compiled: Any) -> float | None:
    """Return the bytes that a compiled program reads and writes."""
    analysis = compiled.cost_analysis() or {}
    return analysis.get("bytes accessed")


def list_collectives(compiled: Any) -> list[str]:
    """Return the operations of a compiled program that talk to other devices."""
    return COLLECTIVE.findall(compiled.as_text())


def residual_bytes(function: Callable[..., Any], arrays: Sequence[Any]) -> int:
    """Return the bytes that the backward pass of `function(...)[0]` keeps.

    They are the leaves of the function that `jax.vjp` returns; one array that is kept
    twice counts once. Gradients are those for the first three arguments.
    """
    x, scale, bias, *rest = arrays[:5]

    def residuals(x, scale, bias, *rest):
        _, pull_back, _ = jax.vjp(
            lambda *p: function(*p, *rest), x, scale, bias, has_aux=True
        )
        return jax.tree.leaves(pull_back)

    jaxpr = jax.make_jaxpr(residuals)(x, scale, bias, *rest).jaxpr
    kept = {id(var): var.aval for var in jaxpr.outvars}
    return sum(aval.size * aval.dtype.itemsize for aval in kept.values())
