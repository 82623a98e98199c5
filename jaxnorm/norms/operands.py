"""What the norms are called with, checked."""

import jax
from jax.typing import ArrayLike

from jaxnorm import arguments, options
from jaxnorm.affine import Operands


def check_operands(
    x: jax.Array,
    features: tuple[int, ...],
    scale: ArrayLike | None,
    bias: ArrayLike | None,
    *,
    weights: ArrayLike | None,
    eps: ArrayLike,
    add: ArrayLike | None = None,
    kept: tuple[int, ...],
    caller: str,
) -> Operands:
    """Return the operands, all of the rank of `x`.

    Scale and bias are of `features`; `kept` axes have statistics of their own.
    """
    return Operands(
        x,
        arguments.expand_weights(weights, x, kept=kept, caller=caller),
        arguments.expand_parameter(scale, x, features, caller=caller, name="scale"),
        arguments.expand_parameter(bias, x, features, caller=caller, name="bias"),
        options.check_eps(eps, caller=caller),
        arguments.check_add(add, x, caller=caller),
    )
