"""State types that `jax.export` can serialize."""

from contextlib import suppress
from typing import TypeVar

from jax.export import register_namedtuple_serialization

State = TypeVar("State", bound=type)


def serializable(state: State) -> State:
    """Let `jax.export` serialize programs of a NamedTuple, under its public name."""
    with suppress(ValueError):  # registered already, if a module is reloaded
        register_namedtuple_serialization(
            state, serialized_name=f"jaxnorm.{state.__name__}"
        )
    return state
