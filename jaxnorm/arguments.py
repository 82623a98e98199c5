"""What arguments must be: dtypes, shapes and numbers, and what they are made to be."""

from collections.abc import Collection
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

Parameter = TypeVar("Parameter", jax.Array, jax.Array | None)


def statistics_dtype(dtype: Any) -> np.dtype:
    """Return the dtype that statistics of `dtype` input are computed in."""
    return np.promote_types(dtype, np.float32)


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
    """Return `eps` if it is a positive number; of a traced one the sign is trusted."""
    if not _is_real_scalar(eps):
        raise TypeError(
            f"{caller}: eps must be one real number. {_received('eps', eps)}; the "
            "usual value is 1e-5."
        )
    if not isinstance(eps, jax.core.Tracer) and not np.asarray(eps) > 0:
        raise ValueError(
            f"{caller}: eps must be positive, or a constant input would be divided by "
            f"zero. Received eps={eps}; the usual value is 1e-5."
        )
    return eps


def check_decay(decay: ArrayLike | None, *, caller: str) -> ArrayLike | None:
    """Return `decay` if it lies in [0, 1] or is None; a traced value is trusted."""
    if decay is None:
        return None
    if not _is_real_scalar(decay):
        raise TypeError(
            f"{caller}: decay must be one number in [0, 1], or None for the "
            f"equal-weight average. {_received('decay', decay)}."
        )
    known = None if isinstance(decay, jax.core.Tracer) else np.asarray(decay)
    if known is not None and not (known >= 0 and known <= 1):
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
        return training if isinstance(training, jax.core.Tracer) else bool(training)
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


def widen(parameter: Parameter, x: jax.Array) -> Parameter:
    """Return a parameter with at least the precision that `x` is computed in."""
    if parameter is None:
        return None
    real = jnp.finfo(statistics_dtype(x.dtype)).dtype
    inexact = jnp.issubdtype(parameter.dtype, jnp.inexact)
    dtype = np.promote_types(parameter.dtype, real) if inexact else real
    return parameter.astype(dtype)


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
) -> Any:
    """Return running statistics, of arrays, if they fit the features of `x`."""
    stats = _as_arrays(stats, caller=caller)
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
    return stats


def check_update(stats: Any, moments: Any, *, caller: str) -> Any:
    """Return running statistics, of arrays, if the moments of a batch can move them."""
    stats = _as_arrays(stats, caller=caller)
    if stats.mean.dtype != statistics_dtype(stats.mean.dtype):
        raise TypeError(
            f"{caller}: running statistics need at least float32, or small updates are "
            f"lost. Received stats.mean of {stats.mean.dtype}; leave them out where a "
            "model is converted to half precision."
        )
    shape = stats.mean.shape
    for name, leaf in zip(("count", "mean", "m2"), moments, strict=True):
        if not _fits(jnp.shape(leaf), shape):
            raise ValueError(
                f"{caller}: moments must have the shape of the statistics. Received "
                f"moments.{name} with shape {jnp.shape(leaf)} for stats with shape "
                f"{shape}; reduce every axis but the features."
            )
    return stats


def check_pair(a: Any, b: Any, *, caller: str) -> None:
    """Raise unless the moments of two sets have shapes that broadcast."""
    shapes = [tuple(jnp.shape(leaf) for leaf in moments) for moments in (a, b)]
    try:
        for pair in zip(*shapes, strict=True):
            np.broadcast_shapes(*pair)
    except ValueError:
        raise ValueError(
            f"{caller}: moments of two sets must have shapes that broadcast. Received "
            f"(count, mean, m2) of shapes {shapes[0]} and {shapes[1]}; reduce the same "
            "axes of both."
        ) from None


def _as_arrays(stats: Any, *, caller: str) -> Any:
    if not all(hasattr(stats, name) for name in ("mean", "var", "weight")):
        raise TypeError(
            f"{caller}: stats must be a NormStats. Received {type(stats).__name__}; "
            "start with jaxnorm.init_stats(num_features)."
        )
    leaves = (jnp.asarray(leaf) for leaf in (stats.mean, stats.var, stats.weight))
    stats = type(stats)(*leaves)
    if stats.weight.shape not in ((), stats.mean.shape):
        raise ValueError(
            f"{caller}: stats.weight must be a scalar, or have one value a feature. "
            f"Received stats.weight with shape {stats.weight.shape} for stats.mean "
            f"with shape {stats.mean.shape}; 0 says that there is no evidence yet."
        )
    return stats


def _is_real_scalar(value: Any) -> bool:
    """Whether `value` is one real number, traced or not."""
    if isinstance(value, bool | str) or value is None:
        return False
    try:
        dtype = jnp.result_type(value)
    except TypeError:
        return False
    real = jnp.issubdtype(dtype, jnp.floating) or jnp.issubdtype(dtype, jnp.integer)
    return real and jnp.shape(value) == ()


def _received(name: str, value: Any) -> str:
    """Say what was received: the shape of an array, or the value."""
    if isinstance(value, jax.Array | np.ndarray) and value.ndim:
        return f"Received {name} with shape {value.shape}"
    return f"Received {name}={value!r}"


def _broadcasts(shape: tuple[int, ...], target: tuple[int, ...]) -> bool:
    return all(a in (1, b) for a, b in zip(shape, target, strict=True))


def _fits(shape: tuple[int, ...], target: tuple[int, ...]) -> bool:
    """Whether NumPy broadcasts `shape` to exactly `target`."""
    try:
        return np.broadcast_shapes(shape, target) == target
    except ValueError:
        return False
