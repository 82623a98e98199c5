"""Norms whose statistics are of one example: layer, RMS, group and instance norm.

They hold no state and do the same in training and in evaluation. They differ only in
which axes are reduced together.
"""

from __future__ import annotations

import jax
from jax.typing import ArrayLike, DTypeLike

from jaxnorm import arguments, axes, options
from jaxnorm.axes import Axes, AxisName
from jaxnorm.normalization import normalize_by_moments
from jaxnorm.norms.checks import check_operands
from jaxnorm.operands import Operands, Output
from jaxnorm.options import Activation
from jaxnorm.reduction import Reduction


def layer_norm(
    x: ArrayLike,
    scale: ArrayLike | None = None,
    bias: ArrayLike | None = None,
    *,
    axis: Axes = -1,
    eps: ArrayLike = 1e-5,
    weights: ArrayLike | None = None,
    axis_name: AxisName | None = None,
    dtype: DTypeLike | None = None,
) -> jax.Array:
    """Normalize over the features of every example.

        y = scale * (x - mean) / sqrt(var + eps) + bias

    with mean and (biased) variance over `axis`.

    Args:
      x: array of a floating-point or complex dtype, any rank.
      scale: gamma; a scalar, the sizes of `axis`, in increasing order of these axes, or
        any shape of the rank of `x` that broadcasts to it. None is 1.
      bias: beta, in the same shapes. None is 0.
      axis: axis or axes that are normalized together.
      eps: added to the variance; positive.
      weights: bool mask or non-negative weights that broadcast to `x`. Elements of
        weight 0 have no influence on others. Where all that is normalized together has
        weight 0, the output is 0.
      axis_name: device axis, or axes, over which `axis` is spread.
      dtype: dtype of the output; None is that of `x`. Computed in at least float32.

    Returns:
      Array of the shape of `x`; NaN where the sum of squares overflows float32 (0 in
      half precision, if the last axis is reduced). In bfloat16, unless it is
      differentiated, the mean is not corrected for its rounding to float32: a constant
      row gives up to |mean| * 1e-7 / sqrt(eps) instead of 0.

    Raises:
      TypeError: if `x` is neither floating-point nor complex, `weights` are neither
        bool nor real, a parameter is complex though `x` is real, `dtype` cannot hold
        the output, or `eps` is not a number.
      ValueError: if shapes disagree, an axis does not exist, `axis_name` is not bound,
        `weights` are negative or not finite, or could be meant for the first axes as
        well as for the last, or `eps` is not positive.

    Example:
      >>> import jax.numpy as jnp
      >>> import jaxnorm as jn
      >>> print(jn.layer_norm(jnp.array([[1.0, 3.0], [10.0, 30.0]])).round(3))
      [[-1.  1.]
       [-1.  1.]]

    Reference:
      Ba, Kiros and Hinton, Layer normalization, 2016, arXiv:1607.06450.
    """
    caller = "layer_norm"
    x = arguments.check_input(x, caller=caller)
    reduced = axes.canonicalize_axes(axis, x.ndim, caller=caller, name="axis")
    operands = check_operands(
        x, reduced, reduced, scale, bias, weights=weights, eps=eps, caller=caller
    )
    return _normalize(operands, Reduction(reduced, axis_name), dtype, caller)


def rms_norm(
    x: ArrayLike,
    scale: ArrayLike | None = None,
    *,
    axis: Axes = -1,
    eps: ArrayLike = 1e-5,
    weights: ArrayLike | None = None,
    axis_name: AxisName | None = None,
    dtype: DTypeLike | None = None,
) -> jax.Array:
    """Divide every example by its root mean square.

        y = scale * x / sqrt(mean(|x|^2) + eps)

    Args:
      x: array of a floating-point or complex dtype, any rank.
      scale: gamma; a scalar, the sizes of `axis`, in increasing order of these axes, or
        any shape of the rank of `x` that broadcasts to it. None is 1.
      axis: axis or axes that are normalized together.
      eps: added to the mean square; positive.
      weights: bool mask or non-negative weights that broadcast to `x`; as in
        `layer_norm`.
      axis_name: device axis, or axes, over which `axis` is spread.
      dtype: dtype of the output; None is that of `x`. Computed in at least float32.

    Returns:
      Array of the shape of `x`; NaN where the sum of squares overflows float32 (0 in
      half precision, if the last axis is reduced).

    Raises:
      TypeError: if `x` is neither floating-point nor complex, `weights` are neither
        bool nor real, a parameter is complex though `x` is real, `dtype` cannot hold
        the output, or `eps` is not a number.
      ValueError: if shapes disagree, an axis does not exist, `axis_name` is not bound,
        `weights` are negative or not finite, or could be meant for the first axes as
        well as for the last, or `eps` is not positive.

    Example:
      >>> import jax.numpy as jnp
      >>> import jaxnorm as jn
      >>> print(jn.rms_norm(jnp.array([[3.0, 4.0, 0.0, 0.0]])).round(3))
      [[1.2 1.6 0.  0. ]]

    Reference:
      Zhang and Sennrich, Root mean square layer normalization, 2019, arXiv:1910.07467.
    """
    caller = "rms_norm"
    x = arguments.check_input(x, caller=caller)
    reduced = axes.canonicalize_axes(axis, x.ndim, caller=caller, name="axis")
    operands = check_operands(
        x, reduced, reduced, scale, None, weights=weights, eps=eps, caller=caller
    )
    over = Reduction(reduced, axis_name, centered=False)
    return _normalize(operands, over, dtype, caller)


def group_norm(
    x: ArrayLike,
    scale: ArrayLike | None = None,
    bias: ArrayLike | None = None,
    *,
    num_groups: int,
    feature_axis: int = -1,
    eps: ArrayLike = 1e-5,
    weights: ArrayLike | None = None,
    axis_name: AxisName | None = None,
    activation: Activation | None = None,
    add: ArrayLike | None = None,
    dtype: DTypeLike | None = None,
) -> jax.Array:
    """Normalize groups of channels of every example.

        y = activation(scale * (x - mean) / sqrt(var + eps) + bias + add)

    with mean and (biased) variance over all spatial axes and the neighbouring channels
    of a group. Axis 0 is the batch, unless it is the feature axis; pass a single
    example, also under `vmap`, as `x[None]`.

    Args:
      x: array of a floating-point or complex dtype, any rank.
      scale: gamma; a scalar, the number of channels, or any shape of the rank of `x`
        that broadcasts to it. None is 1.
      bias: beta, in the same shapes. None is 0.
      num_groups: number of groups, a divisor of the number of channels.
      feature_axis: the axis of channels.
      eps: added to the variance; positive.
      weights: bool mask or non-negative weights that broadcast to `x`; as in
        `layer_norm`, but `add` and the activation apply to the 0 of an empty group.
      axis_name: device axis, or axes, over which an example is spread (space, not
        channels).
      activation: "relu", "silu" or "gelu" (its tanh approximation), applied to the
        output; None is the identity. The backward pass keeps nothing for it, but
        recomputes the output from `x`.
      add: array of the shape of `x` that is added before the activation; the other
        branch of a residual block. None is 0.
      dtype: dtype of the output; None is that of `x`. Computed in at least float32.

    Returns:
      Array of the shape of `x`; NaN where the sum of squares overflows float32 (0 in
      half precision, if the last axis is reduced).

    Raises:
      TypeError: if `x` is neither floating-point nor complex, `weights` are neither
        bool nor real, a parameter is complex though `x` is real, `dtype` cannot hold
        the output, `activation` is given for complex `x`, or `eps` is not a number.
      ValueError: if `num_groups` does not divide the channels, shapes disagree,
        `axis_name` is not bound, `weights` are negative or not finite, or could be
        meant for the first axes as well as for the last, `eps` is not positive, or
        `activation` is unknown.

    Example:
      >>> import jax.numpy as jnp
      >>> import jaxnorm as jn
      >>> x = jnp.array([[1.0, 3.0, 10.0, 30.0]])
      >>> print(jn.group_norm(x, num_groups=2).round(3))
      [[-1.  1. -1.  1.]]

    Reference:
      Wu and He, Group normalization, 2018, arXiv:1803.08494.
    """
    caller = "group_norm"
    x = arguments.check_input(x, caller=caller)
    features, spatial = axes.spatial_axes(feature_axis, x.shape, caller=caller)
    channel = axes.single_axis(features, caller=caller)
    groups = axes.check_groups(x.shape[channel], num_groups, caller=caller)
    operands = check_operands(
        x,
        features,
        (channel, *spatial),
        scale,
        bias,
        weights=weights,
        eps=eps,
        add=add,
        caller=caller,
    )
    over = Reduction(spatial, axis_name, channel_groups=(channel, groups))
    return _normalize(operands, over, dtype, caller, activation)


def instance_norm(
    x: ArrayLike,
    scale: ArrayLike | None = None,
    bias: ArrayLike | None = None,
    *,
    feature_axis: Axes = -1,
    eps: ArrayLike = 1e-5,
    weights: ArrayLike | None = None,
    axis_name: AxisName | None = None,
    dtype: DTypeLike | None = None,
) -> jax.Array:
    """Normalize every channel of every example over space.

        y = scale * (x - mean) / sqrt(var + eps) + bias

    with mean and (biased) variance over all axes but the batch and the features. Axis 0
    is the batch, unless it is a feature axis; pass a single example, also under `vmap`,
    as `x[None]`.

    Args:
      x: array of a floating-point or complex dtype with at least one spatial axis.
      scale: gamma; a scalar, the sizes of `feature_axis`, in increasing order of these
        axes, or any shape of the rank of `x` that broadcasts to it. None is 1.
      bias: beta, in the same shapes. None is 0.
      feature_axis: axis, or axes, of channels.
      eps: added to the variance; positive.
      weights: bool mask or non-negative weights that broadcast to `x`; as in
        `layer_norm`.
      axis_name: device axis, or axes, over which space is spread.
      dtype: dtype of the output; None is that of `x`. Computed in at least float32.

    Returns:
      Array of the shape of `x`; NaN where the sum of squares overflows float32 (0 in
      half precision, if the last axis is reduced).

    Raises:
      TypeError: if `x` is neither floating-point nor complex, `weights` are neither
        bool nor real, a parameter is complex though `x` is real, `dtype` cannot hold
        the output, or `eps` is not a number.
      ValueError: if there is no spatial axis, shapes disagree, `axis_name` is not
        bound, `weights` are negative or not finite, or could be meant for the first
        axes as well as for the last, or `eps` is not positive.

    Example:
      >>> import jax.numpy as jnp
      >>> import jaxnorm as jn
      >>> x = jnp.array([[[1.0, 10.0], [3.0, 30.0]]])
      >>> print(jn.instance_norm(x).round(3))
      [[[-1. -1.]
        [ 1.  1.]]]

    Reference:
      Ulyanov, Vedaldi and Lempitsky, Instance normalization, 2016, arXiv:1607.08022.
    """
    caller = "instance_norm"
    x = arguments.check_input(x, caller=caller)
    features, spatial = axes.spatial_axes(feature_axis, x.shape, caller=caller)
    operands = check_operands(
        x, features, spatial, scale, bias, weights=weights, eps=eps, caller=caller
    )
    return _normalize(operands, Reduction(spatial, axis_name), dtype, caller)


def _normalize(
    operands: Operands,
    over: Reduction,
    dtype: DTypeLike | None,
    caller: str,
    activation: Activation | None = None,
) -> jax.Array:
    """Check what all of these norms share, and normalize."""
    dtype = options.check_dtype(dtype, operands.x, caller=caller)
    activation = options.check_activation(activation, operands.x, caller=caller)
    axes.check_axis_name(over.axis_name, None, caller=caller)
    axes.check_reduced(operands.x, over.all_axes, over.axis_name, caller=caller)
    output = Output(dtype, activation)
    return normalize_by_moments(operands, over, output, moments_used=False)[0]
