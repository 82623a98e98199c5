"""Checks and conversions of arguments that are arrays: dtype, shape, broadcasting."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from jaxnorm.axes import sizes_in_words
from jaxnorm.dtypes import statistics_dtype
from jaxnorm.options import known


def check_input(x: ArrayLike, *, caller: str, name: str = "x") -> jax.Array:
    """Return `x` as an array of floating-point or complex dtype."""
    if isinstance(x, list | tuple) and _holds_arrays(x):
        mend = "pass one of them, or join them by jnp.stack"
        if hasattr(x, "_fields"):
            mend = f"{name} comes first"
        elif len(x) == 2 and hasattr(x[1], "_fields"):
            mend = f"take them apart, as in {name}, stats = ..., and pass the first"
        raise TypeError(
            f"{caller}: {name} must be one array. Received {type(x).__name__} that "
            f"holds arrays; {mend}."
        )
    array = as_array(x, caller=caller, name=name)
    if not jnp.issubdtype(array.dtype, jnp.inexact):
        raise TypeError(
            f"{caller}: {name} must have a floating-point or complex dtype. Received "
            f"{array.dtype} with shape {array.shape}; convert it first, for example "
            f"{name}.astype(jnp.float32)."
        )
    return array


def expand_parameter(
    parameter: ArrayLike | None,
    x: jax.Array,
    axes: tuple[int, ...],
    *,
    caller: str,
    name: str,
    of: str = "x",
) -> jax.Array | None:
    """Give a scale, bias, mean or variance the rank of `x`, which errors call `of`.

    Accepted are a scalar, the sizes of `axes` of `x`, or any shape of the rank of
    `x` that broadcasts to it.
    """
    if parameter is None:
        return None
    array = as_array(parameter, caller=caller, name=name)
    if not jnp.issubdtype(array.dtype, jnp.number):
        raise TypeError(
            f"{caller}: {name} must hold numbers. Received {array.dtype}; convert it "
            f"first, for example {name}.astype(jnp.float32)."
        )
    if jnp.iscomplexobj(array) and not jnp.iscomplexobj(x):
        raise TypeError(
            f"{caller}: {name} must be real for real {of}. Received {name} of "
            f"{array.dtype} for {of} of {x.dtype}; convert {of} to a complex dtype."
        )
    sizes = tuple(x.shape[axis] for axis in axes)
    if array.shape == sizes:
        shape = tuple(x.shape[axis] if axis in axes else 1 for axis in range(x.ndim))
        return array.reshape(shape)
    if array.ndim == 0:
        return array.reshape((1,) * x.ndim)
    if array.ndim == x.ndim and fits(array.shape, x.shape):
        return array
    raise ValueError(
        f"{caller}: {name} must have shape {sizes}, {sizes_in_words(axes)} of {of}, "
        f"or the rank of {of} and broadcast to it. Received {name} with shape "
        f"{array.shape} for {of} with shape {x.shape}; "
        f"{_mend_of_parameter(array, x, axes, name)}."
    )


def _mend_of_parameter(
    array: jax.Array, x: jax.Array, axes: tuple[int, ...], name: str
) -> str:
    """Say what would make a parameter fit: another shape, or other axes."""
    sizes = tuple(x.shape[axis] for axis in axes)
    if 0 not in axes and array.shape == (x.shape[0], *sizes):
        each = tuple(n if a in (0, *axes) else 1 for a, n in enumerate(x.shape))
        return f"one for every example has shape {each}"
    change = f"reshape {name}"
    if array.size != math.prod(sizes):
        change = "pass one value for each feature"
    fitting = [a for a, n in enumerate(x.shape) if a and array.shape == (n,)]
    if len(fitting) == 1 and fitting[0] in axes:
        along = tuple(n if a in fitting else 1 for a, n in enumerate(x.shape))
        return f"one that varies along axis {fitting[0]} alone has shape {along}"
    if len(fitting) == 1:
        return f"{change}, or name axis {fitting[0]}, which it fits"
    return f"{change}, or name other axes"


def expand_statistics(
    mean: ArrayLike,
    var: ArrayLike,
    x: jax.Array,
    axes: tuple[int, ...],
    *,
    caller: str,
) -> tuple[jax.Array, jax.Array]:
    """Give a mean and a variance the rank of `x`, as `expand_parameter` does."""
    expanded = []
    for name, value in (("mean", mean), ("var", var)):
        array = expand_parameter(value, x, axes, caller=caller, name=name)
        if array is None:
            raise TypeError(
                f"{caller}: mean and var must be arrays. Received {name}=None; 0 and 1 "
                "leave x as it is."
            )
        expanded.append(array)
    check_real("a variance is", {"var": expanded[1]}, caller=caller)
    return expanded[0], expanded[1]


def check_real(what: str, parts: dict[str, jax.Array], *, caller: str) -> None:
    """Raise where a part of statistics is complex; `what` says which are not."""
    for name, part in parts.items():
        if jnp.iscomplexobj(part):
            raise TypeError(
                f"{caller}: {what} real, of complex x too. Received {name} of "
                f"{part.dtype}; pass {name}.real."
            )


def expand_weights(
    weights: ArrayLike | None,
    x: jax.Array,
    *,
    reduced: tuple[int, ...],
    caller: str,
    name: str = "weights",
) -> jax.Array | None:
    """Give weights the rank of `x` by NumPy's broadcasting rules.

    `reduced` are the axes of `x` that statistics are taken over.
    """
    if weights is None:
        return None
    array = as_array(weights, caller=caller, name=name)
    if jnp.iscomplexobj(array):
        raise TypeError(
            f"{caller}: {name} must be bool or real. Received {array.dtype}; pass "
            f"{name}.real."
        )
    if array.dtype != bool and not jnp.issubdtype(array.dtype, jnp.number):
        raise TypeError(
            f"{caller}: {name} must be bool or real. Received {array.dtype}; pass a "
            "mask, or numbers."
        )
    array = _expand_at_the_front(array, x, reduced, caller=caller, name=name)
    if array.dtype == bool:
        return array
    values = known(array)
    if values is not None and not np.all((values >= 0) & (values < np.inf)):
        raise ValueError(
            f"{caller}: {name} must not be negative, and must be finite. Received "
            f"{name} from {np.min(values)} to {np.max(values)}; a weight of 0 leaves "
            "an element out."
        )
    return array.astype(jnp.finfo(statistics_dtype(x.dtype)).dtype)


def _expand_at_the_front(
    array: jax.Array, x: jax.Array, reduced: tuple[int, ...], *, caller: str, name: str
) -> jax.Array:
    """Give weights the rank of `x` as NumPy broadcasts: new axes come first.

    A mask that was meant for the first axes may fit the last ones by chance. It is
    refused, unless it varies along more of the `reduced` axes as one of the last.
    """
    missing = (1,) * (x.ndim - array.ndim)
    shape, first = missing + array.shape, array.shape + missing
    fits_first = fits(first, x.shape)
    if not fits(shape, x.shape):
        mend = f"a mask of the batch has shape {x.shape[:1] + (1,) * (x.ndim - 1)}"
        if array.ndim > 1 and fits_first:
            mend = f"those of the first axes have shape {first}"
        raise ValueError(
            f"{caller}: {name} must broadcast to x. Received {name} with shape "
            f"{array.shape} for x with shape {x.shape}; {mend}."
        )

    def reach(shape: tuple[int, ...]) -> int:
        return sum(shape[axis] != 1 for axis in reduced)

    ambiguous = missing and fits_first and any(n != 1 for n in array.shape)
    if ambiguous and reach(shape) <= reach(first):
        raise ValueError(
            f"{caller}: {name} with fewer axes than x must not fit both its first and "
            f"its last. Received {name} with shape {array.shape} for x with shape "
            f"{x.shape}; reshape to {first} or to {shape}."
        )
    return array.reshape(shape)


def check_add(add: ArrayLike | None, x: jax.Array, *, caller: str) -> jax.Array | None:
    """Return what is added to the output, if it has the shape of `x`."""
    if add is None:
        return None
    array = as_array(add, caller=caller, name="add")
    if array.shape != x.shape:
        raise ValueError(
            f"{caller}: add must have the shape of x. Received add with shape "
            f"{array.shape} for x with shape {x.shape}; broadcast it first."
        )
    if jnp.iscomplexobj(array) and not jnp.iscomplexobj(x):
        raise TypeError(
            f"{caller}: add must be real where x is. Received {array.dtype} for x of "
            f"{x.dtype}; convert x to a complex dtype."
        )
    return array


def as_array(value: ArrayLike, *, caller: str, name: str) -> jax.Array:
    """Return `value` as an array."""
    if isinstance(value, jax.Array):  # most are, and asarray takes its time
        return value
    try:
        return jnp.asarray(value)
    except OverflowError:
        raise ValueError(
            f"{caller}: {name} must fit the dtype that JAX gives it. Received {value}; "
            "pass a float."
        ) from None
    except (TypeError, ValueError):
        if isinstance(value, np.ndarray):
            raise TypeError(
                f"{caller}: {name} must have a dtype that JAX knows. Received "
                f"{value.dtype.str!r} with shape {value.shape}; convert it to one that "
                "jax.numpy names, such as float32."
            ) from None
        raise TypeError(
            f"{caller}: {name} must be an array. Received {type(value).__name__}; pass "
            "anything that jnp.asarray accepts."
        ) from None


def _holds_arrays(sequence: Any) -> bool:
    """Whether parts of a sequence are arrays, which `asarray` could stack unasked."""
    return any(getattr(leaf, "ndim", 0) for leaf in jax.tree.leaves(sequence))


def as_arrays(parts: Any, *, caller: str, name: str) -> list[jax.Array]:
    """Return the parts of a NamedTuple as arrays."""
    return [
        as_array(part, caller=caller, name=f"{name}.{field}")
        for field, part in parts._asdict().items()
    ]


def fits(shape: tuple[int, ...], target: tuple[int, ...]) -> bool:
    """Whether NumPy broadcasts `shape` to exactly `target`; sizes may be symbolic."""
    more = len(target) - len(shape)
    return more >= 0 and all(
        a in (1, b) for a, b in zip(shape, target[more:], strict=True)
    )
