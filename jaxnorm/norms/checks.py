"""What the norms are called with, checked."""

import jax
from jax.typing import ArrayLike

from jaxnorm import arguments, options
from jaxnorm.operands import Operands


def check_operands(
    x: jax.Array,
    features: tuple[int, ...],
    reduced: tuple[int, ...],
    scale: ArrayLike | None,
    bias: ArrayLike | None,
    *,
    weights: ArrayLike | None,
    eps: ArrayLike,
    add: ArrayLike | None = None,
    caller: str,
) -> Operands:
    """Return the operands, all of the rank of `x`.

    Scale and bias are of `features`; statistics are taken over `reduced` axes.
    """
    return Operands(
        x,
        arguments.expand_weights(weights, x, reduced=reduced, caller=caller),
        arguments.expand_parameter(scale, x, features, caller=caller, name="scale"),
        arguments.expand_parameter(bias, x, features, caller=caller, name="bias"),
        options.check_eps(eps, caller=caller),
        arguments.check_add(add, x, caller=caller),
    )
