"""After the mean is subtracted: scale, bias, residual branch, activation."""

from typing import Any

import jax
import jax.numpy as jnp

from jaxnorm import sums
from jaxnorm.operands import Output
from jaxnorm.options import ACTIVATIONS
from jaxnorm.shifted import ShiftedMoments

# With so many float32 channels or fewer, LLVM compiles x * a + b to loads and stores by
# turns, which is slow. A second product avoids that.
FEW_CHANNELS = 64


def affine(
    centered: jax.Array,
    inverse: jax.Array,
    scale: jax.Array | None,
    bias: jax.Array | None,
    *,
    half: bool,
) -> jax.Array:
    """Return centered * inverse * scale + bias; `half` is that of the input's dtype.

    The mean is subtracted first: x * a + (bias - mean * a) would cancel where the mean
    is large. The order of factors is the one that is fastest on a CPU.
    """
    if scale is None:
        y = centered * inverse
    elif constant_within_sets(inverse, scale) and (
        half or not _has_few_channels(centered)
    ):
        y = centered * sums.hold(inverse * scale)
    elif half and bias is None:
        y = centered * (inverse * scale)
    else:
        y = centered * inverse * scale
    return y if bias is None else y + bias


def _has_few_channels(x: jax.Array) -> bool:
    channels = x.shape[-1] if x.ndim else 1
    known = isinstance(channels, int)  # or symbolic, in jax.export
    return known and channels <= FEW_CHANNELS


def gain_and_offset(
    moments: ShiftedMoments,
    inverse: jax.Array,
    scale: jax.Array | None,
    bias: jax.Array | None,
) -> tuple[jax.Array, jax.Array]:
    """Return the factor and the offset of (d - mean) * inverse * scale + bias.

    No digits are lost: the mean of d is at most a few standard deviations. Both are 0
    for an empty set.
    """
    gain = times(inverse, scale)
    offset = -moments.mean * gain if bias is None else bias - moments.mean * gain
    some = moments.count > 0
    return sums.hold(jnp.where(some, gain, 0)), sums.hold(jnp.where(some, offset, 0))


def constant_within_sets(inverse: jax.Array, *parameters: jax.Array | None) -> bool:
    """Whether parameters are constant over what is normalized together."""
    return all(
        p is None
        or all(m in (1, n) for m, n in zip(p.shape, inverse.shape, strict=True))
        for p in parameters
    )


def finish(y: jax.Array, add: jax.Array | None, output: Output) -> jax.Array:
    """Add the other branch, apply the activation, and round to the output's dtype."""
    y = plus(y, add)
    if output.activation is not None:
        y = ACTIVATIONS[output.activation](y)
    return y.astype(output.dtype)


def times(value: Any, factor: jax.Array | None) -> Any:
    """Return the product, where None is 1 (and a value of None is 0)."""
    return value if value is None or factor is None else value * factor


def plus(value: jax.Array, add: jax.Array | None) -> jax.Array:
    """Return the sum, where None is 0, in the dtype of `value`."""
    return value if add is None else value + add.astype(value.dtype)
