"""Reparametrized kernels: weight norm, weight standardization, spectral norm.

They normalize a kernel before it is used, whatever the layer: a kernel in, a kernel
out. The optimizer keeps the kernel it was given, and gradients pass through. Norms are
computed in at least float32.
"""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import ArrayLike, DTypeLike

from jaxnorm import arguments, axes, options
from jaxnorm.affine import Operands, Output
from jaxnorm.axes import Axes
from jaxnorm.measuring import Reduction
from jaxnorm.normalization import normalize_by_moments
from jaxnorm.shifted import square


class SpectralStats(NamedTuple):
    """What spectral norm carries from step to step.

    Attributes:
      u: estimate of the singular vector on the side of the features, of unit length.
      sigma: estimate of the largest singular value; a scalar.
    """

    u: jax.Array
    sigma: jax.Array


def weight_norm(
    kernel: ArrayLike,
    scale: ArrayLike | None = None,
    *,
    feature_axis: Axes | None = -1,
    eps: ArrayLike = 1e-12,
    dtype: DTypeLike | None = None,
) -> jax.Array:
    r"""Give the weights of every feature a length of their own, apart from direction.

    .. math::
      w = g \frac{v}{\sqrt{\lVert v \rVert_2^2 + \epsilon}}

    Args:
      kernel: v, of a floating-point or complex dtype, any rank.
      scale: g; the sizes of `feature_axis`, or any shape of the rank of `kernel` that
        broadcasts to it. None is 1.
      feature_axis: axis, or axes, that keep a length of their own; the length is over
        all others. None takes the length of the whole kernel.
      eps: added to the squared length; positive.
      dtype: dtype of the output; None is that of `kernel`.

    Returns:
      Array of the shape of `kernel`.

    Raises:
      TypeError: if `kernel` is neither floating-point nor complex.
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
    eps = options.check_eps(eps, caller=caller)
    features, reduced = _split_axes(kernel, feature_axis, caller)
    scale = arguments.expand_parameter(
        scale, kernel, features, caller=caller, name="scale", of="kernel"
    )
    v = kernel.astype(arguments.statistics_dtype(kernel.dtype))
    scale = arguments.widen(scale, kernel)
    w = v * lax.rsqrt(jnp.sum(square(v), reduced, keepdims=True) + eps)
    return (w if scale is None else w * scale).astype(dtype)


def weight_standardization(
    kernel: ArrayLike,
    scale: ArrayLike | None = None,
    *,
    feature_axis: Axes | None = -1,
    eps: ArrayLike = 1e-5,
    dtype: DTypeLike | None = None,
) -> jax.Array:
    r"""Give the weights of every feature mean 0 and variance 1.

    .. math::
      w = g \frac{v - \mu}{\sqrt{\sigma^2 + \epsilon}}

    Args:
      kernel: v, of a floating-point or complex dtype, any rank.
      scale: g; the sizes of `feature_axis`, or any shape of the rank of `kernel` that
        broadcasts to it. None is 1; 1 / sqrt(fan_in) keeps the variance of the input.
      feature_axis: axis, or axes, that keep statistics of their own; None is one set
        for the whole kernel.
      eps: added to the variance; positive.
      dtype: dtype of the output; None is that of `kernel`.

    Returns:
      Array of the shape of `kernel`.

    Raises:
      TypeError: if `kernel` is neither floating-point nor complex.
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
    axes.check_reduced(kernel, reduced, None, caller=caller)
    scale = arguments.expand_parameter(
        scale, kernel, features, caller=caller, name="scale", of="kernel"
    )
    operands = Operands(kernel, None, scale, None, eps)
    return normalize_by_moments(
        operands, Reduction(reduced), Output(dtype, moments_used=False)
    )[0]


def init_spectral_stats(
    key: jax.Array, num_features: int, *, dtype: DTypeLike = jnp.float32
) -> SpectralStats:
    """Return a random direction and a singular value of 1.

    Args:
      key: random key.
      num_features: size of the feature axis of the kernel.
      dtype: dtype of both; a floating-point one.

    Returns:
      SpectralStats with `u` of shape (num_features,).

    Raises:
      TypeError: if `num_features` is not an integer, or `dtype` not floating-point.
      ValueError: if `num_features` is below 1.

    Example:
      >>> import jax
      >>> import jaxnorm as jn
      >>> jn.init_spectral_stats(jax.random.key(0), 3).u.shape
      (3,)
    """
    caller = "init_spectral_stats"
    if not isinstance(num_features, int | np.integer):
        raise TypeError(
            f"{caller}: num_features must be an integer. Received "
            f"{type(num_features).__name__}; pass the size of the feature axis, "
            "kernel.shape[-1]."
        )
    if num_features < 1:
        raise ValueError(
            f"{caller}: num_features must be at least 1. Received "
            f"num_features={num_features}; pass kernel.shape[-1]."
        )
    if not jnp.issubdtype(dtype, jnp.floating):
        raise TypeError(
            f"{caller}: dtype must be floating-point. Received "
            f"{jnp.dtype(dtype).name}; the usual one is float32."
        )
    u = jax.random.normal(key, (num_features,), dtype)
    return SpectralStats(_unit(u, 0.0), jnp.ones((), dtype))


def spectral_norm(
    kernel: ArrayLike,
    stats: SpectralStats,
    *,
    training: bool | jax.Array,
    n_steps: int = 1,
    eps: ArrayLike = 1e-12,
    feature_axis: int = -1,
    dtype: DTypeLike | None = None,
) -> tuple[jax.Array, SpectralStats]:
    r"""Divide a kernel by its largest singular value.

    .. math::
      w = \frac{v}{\sigma}, \quad \sigma = b^T V a, \quad
      b \leftarrow \frac{V a}{\lVert V a \rVert}, \quad
      a \leftarrow \frac{V^T b}{\lVert V^T b \rVert}

    V is the kernel as a matrix, a is `stats.u`, and the arrows are one step of power
    iteration. No gradient passes through a and b. A kernel of zeros stays as it is.

    Args:
      kernel: v, of a floating-point dtype and rank 2 or more; axes other than
        `feature_axis` become the rows of V.
      stats: from `init_spectral_stats` or the previous step.
      training: whether to return the new `stats`, or `stats` unchanged. A Python bool,
        or a traced one. The power iteration runs in both, so the output is the same.
        (PyTorch does not iterate in evaluation.)
      n_steps: steps of power iteration, at least 1.
      eps: added to squared lengths; positive.
      feature_axis: the axis of the features.
      dtype: dtype of the output; None is that of `kernel`.

    Returns:
      The kernel divided by sigma, and the new statistics.

    Raises:
      TypeError: if `kernel` is not floating-point, or `training` is not a bool.
      ValueError: if `kernel` has rank below 2, `stats.u` has another size than
        `feature_axis`, `n_steps` is below 1, or `eps` is not positive.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> import jaxnorm as jn
      >>> stats = jn.init_spectral_stats(jax.random.key(0), 2)
      >>> kernel, stats = jn.spectral_norm(4 * jnp.eye(2), stats, training=True)
      >>> print(stats.sigma.round(3))
      4.0

    Reference:
      Miyato, Kataoka, Koyama and Yoshida, Spectral normalization for generative
      adversarial networks, 2018, arXiv:1802.05957.
    """
    caller = "spectral_norm"
    kernel = arguments.check_input(kernel, caller=caller, name="kernel")
    dtype = options.check_dtype(dtype, kernel, caller=caller)
    eps = options.check_eps(eps, caller=caller)
    training = options.check_training(training, caller=caller)
    features, _ = _split_axes(kernel, feature_axis, caller)
    axis = axes.single(features, caller=caller)
    _check_spectral(kernel, stats, axis, n_steps, caller)

    v = kernel.astype(arguments.statistics_dtype(kernel.dtype))
    matrix = jnp.moveaxis(v, axis, -1).reshape(-1, v.shape[axis])
    # The singular vectors are constants: sigma is linear in the kernel, and this is
    # its derivative where they are exact.
    constant = lax.stop_gradient(matrix)
    right = lax.stop_gradient(stats.u).reshape(-1).astype(v.dtype)
    left = jnp.zeros(0, v.dtype)
    for _ in range(n_steps):
        left = _unit(constant @ right, eps)
        right = _unit(left @ constant, eps)
    sigma = left @ matrix @ right
    new = SpectralStats(
        right.reshape(stats.u.shape).astype(stats.u.dtype),
        lax.stop_gradient(sigma).astype(stats.sigma.dtype),
    )
    stats = jax.tree.map(lambda a, b: jnp.where(training, a, b), new, stats)
    return (v / jnp.where(sigma != 0, sigma, 1)).astype(dtype), stats


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


def _unit(vector: jax.Array, eps: ArrayLike) -> jax.Array:
    return vector * lax.rsqrt(jnp.sum(square(vector)) + eps)


def _check_spectral(
    kernel: jax.Array, stats: Any, axis: int, n_steps: int, caller: str
) -> None:
    if jnp.iscomplexobj(kernel):
        raise TypeError(
            f"{caller}: kernel must be real. Received {kernel.dtype}; normalize its "
            "real and imaginary parts, as one real kernel."
        )
    if kernel.ndim < 2:
        raise ValueError(
            f"{caller}: kernel must have rank 2 or more. Received shape {kernel.shape};"
            " biases and scales have no singular values to divide by."
        )
    if not isinstance(n_steps, int | np.integer) or n_steps < 1:
        raise ValueError(
            f"{caller}: n_steps must be an integer, at least 1. Received "
            f"n_steps={n_steps}; the usual value is 1."
        )
    if not isinstance(stats, SpectralStats):
        raise TypeError(
            f"{caller}: stats must be a SpectralStats. Received "
            f"{type(stats).__name__}; start with init_spectral_stats(key, "
            f"{kernel.shape[axis]})."
        )
    if math.prod(jnp.shape(stats.u)) != kernel.shape[axis]:
        raise ValueError(
            f"{caller}: stats.u must have one value per feature. Received stats.u with "
            f"shape {jnp.shape(stats.u)} for a kernel of shape {kernel.shape} with "
            f"features along axis {axis}; use init_spectral_stats(key, "
            f"{kernel.shape[axis]})."
        )
