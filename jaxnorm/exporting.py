"""State that exported programs take and return, and that can be written to a file."""

from contextlib import suppress
from typing import TypeVar

from jax.export import register_namedtuple_serialization

State = TypeVar("State", bound=type)


def serializable(state: State) -> State:
    """Let `jax.export` serialize programs of a NamedTuple, under its public name."""
    with suppress(ValueError):  # known already, where a module is loaded anew
        register_namedtuple_serialization(
            state, serialized_name=f"jaxnorm.{state.__name__}"
        )
    return state
