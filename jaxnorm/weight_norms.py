"""Reparametrized kernels: weight norm and weight standardization.

They normalize the kernel of any layer before it is used: a kernel in, a kernel out. The
optimizer updates the original kernel, and gradients pass through. Norms are computed in
at least float32.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike, DTypeLike

from jaxnorm import arguments, axes, dtypes, options
from jaxnorm.arithmetic import show_overflow, square
from jaxnorm.axes import Axes
from jaxnorm.normalization import normalize_by_moments
from jaxnorm.operands import Operands, Output
from jaxnorm.reduction import Reduction


def weight_norm(
    kernel: ArrayLike,
    scale: ArrayLike | None = None,
    *,
    feature_axis: Axes | None = -1,
    eps: ArrayLike = 1e-12,
    dtype: DTypeLike | None = None,
) -> jax.Array:
    """Give the weights of every feature a length that is learned separately.

        w = scale * kernel / sqrt(sum(|kernel|^2) + eps)

    Args:
      kernel: array of a floating-point or complex dtype, any rank.
      scale: a scalar, the sizes of `feature_axis`, or any shape of the rank of
        `kernel` that broadcasts to it. None is 1.
      feature_axis: axis, or axes, that keep a length of their own; the length is over
        all others. None takes the length of the whole kernel.
      eps: added to the squared length; positive.
      dtype: dtype of the output; None is that of `kernel`.

    Returns:
      Array of the shape of `kernel`.

    Raises:
      TypeError: if `kernel` is neither floating-point nor complex, `scale` is complex
        though it is real, `dtype` cannot hold the output, or `eps` is not a number.
      ValueError: if an axis does not exist, `scale` does not fit, or `eps` is not
        positive.

    Example:
      >>> import jax.numpy as jnp
      >>> import jaxnorm as jn
      >>> kernel = jnp.array([[3.0, 0.0], [4.0, 2.0]])
      >>> print(jn.weight_norm(kernel, jnp.array([1.0, 5.0])).round(3))
      [[0.6 0. ]
       [0.8 5. ]]

    Reference:
      Salimans and Kingma, Weight normalization, 2016, arXiv:1602.07868.
    """
    caller = "weight_norm"
    kernel = arguments.check_input(kernel, caller=caller, name="kernel")
    dtype = options.check_dtype(dtype, kernel, caller=caller)
    eps = options.check_eps(eps, caller=caller, usual="1e-12")
    features, reduced = _split_axes(kernel, feature_axis, caller)
    scale = arguments.expand_parameter(
        scale, kernel, features, caller=caller, name="scale", of="kernel"
    )
    v = kernel.astype(dtypes.statistics_dtype(kernel.dtype))
    scale = dtypes.widen(scale, kernel)
    squares = show_overflow(jnp.sum(square(v), reduced, keepdims=True))
    w = v * lax.rsqrt(squares + eps)
    return (w if scale is None else w * scale).astype(dtype)


def weight_standardization(
    kernel: ArrayLike,
    scale: ArrayLike | None = None,
    *,
    feature_axis: Axes | None = -1,
    eps: ArrayLike = 1e-5,
    dtype: DTypeLike | None = None,
) -> jax.Array:
    """Give the weights of every feature mean 0 and variance 1.

        w = scale * (kernel - mean) / sqrt(var + eps)

    Args:
      kernel: array of a floating-point or complex dtype, any rank.
      scale: a scalar, the sizes of `feature_axis`, or any shape of the rank of
        `kernel` that broadcasts to it. None is 1; 1 / sqrt(fan_in) keeps the variance
        of the input.
      feature_axis: axis, or axes, that keep statistics of their own; None is one set
        for the whole kernel.
      eps: added to the variance; positive.
      dtype: dtype of the output; None is that of `kernel`.

    Returns:
      Array of the shape of `kernel`.

    Raises:
      TypeError: if `kernel` is neither floating-point nor complex, `scale` is complex
        though it is real, `dtype` cannot hold the output, or `eps` is not a number.
      ValueError: if an axis does not exist, nothing is left to reduce, `scale` does not
        fit, or `eps` is not positive.

    Example:
      >>> import jax.numpy as jnp
      >>> import jaxnorm as jn
      >>> print(jn.weight_standardization(jnp.array([[1.0, 0.0], [3.0, 8.0]])).round(3))
      [[-1. -1.]
       [ 1.  1.]]

    Reference:
      Qiao, Wang, Liu, Shen and Yuille, Micro-batch training with batch-channel
      normalization and weight standardization, 2019, arXiv:1903.10520.
    """
    caller = "weight_standardization"
    kernel = arguments.check_input(kernel, caller=caller, name="kernel")
    dtype = options.check_dtype(dtype, kernel, caller=caller)
    eps = options.check_eps(eps, caller=caller)
    features, reduced = _split_axes(kernel, feature_axis, caller)
    mend = "keep an axis out of feature_axis"
    axes.check_reduced(kernel, reduced, None, caller=caller, name="kernel", mend=mend)
    scale = arguments.expand_parameter(
        scale, kernel, features, caller=caller, name="scale", of="kernel"
    )
    operands = Operands(kernel, None, scale, None, eps)
    over, output = Reduction(reduced), Output(dtype)
    return normalize_by_moments(operands, over, output, moments_used=False)[0]


def _split_axes(
    kernel: jax.Array, feature_axis: Axes | None, caller: str
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return the feature axes and all others."""
    features = axes.canonicalize_axes(
        () if feature_axis is None else feature_axis,
        kernel.ndim,
        caller=caller,
        name="feature_axis",
    )
    return features, axes.complement(features, kernel.ndim)
