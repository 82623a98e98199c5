"""What the modules are called with: the input, its axes, parameters, flags."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike, DTypeLike

from jaxnorm import arguments, axes, options
from jaxnorm.axes import Axes


@contextmanager
def errors_named(label: str) -> Iterator[None]:
    """Put the module's name where the core's errors name their function."""
    try:
        yield
    except (TypeError, ValueError) as error:
        name, _, text = str(error).partition(": ")
        if name not in ("batch_norm", "spectral_norm", "weight_norm"):
            raise  # JAX's or Python's
        raise type(error)(f"{label}: {text}") from None


def check_input(label: str, x: ArrayLike, dtype: DTypeLike | None) -> jax.Array:
    """Return `x` as an array, complex where the output is to be."""
    x = arguments.check_input(x, caller=label)
    if dtype is not None and jnp.issubdtype(dtype, jnp.complexfloating):
        return x.astype(jnp.promote_types(dtype, x.dtype))
    return x


def axes_of(label: str, x: jax.Array, given: Axes, name: str) -> tuple[int, ...]:
    """Return axes as sorted, non-negative integers."""
    return axes.canonicalize_axes(given, x.ndim, caller=label, name=name)


def sizes_of(x: jax.Array, features: tuple[int, ...]) -> tuple[int, ...]:
    """Return the sizes of the feature axes, the shape of parameters."""
    return tuple(x.shape[axis] for axis in features)


def check_num_features(
    label: str, x: jax.Array, features: tuple[int, ...], num_features: int
) -> None:
    """Raise unless `x` has the features that an nnx module was built for."""
    if math.prod(sizes_of(x, features)) != num_features:
        raise ValueError(
            f"{label}: num_features must be {axes.sizes_in_words(features)} of x. "
            f"Received x with shape {x.shape} for num_features={num_features}; build "
            "the module for this input, or name other axes."
        )


def parameter(
    label: str,
    name: str,
    x: jax.Array,
    features: tuple[int, ...],
    own: jax.Array | None,
    given: ArrayLike | None,
) -> jax.Array | None:
    """Return the module's own scale or bias, or the one given at call time.

    It has the rank of `x`, and its own dtype, which that of the output may depend on.
    `own` is None where the module has none.
    """
    if own is not None and given is not None:
        raise ValueError(
            f"{label}: a {name} given at call time takes the place of the module's own."
            f" Received both; build the module with use_{name}=False."
        )
    if own is not None:
        given = own.reshape(sizes_of(x, features))
    return arguments.expand_parameter(given, x, features, caller=label, name=name)


def weights_of(
    label: str, x: jax.Array, mask: ArrayLike | None, reduced: tuple[int, ...]
) -> jax.Array | None:
    """Give a mask the rank of `x`: floats are weights, integers bools, as in Flax."""
    if mask is None:
        return None
    array = arguments.as_array(mask, caller=label, name="mask")
    if jnp.issubdtype(array.dtype, jnp.integer):
        array = array.astype(bool)
    return arguments.expand_weights(
        array, x, reduced=reduced, caller=label, name="mask"
    )


def check_flag(label: str, name: str, value: Any, *, mend: str) -> bool | jax.Array:
    """Return a Python bool, or a traced boolean scalar. 0 and 1 count, as in Flax."""
    value = bool(value) if isinstance(value, int) and value in (0, 1) else value
    return options.check_flag(value, caller=label, name=name, mend=mend)


def training_of(label: str, use_running_average: Any) -> bool | jax.Array:
    """Return whether a BatchNorm trains: the opposite of Flax's flag."""
    evaluating = check_flag(
        label,
        "use_running_average",
        use_running_average,
        mend="a mask is given by name, mask=...",
    )
    return ~evaluating if isinstance(evaluating, jax.Array) else not evaluating
