"""Which axes are reduced, which are kept, and what must hold of them.

Errors have one form, here and everywhere: the rule, what was received, how to mend it.
Arguments are checked once, in the public functions, at trace time; inner functions
trust theirs.
"""

import math
from collections.abc import Hashable, Sequence

import jax
import numpy as np
from jax import lax

from jaxnorm import options

Axes = int | Sequence[int] | np.ndarray
AxisName = Hashable  # or a tuple of them
AxisGroups = Sequence[Sequence[int]]
Groups = tuple[tuple[int, ...], ...]  # the same, checked and hashable


def canonicalize_axes(
    axes: Axes, ndim: int, *, caller: str, name: str
) -> tuple[int, ...]:
    """Return `axes` as sorted, non-negative, distinct integers."""
    listed = axes.tolist() if isinstance(axes, np.ndarray) else axes
    given = tuple(listed) if isinstance(listed, Sequence) else (listed,)
    try:
        indices = [options.as_index(axis) for axis in given]
    except TypeError:
        raise TypeError(
            f"{caller}: {name} must be an integer or a sequence of integers. "
            f"Received {name}={axes!r}; "
            f"{options.static_or('count axes from 0, or from -1 backwards', *given)}."
        ) from None
    for axis in indices:
        if not -ndim <= axis < ndim:
            mend = "choose an axis that the input has" if ndim else "a scalar has none"
            raise ValueError(
                f"{caller}: {name} must lie in [{-ndim}, {ndim}) for an input of rank "
                f"{ndim}. Received {name}={axes!r}; {mend}."
            )
    canonical = tuple(sorted(axis % ndim for axis in indices))
    if len(set(canonical)) != len(canonical):
        raise ValueError(
            f"{caller}: {name} must name each axis once. Received {name}={axes!r} for "
            f"an input of rank {ndim}; remove the repeated axis."
        )
    return canonical


def complement(axes: tuple[int, ...], ndim: int) -> tuple[int, ...]:
    """Return the axes of a rank-`ndim` array that are not in `axes`."""
    return tuple(axis for axis in range(ndim) if axis not in axes)


def sizes_in_words(axes: tuple[int, ...]) -> str:
    """Say what a shape of the sizes of `axes` is."""
    one = len(axes) == 1
    return f"the size of axis {axes[0]}" if one else f"the sizes of axes {axes}"


def single_axis(features: tuple[int, ...], *, caller: str) -> int:
    """Return the one feature axis."""
    if len(features) != 1:
        raise ValueError(
            f"{caller}: feature_axis must be one axis, that of the channels. Received "
            f"feature_axis={features}; choose one, or merge them with x.reshape."
        )
    return features[0]


def spatial_axes(
    feature_axis: Axes, shape: tuple[int, ...], *, caller: str
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Split the axes of one example into features and the rest.

    Axis 0 is the batch, unless it is itself a feature axis. Returns the feature axes
    and the axes that are neither batch nor features.
    """
    features = canonicalize_axes(
        feature_axis, len(shape), caller=caller, name="feature_axis"
    )
    return features, complement((0, *features), len(shape))


def check_reduced(
    x: jax.Array,
    axes: tuple[int, ...],
    axis_name: AxisName | None,
    *,
    caller: str,
    name: str = "x",
    mend: str = "add a batch or a spatial axis, or name a device axis",
) -> None:
    """Raise if there is no element to take a statistic of."""
    if not axes and axis_name is None:
        raise ValueError(
            f"{caller}: at least one axis must be reduced to have a statistic. "
            f"Received {name} with shape {x.shape} and no axis left to reduce; {mend}."
        )
    if x.size == 0 and math.prod(x.shape[axis] for axis in axes) == 0:
        raise ValueError(
            f"{caller}: the reduced axes {axes} must hold at least one element. "
            f"Received {name} with shape {x.shape}; skip what is empty, or pad it and "
            "pass weights=0."
        )


def check_groups(channels: int, num_groups: int, *, caller: str) -> int:
    """Return `num_groups` if it divides the channels."""
    try:
        num_groups = options.as_index(num_groups)
    except TypeError:
        raise TypeError(
            f"{caller}: num_groups must be an integer. Received "
            f"num_groups={num_groups!r}; "
            f"{options.static_or('pass a whole number, such as 32', num_groups)}."
        ) from None
    if num_groups < 1 or channels % num_groups:
        if isinstance(channels, int):
            nearest = _nearest_divisors(channels, num_groups)
            mend = f"choose {nearest}, or another feature_axis"
        else:  # symbolic, as in jax.export
            mend = f"make it a multiple in name too, such as {num_groups}*{channels}"
        raise ValueError(
            f"{caller}: num_groups must be positive and divide the number of channels. "
            f"Received num_groups={num_groups} for {channels} channels; {mend}."
        )
    return num_groups


def _nearest_divisors(channels: int, number: int) -> str:
    """Return the divisors next to `number`, below and above, that there are."""
    divisors = [n for n in range(1, channels + 1) if channels % n == 0]
    below = [n for n in divisors if n < number][-1:]
    above = [n for n in divisors if n > number][:1]
    return " or ".join(map(str, below + above))


def check_axis_name(
    axis_name: AxisName | None, axis_index_groups: AxisGroups | None, *, caller: str
) -> Groups | None:
    """Raise unless `axis_name` is bound here and the groups partition it.

    Returns the groups as nested tuples.
    """
    if axis_name is None:
        if axis_index_groups is not None:
            raise ValueError(
                f"{caller}: axis_index_groups needs axis_name, the axis it divides. "
                f"Received axis_index_groups={axis_index_groups} and axis_name=None; "
                "name the axis, or leave the groups out."
            )
        return None
    try:
        hash(axis_name)
    except TypeError:
        raise TypeError(
            f"{caller}: axis_name must be one name, or a tuple of names. Received "
            f"axis_name={axis_name!r}; tuple(...) makes one."
        ) from None
    names = axis_name if isinstance(axis_name, tuple) else (axis_name,)
    numbered = any(isinstance(name, int) for name in names)
    if numbered or len(set(names)) < len(names):
        mend = "remove what is repeated"
        if numbered:
            mend = "axes of the array have numbers, those of devices names"
        raise ValueError(
            f"{caller}: axis_name must name device axes, each once. Received "
            f"axis_name={axis_name!r}; {mend}."
        )
    try:
        size = lax.axis_size(axis_name)
    except NameError:
        raise ValueError(
            f"{caller}: axis_name must be bound by pmap, vmap or shard_map around the "
            f"call. Received axis_name={axis_name!r}, which is not; bind it there, or "
            "leave axis_name out: under plain jit on sharded arrays statistics are "
            "global without it."
        ) from None
    if axis_index_groups is None:
        return None
    return _check_partition(axis_index_groups, axis_name, size, caller=caller)


def _check_partition(
    axis_index_groups: AxisGroups, axis_name: AxisName, size: int, *, caller: str
) -> Groups:
    """Return the groups as nested tuples, if they partition the axis evenly."""
    try:
        groups = tuple(
            tuple(options.as_index(i) for i in group) for group in axis_index_groups
        )
    except TypeError:
        raise TypeError(
            f"{caller}: axis_index_groups must be a sequence of sequences of integers. "
            f"Received axis_index_groups={axis_index_groups!r}; [[0, 1], [2, 3]] are "
            "two groups of two."
        ) from None
    members = sorted(i for group in groups for i in group)
    if members != list(range(size)) or len({len(group) for group in groups}) != 1:
        raise ValueError(
            f"{caller}: axis_index_groups must be groups of equal size that hold every "
            f"index of axis {axis_name!r} (size {size}) once. Received "
            f"{[list(group) for group in groups]}; name every index in one group, and "
            "as many in each."
        )
    return groups
