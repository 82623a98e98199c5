"""Options: numbers, names, dtypes and flags, and what must hold of them.

Known values are checked. A traced one, or one that other processes hold parts of, is
trusted.
"""

import operator
from collections.abc import Callable, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.export import is_symbolic_dim
from jax.typing import ArrayLike

Activation = Literal["relu", "silu", "gelu"]
ACTIVATIONS: dict[Activation, Callable[[jax.Array], jax.Array]] = {
    "relu": jax.nn.relu,
    "silu": jax.nn.silu,
    "gelu": jax.nn.gelu,
}
# True, False, or a boolean scalar, traced or not.
Flag = bool | np.bool_ | np.ndarray | jax.Array


def as_dtype(dtype: Any, *, caller: str) -> np.dtype:
    """Return a dtype that JAX computes in: without x64, float32 for float64."""
    try:
        computed = jax.dtypes.canonicalize_dtype(dtype)
    except (TypeError, ValueError):
        raise TypeError(
            f"{caller}: dtype must be a dtype, or the name of one. "
            f"{received('dtype', dtype)}; the usual one is float32."
        ) from None
    # Where that is another one, JAX warns, unless it was told not to.
    return computed if computed == np.dtype(dtype) else jnp.zeros((), dtype).dtype


def check_dtype(dtype: Any, x: jax.Array, *, caller: str) -> np.dtype:
    """Return the dtype of the output: `dtype`, or that of `x` where it is None."""
    if dtype is None:
        return x.dtype
    dtype = as_dtype(dtype, caller=caller)
    kind = jnp.complexfloating if jnp.iscomplexobj(x) else jnp.inexact
    if not jnp.issubdtype(dtype, kind):
        raise TypeError(
            f"{caller}: dtype must be able to hold the output. Received "
            f"dtype={dtype.name} for an input of {x.dtype}; pass a "
            f"{'complex' if jnp.iscomplexobj(x) else 'floating-point'} dtype, or None "
            "for that of the input."
        )
    return dtype


def check_eps(
    eps: ArrayLike, *, caller: str, name: str = "eps", usual: str = "1e-5"
) -> ArrayLike:
    """Return `eps` if it is a positive number, as far as it is known."""
    if not _is_real_scalar(eps):
        raise TypeError(
            f"{caller}: {name} must be one real number. {received(name, eps)}; the "
            f"usual value is {usual}."
        )
    value = known(eps)
    tiny, largest = np.finfo(np.float32).tiny, np.finfo(np.float32).max
    if value is not None and not tiny <= value <= largest:
        why = ", which processors may take for zero" if 0 < value < tiny else ""
        why = ", which float32 cannot hold" if largest < value < np.inf else why
        raise ValueError(
            f"{caller}: {name} must be positive, or a constant input would be divided "
            f"by zero, and finite. Received {name}={eps}{why}; the usual value is "
            f"{usual}."
        )
    # One of NumPy's numbers would make float64 of all that it is added to, and JAX
    # takes no integer of more than 32 bits.
    return float(eps) if isinstance(eps, int | np.generic | np.ndarray) else eps


def check_decay(
    decay: ArrayLike | None, *, caller: str, name: str = "decay"
) -> ArrayLike | None:
    """Return `decay` if it is None or lies in [0, 1], as far as it is known."""
    if decay is None:
        return None
    if not _is_real_scalar(decay):
        raise TypeError(
            f"{caller}: {name} must be one number in [0, 1], or None for the "
            f"equal-weight average. {received(name, decay)}; the usual value is "
            "0.99."
        )
    value = known(decay)
    if value is not None and not 0 <= value <= 1:
        raise ValueError(
            f"{caller}: {name} must lie in [0, 1]: it is the weight of the old running "
            f"value. Received {name}={decay}; PyTorch's momentum=0.1 is 0.9 here, and "
            "None is the equal-weight average."
        )
    return decay


def check_num_features(num_features: Any, *, caller: str) -> tuple[int, ...]:
    """Return the shape of the features, for one number or several."""
    shape = (
        tuple(num_features) if isinstance(num_features, Sequence) else (num_features,)
    )
    if not all(is_integer(n) or is_symbolic_dim(n) for n in shape):
        raise TypeError(
            f"{caller}: num_features must be an integer, or a sequence of them. "
            f"Received {type(num_features).__name__}; pass the size of the feature "
            "axis, x.shape[-1], or a tuple of sizes."
        )
    if any(not is_symbolic_dim(n) and n < 0 for n in shape):
        raise ValueError(
            f"{caller}: num_features must not be negative. Received "
            f"num_features={num_features}; pass the size of the feature axis, "
            "x.shape[-1]."
        )
    return shape


def check_prior_weight(
    prior_weight: ArrayLike, shape: tuple[int, ...], dtype: np.dtype, *, caller: str
) -> ArrayLike:
    """Return `prior_weight` if it is not negative, as far as it is known."""
    if not _is_real(prior_weight):
        raise TypeError(
            f"{caller}: prior_weight must be one real number, or one per feature. "
            f"{received('prior_weight', prior_weight)}; 0 ignores the initial values."
        )
    if jnp.shape(prior_weight) not in ((), shape):
        raise ValueError(
            f"{caller}: prior_weight must be one real number, or one per feature. "
            f"{received('prior_weight', prior_weight)}; pass a number, or an array "
            f"with shape {shape}."
        )
    value, largest = known(prior_weight), jnp.finfo(dtype).max
    if value is not None and not np.all((0 <= value) & (value <= largest)):
        overflows = np.any((value > largest) & (value < np.inf))
        why = f", which {jnp.finfo(dtype).dtype} cannot hold" if overflows else ""
        raise ValueError(
            f"{caller}: prior_weight must not be negative, and must be finite. "
            f"Received prior_weight={prior_weight}{why}; 0 ignores the initial values, "
            "1 is what PyTorch and Flax do."
        )
    return prior_weight


def check_ddof(ddof: int, *, caller: str) -> int:
    """Return `ddof` if it is 0 or 1."""
    traced = isinstance(ddof, jax.core.Tracer)
    number = _is_flag(ddof) or _is_real_scalar(ddof)
    if traced or not number or ddof not in (0, 1):
        mend = static_or("no other is defined here", ddof)
        raise ValueError(
            f"{caller}: ddof must be 0 (biased running variance) or 1 (unbiased, as in "
            f"PyTorch). Received ddof={ddof!r}; {mend}."
        )
    return int(ddof)


def check_flag(value: Any, *, caller: str, name: str, mend: str) -> bool | jax.Array:
    """Return a flag as a Python bool, or as a traced boolean scalar."""
    if isinstance(value, bool):
        return value
    if _is_flag(value):
        held = known(value)
        return jnp.asarray(value) if held is None else bool(held)
    raise TypeError(
        f"{caller}: {name} must be True, False or a boolean scalar array. "
        f"{received(name, value)}; {mend}."
    )


def check_training(training: Flag, *, caller: str) -> bool | jax.Array:
    """Return `training` as a Python bool, or as a traced boolean scalar."""
    mend = (
        "there is no default, so that nothing is evaluated with batch statistics, or "
        "trained with running ones, by accident"
    )
    return check_flag(training, caller=caller, name="training", mend=mend)


def check_activation(
    activation: Activation | None, x: jax.Array, *, caller: str
) -> Activation | None:
    """Return the name of an activation that is known, and applies to `x`."""
    known_name = isinstance(activation, str) and activation in ACTIVATIONS
    if activation is not None and not known_name:
        name = getattr(activation, "__name__", None)
        mend = f"pass {name!r}" if name in ACTIVATIONS else "apply others to the output"
        raise ValueError(
            f"{caller}: activation must be None or one of {', '.join(ACTIVATIONS)}. "
            f"Received activation={activation!r}; {mend}."
        )
    if activation is not None and jnp.iscomplexobj(x):
        raise TypeError(
            f"{caller}: activation={activation!r} needs real input. Received "
            f"{x.dtype}; apply one of your own to the output."
        )
    return activation


def known(value: ArrayLike) -> np.ndarray | None:
    """Return what `value` holds, or None where this process cannot tell."""
    if isinstance(value, jax.core.Tracer):
        return None
    if isinstance(value, jax.Array) and not value.is_fully_addressable:
        return None
    return np.asarray(value)


def static_or(mend: str, *values: Any) -> str:
    """Return how to mend what must be known at trace time, if it is traced."""
    traced = any(isinstance(value, jax.core.Tracer) for value in values)
    return "make it a static argument of jit" if traced else mend


def is_integer(value: Any) -> bool:
    """Whether `value` is an integer; True and False are none."""
    return isinstance(value, int | np.integer) and not isinstance(value, bool)


def as_index(value: Any) -> int:
    """Return an integer as `operator.index` does, but take no True for 1."""
    if isinstance(value, bool):
        raise TypeError
    return operator.index(value)


def whole_number(value: Any) -> int:
    """Return the value if it is an integer of 1 or more, and 0 if not."""
    try:
        return max(0, as_index(value))
    except TypeError:
        return 0


def _is_flag(value: Any) -> bool:
    """Whether `value` is True, False or a boolean scalar, traced or not."""
    if isinstance(value, jax.Array | np.ndarray | np.bool_):
        return not value.ndim and value.dtype == bool
    return isinstance(value, bool)


def _is_real_scalar(value: Any) -> bool:
    """Whether `value` is one real number, traced or not."""
    return _is_real(value) and jnp.shape(value) == ()


def _is_real(value: Any) -> bool:
    """Whether `value` holds real numbers, traced or not."""
    if isinstance(value, int | float):
        return not isinstance(value, bool)
    # Dtypes and descriptions of arrays have a dtype as well, but hold nothing. (What
    # else is an array to JAX, as nnx.Variable, has the method.)
    arrays = jax.Array | np.ndarray | np.generic
    holds = isinstance(value, arrays) or hasattr(value, "__jax_array__")
    if not holds or isinstance(value, np.ma.MaskedArray):
        return False
    try:
        dtype = jnp.result_type(value)
    except TypeError:
        return False
    return jnp.issubdtype(dtype, jnp.floating) or jnp.issubdtype(dtype, jnp.integer)


def received(name: str, value: Any) -> str:
    """Say what was received: the shape of an array, or the value."""
    if isinstance(value, jax.Array | np.ndarray) and value.ndim:
        return f"Received {name} with shape {value.shape}"
    return f"Received {name}={value!r}"
