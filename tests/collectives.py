"""Collectives, counted in compiled programs and in lowered ones."""

import re
from typing import Any

from benchmarks import costs

STABLEHLO = (
    r"\bstablehlo\.(all_reduce|all_gather|all_to_all|reduce_scatter|collective_permute)"
)


def list_collectives(f: Any, *args: Any) -> list[str]:
    """Return the kinds of the collectives that XLA has compiled `f` into."""
    return costs.list_collectives(f.lower(*args).compile())


def count_collectives(f: Any, *args: Any) -> int:
    """Return how many collectives there are in the compiled `f`."""
    return len(list_collectives(f, *args))


def list_lowered_collectives(text: str) -> list[str]:
    """Return the kinds of the collectives in the text of a StableHLO module."""
    return re.findall(rf"{STABLEHLO}\b", text)
