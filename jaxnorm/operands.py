"""What an output is made of, and what becomes of it."""

from typing import Any, NamedTuple

import jax
import numpy as np

from jaxnorm.options import Activation


class Operands(NamedTuple):
    """The arrays that an output depends on, all of the rank of `x`."""

    x: jax.Array
    weights: jax.Array | None
    scale: jax.Array | None
    bias: jax.Array | None
    eps: Any  # a number or an array; in a tangent also None
    add: jax.Array | None = None


class Output(NamedTuple):
    """What becomes of the normalized values. Hashable."""

    dtype: np.dtype
    activation: Activation | None = None
