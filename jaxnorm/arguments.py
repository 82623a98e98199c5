"""What arguments must be: dtypes, shapes and numbers, and what they are made to be."""

from collections.abc import Collection
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike


def statistics_dtype(dtype: Any) -> np.dtype:
    """Return the dtype that statistics of `dtype` input are computed in."""
    return jnp.promote_types(dtype, jnp.float32)


def check_input(x: ArrayLike, *, caller: str) -> jax.Array:
    """Return `x` as an array of floating-point or complex dtype."""
    array = jnp.asarray(x)
    if not jnp.issubdtype(array.dtype, jnp.inexact):
        raise TypeError(
            f"{caller}: x must have a floating-point or complex dtype. Received "
            f"{array.dtype} with shape {array.shape}; convert it first, for example "
            "x.astype(jnp.float32)."
        )
    return array


def check_dtype(dtype: Any, x: jax.Array, *, caller: str) -> np.dtype:
    """Return the dtype of the output: `dtype`, or that of `x` where it is None."""
    if dtype is None:
        return x.dtype
    kind = jnp.complexfloating if jnp.iscomplexobj(x) else jnp.inexact
    if not jnp.issubdtype(dtype, kind):
        raise TypeError(
            f"{caller}: dtype must be able to hold the output. Received "
            f"dtype={jnp.dtype(dtype).name} for an input of {x.dtype}; pass a "
            f"{'complex' if jnp.iscomplexobj(x) else 'floating-point'} dtype, or None "
            "for that of the input."
        )
    # Under disabled x64, asking for float64 means float32, as everywhere in JAX.
    return jax.dtypes.canonicalize_dtype(dtype)


def check_eps(eps: ArrayLike, *, caller: str) -> ArrayLike:
    """Return `eps` if it is positive; traced values are trusted."""
    if not isinstance(eps, jax.core.Tracer) and not np.all(np.asarray(eps) > 0):
        raise ValueError(
            f"{caller}: eps must be positive, or a constant input would be divided by "
            f"zero. Received eps={eps}; the usual value is 1e-5."
        )
    return eps


def check_decay(decay: ArrayLike | None, *, caller: str) -> ArrayLike | None:
    """Return `decay` if it lies in [0, 1] or is None; traced values are trusted."""
    if decay is None or isinstance(decay, jax.core.Tracer):
        return decay
    value = np.asarray(decay)
    if value.dtype.kind not in "fiu" and value.dtype != jnp.bfloat16:
        raise TypeError(
            f"{caller}: decay must be a number in [0, 1], or None for the equal-weight "
            f"average. Received decay={decay!r}."
        )
    if not np.all((value >= 0) & (value <= 1)):
        raise ValueError(
            f"{caller}: decay must lie in [0, 1]: it is the weight of the old running "
            f"value. Received decay={decay}; PyTorch's momentum=0.1 is decay=0.9, and "
            "None is the equal-weight average."
        )
    return decay


def check_ddof(ddof: int, *, caller: str) -> int:
    """Return `ddof` if it is 0 or 1."""
    if ddof not in (0, 1):
        raise ValueError(
            f"{caller}: ddof must be 0 (biased running variance) or 1 (unbiased, as in "
            f"PyTorch). Received ddof={ddof!r}."
        )
    return int(ddof)


def check_training(training: bool | jax.Array, *, caller: str) -> bool | jax.Array:
    """Return `training` as a Python bool, or as a traced boolean scalar."""
    if isinstance(training, bool | np.bool_):
        return bool(training)
    if (
        isinstance(training, jax.Array)
        and training.shape == ()
        and training.dtype == bool
    ):
        return training
    raise TypeError(
        f"{caller}: training must be True, False or a boolean scalar array. Received "
        f"training={training!r}; there is no default, so that nothing is evaluated "
        "with batch statistics, or trained with running ones, by accident."
    )


def expand_parameter(
    parameter: ArrayLike | None,
    x: jax.Array,
    axes: tuple[int, ...],
    *,
    caller: str,
    name: str,
) -> jax.Array | None:
    """Give a scale, bias, mean or variance the rank of `x`.

    Accepted are a scalar, the sizes of `axes` of `x`, or any shape of the rank of
    `x` that broadcasts to it.
    """
    if parameter is None:
        return None
    array = jnp.asarray(parameter)
    if not jnp.issubdtype(array.dtype, jnp.number):
        raise TypeError(f"{caller}: {name} must hold numbers. Received {array.dtype}.")
    if jnp.iscomplexobj(array) and not jnp.iscomplexobj(x):
        raise TypeError(
            f"{caller}: {name} must be real for real x. Received {name} of "
            f"{array.dtype} for x of {x.dtype}; convert x to a complex dtype."
        )
    sizes = tuple(x.shape[axis] for axis in axes)
    if array.shape == sizes:
        shape = tuple(x.shape[axis] if axis in axes else 1 for axis in range(x.ndim))
        return array.reshape(shape)
    if array.ndim == 0:
        return array.reshape((1,) * x.ndim)
    if array.ndim == x.ndim and _broadcasts(array.shape, x.shape):
        return array
    raise ValueError(
        f"{caller}: {name} must have shape {sizes}, the sizes of axes {axes} of x, or "
        f"the rank of x and broadcast to it. Received {name} with shape {array.shape} "
        f"for x with shape {x.shape}; reshape {name}, or name other axes."
    )


def expand_weights(
    weights: ArrayLike | None, x: jax.Array, *, caller: str
) -> jax.Array | None:
    """Give weights the rank of `x` by NumPy's broadcasting rules."""
    if weights is None:
        return None
    array = jnp.asarray(weights)
    if jnp.iscomplexobj(array):
        raise TypeError(
            f"{caller}: weights must be bool or real. Received {array.dtype}."
        )
    shape = (1,) * (x.ndim - array.ndim) + array.shape
    if array.ndim > x.ndim or not _broadcasts(shape, x.shape):
        raise ValueError(
            f"{caller}: weights must broadcast to x. Received weights with shape "
            f"{array.shape} for x with shape {x.shape}; a mask of the batch has shape "
            f"{(x.shape[:1] + (1,) * (x.ndim - 1))}."
        )
    if array.dtype == bool:
        return array.reshape(shape)
    if not isinstance(array, jax.core.Tracer) and np.any(np.asarray(array) < 0):
        raise ValueError(
            f"{caller}: weights must not be negative. Received a smallest weight of "
            f"{np.min(array)}; a weight of 0 leaves an element out."
        )
    return array.astype(jnp.finfo(statistics_dtype(x.dtype)).dtype).reshape(shape)


def check_activation(
    activation: str | None, x: jax.Array, known: Collection[str], *, caller: str
) -> str | None:
    """Return the name of an activation that is known, and applies to `x`."""
    if activation is not None and activation not in known:
        raise ValueError(
            f"{caller}: activation must be None or one of {', '.join(known)}. Received "
            f"activation={activation!r}; apply any other to the output."
        )
    if activation is not None and jnp.iscomplexobj(x):
        raise TypeError(
            f"{caller}: activation={activation!r} needs real input. Received {x.dtype}."
        )
    return activation


def check_add(add: ArrayLike | None, x: jax.Array, *, caller: str) -> jax.Array | None:
    """Return what is added to the output, if it has the shape of `x`."""
    if add is None:
        return None
    array = jnp.asarray(add)
    if array.shape != x.shape:
        raise ValueError(
            f"{caller}: add must have the shape of x. Received add with shape "
            f"{array.shape} for x with shape {x.shape}; broadcast it first."
        )
    if jnp.iscomplexobj(array) and not jnp.iscomplexobj(x):
        raise TypeError(
            f"{caller}: add must be real where x is. Received {array.dtype} for x of "
            f"{x.dtype}."
        )
    return array


def check_stats(
    stats: Any, x: jax.Array, features: tuple[int, ...], *, caller: str
) -> None:
    """Raise unless running statistics fit the features of `x`."""
    if not all(hasattr(stats, name) for name in ("mean", "var", "weight")):
        raise TypeError(
            f"{caller}: stats must be a NormStats. Received {type(stats).__name__}; "
            "start with jaxnorm.init_stats(num_features)."
        )
    sizes = tuple(x.shape[axis] for axis in features)
    if stats.mean.shape != sizes or stats.var.shape != sizes:
        raise ValueError(
            f"{caller}: stats must have shape {sizes}, the sizes of feature axes "
            f"{features} of x. Received stats.mean with shape {stats.mean.shape} and "
            f"stats.var with shape {stats.var.shape} for x with shape {x.shape}; use "
            f"jaxnorm.init_stats({sizes[0] if len(sizes) == 1 else sizes}), or another "
            "feature_axis."
        )
    if jnp.iscomplexobj(x) and not jnp.iscomplexobj(stats.mean):
        raise TypeError(
            f"{caller}: complex input has a complex mean. Received x of {x.dtype} and "
            f"stats.mean of {stats.mean.dtype}; use jaxnorm.init_stats(..., "
            f"dtype={x.dtype})."
        )


def check_update(stats: Any, moments: Any, *, caller: str) -> None:
    """Raise unless the moments of a batch fit the running statistics."""
    shape = stats.mean.shape
    for name, leaf in zip(("count", "mean", "m2"), moments, strict=True):
        if not _fits(jnp.shape(leaf), shape):
            raise ValueError(
                f"{caller}: moments must have the shape of the statistics. Received "
                f"moments.{name} with shape {jnp.shape(leaf)} for stats with shape "
                f"{shape}; reduce every axis but the features."
            )


def _broadcasts(shape: tuple[int, ...], target: tuple[int, ...]) -> bool:
    return all(a in (1, b) for a, b in zip(shape, target, strict=True))


def _fits(shape: tuple[int, ...], target: tuple[int, ...]) -> bool:
    """Whether NumPy broadcasts `shape` to exactly `target`."""
    try:
        return np.broadcast_shapes(shape, target) == target
    except ValueError:
        return False
