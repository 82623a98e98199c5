"""Which dtype statistics, and the parameters that meet them, are computed in."""

from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

Parameter = TypeVar("Parameter", jax.Array, jax.Array | None)


def statistics_dtype(dtype: Any) -> np.dtype:
    """Return the dtype that statistics of `dtype` input are computed in."""
    return np.promote_types(dtype, np.float32)


def is_half(x: jax.Array) -> bool:
    """Whether the elements of `x` have fewer than 32 bits."""
    return x.dtype.itemsize < 4


def widen(parameter: Parameter, x: jax.Array) -> Parameter:
    """Return a parameter with at least the precision that `x` is computed in."""
    if parameter is None:
        return None
    real = jnp.finfo(statistics_dtype(x.dtype)).dtype
    inexact = jnp.issubdtype(parameter.dtype, jnp.inexact)
    dtype = np.promote_types(parameter.dtype, real) if inexact else real
    return parameter.astype(dtype)
