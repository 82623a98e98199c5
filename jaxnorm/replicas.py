"""Running statistics that are kept per device: check that they agree, merge them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from jaxnorm import axes, devices
from jaxnorm.arithmetic import reciprocal
from jaxnorm.axes import AxisName
from jaxnorm.options import check_flag
from jaxnorm.shifted import ShiftedMoments, merge
from jaxnorm.stats import NormStats, as_arrays, check_stats

MOST_NAMED = 20  # copies that an error names


def merge_stats(
    stats: NormStats | Sequence[NormStats],
    *,
    method: Literal["total_variance", "average"] = "total_variance",
    axis_name: AxisName | None = None,
) -> NormStats:
    """Merge replicas of running statistics into one.

        p_i  = weight_i / sum(weight_j)
        mean = sum(p_i * mean_i)
        var  = sum(p_i * (var_i + |mean_i - mean|^2))

    The total variance counts the spread of the means between replicas: it is the
    variance of everything they have seen. `"average"` leaves that term out, as a plain
    mean over replicas does; one device that saw all shards one after another would hold
    the same. (Neither sees how the means of shards differed within a step: for shards
    of n rows of the same distribution, the variance of whole batches is larger by a
    factor of about 1 + 1 / n.)

    Args:
      stats: a sequence of replicas, or one NormStats whose leaves have a leading axis
        of replicas, as pmap returns them. With `axis_name`, the replica of this device.
        Those of one layer: a model takes jax.tree.map(jaxnorm.merge_stats, stats,
        is_leaf=lambda s: isinstance(s, jaxnorm.NormStats)).
      method: "total_variance" or "average".
      axis_name: name, or tuple of names, of the pmap, vmap or shard_map axes along
        which each device holds a replica. They are merged with one collective.

    Returns:
      NormStats of one replica. Its weight is the mean of the weights. Replicas that
      hold no evidence do not count, unless none does.

    Raises:
      TypeError: if `stats` is neither one NormStats nor a sequence of them; with
        `axis_name`, if it is not one.
      ValueError: if `method` is neither of the two, there is no replica, shapes
        disagree, or `axis_name` is not bound.

    Example:
      >>> import jax.numpy as jnp
      >>> import jaxnorm as jn
      >>> a = jn.NormStats(jnp.array([0.0]), jnp.array([1.0]), jnp.array(1.0))
      >>> b = jn.NormStats(jnp.array([2.0]), jnp.array([1.0]), jnp.array(1.0))
      >>> print(jn.merge_stats([a, b]).var)
      [2.]
      >>> print(jn.merge_stats([a, b], method="average").var)
      [1.]
    """
    caller = "merge_stats"
    if not isinstance(method, str) or method not in ("total_variance", "average"):
        raise ValueError(
            f"{caller}: method must be 'total_variance' or 'average'. Received "
            f"method={method!r}; the first counts the spread of the means too."
        )
    return _merge_stacked(_stacked(stats, axis_name, caller=caller), method)


# As one program: eager operations on replicas that lie on several devices each wait for
# all of these, and two of them can wait for one another.
@partial(jax.jit, static_argnums=1, inline=True)
def _merge_stacked(stats: NormStats, method: str) -> NormStats:
    """Merge along the leading axis."""
    mean, var, weight = stats
    total = jnp.sum(weight, 0, keepdims=True)
    share = jnp.where(total > 0, weight * reciprocal(total), 1 / weight.shape[0])
    share = share.reshape(share.shape + (1,) * (mean.ndim - share.ndim))
    var = jnp.where(share > 0, var, 0)
    parts = ShiftedMoments(share, mean, jnp.zeros_like(mean), share * var)
    merged = merge(parts)
    if method == "average":
        merged = merged._replace(m2=jnp.sum(parts.m2, 0))
    return NormStats(merged.shift + merged.mean, merged.var, jnp.mean(weight, 0))


def _stacked(
    stats: NormStats | Sequence[NormStats], axis_name: AxisName | None, *, caller: str
) -> NormStats:
    """Return all replicas in one NormStats, along a leading axis."""
    if axis_name is not None:
        axes.check_axis_name(axis_name, None, caller=caller)
        if not isinstance(stats, NormStats):
            raise TypeError(
                f"{caller}: with axis_name, stats must be the one NormStats of this "
                f"device. Received {type(stats).__name__}; leave axis_name out to "
                "merge a sequence."
            )
        return devices.gather(check_stats(stats, caller=caller), axis_name)
    if isinstance(stats, NormStats):
        return _check_stacked(as_arrays(stats, caller=caller), caller=caller)
    return _stack(stats, caller=caller)


def _check_stacked(stats: NormStats, *, caller: str) -> NormStats:
    """Return running statistics if their leaves have a leading axis of replicas."""
    # With one axis it may as well be that of the features.
    mean, var, weight = (leaf.shape for leaf in stats)
    if len(mean) < 2 or var != mean or weight not in (mean[:1], mean):
        raise ValueError(
            f"{caller}: the leaves of one NormStats must have a leading axis of "
            "replicas, and mean and var one of features. Received (mean, var, "
            f"weight) of shapes {mean}, {var}, {weight}; pass a sequence of "
            "replicas, or axis_name inside pmap or shard_map."
        )
    return stats


def _stack(stats: Sequence[NormStats], *, caller: str) -> NormStats:
    """Stack the replicas of a sequence."""
    is_sequence = isinstance(stats, Sequence)
    if not is_sequence or not all(isinstance(each, NormStats) for each in stats):
        raise TypeError(
            f"{caller}: stats must be one NormStats, or a sequence of them. Received "
            f"{type(stats).__name__}; make a list of the replicas of one layer, and "
            "map merge_stats over the layers of a model."
        )
    if not stats:
        raise ValueError(
            f"{caller}: at least one replica is needed. Received none; pass a "
            "list of NormStats."
        )
    replicas = [check_stats(replica, caller=caller) for replica in stats]
    shapes = [tuple(leaf.shape for leaf in replica) for replica in replicas]
    if len(set(shapes)) > 1:
        raise ValueError(
            f"{caller}: replicas must have the same shapes. Received (mean, var, "
            f"weight) of shapes {', '.join(map(str, dict.fromkeys(shapes)))}; gather "
            "features that are spread over devices before their replicas are merged."
        )
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *replicas)


def check_replicas(
    tree: Any, *, stacked: bool = False, rtol: float = 0.0, atol: float = 0.0
) -> None:
    """Raise if replicas disagree, and say which and by how much.

    Arrays that are declared the same on several devices may differ: `shard_map` with
    `check_vma=False` believes `out_specs=P()` without checking, and evaluation or a
    checkpoint then takes whichever copy comes first. This compares all copies that the
    process holds with the first. Call it outside of jit.

    Args:
      tree: any tree of arrays: running statistics, parameters, a whole train state.
      stacked: whether the arrays have a leading axis of replicas, as pmap returns them.
        Otherwise the copies that devices hold of the same elements are compared.
      rtol: relative difference that is allowed.
      atol: absolute difference that is allowed.

    Raises:
      TypeError: if a leaf holds strings or objects, or `stacked` is no flag.
      ValueError: if replicas disagree, or an array is traced; with `stacked`, if an
        array has no leading axis; without, if no array is on a device, or all are
        spread as pmap returns them.

    Example:
      >>> import jax.numpy as jnp
      >>> import jaxnorm as jn
      >>> jn.check_replicas({"mean": jnp.array([[1.0], [1.0]])}, stacked=True)
      >>> jn.check_replicas({"mean": jnp.array([[1.0], [1.5]])}, stacked=True)
      Traceback (most recent call last):
      ValueError: check_replicas: replicas must agree to rtol=0.0 and atol=0.0. Received
      ['mean'] where replica 1 differs from replica 0 by 0.5; ...
    """
    mend = "it says whether arrays have a leading axis of replicas, as pmap's have"
    stacked = bool(
        check_flag(stacked, caller="check_replicas", name="stacked", mend=mend)
    )
    if any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(tree)):
        raise ValueError(
            "check_replicas: arrays must hold values, to be compared. Received some "
            "that are traced; call it outside of jit and other transformations."
        )
    found, compared = [], False
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        where = jax.tree_util.keystr(path) or "an array"
        for first, other, names in _pairs(leaf, where, stacked):
            compared = True
            difference = _difference(first, other, rtol, atol)
            if difference is not None:
                found.append(
                    f"{where} where {names[1]} differs from {names[0]} by "
                    f"{difference:.3g}"
                )
    if not compared and not stacked:
        _check_comparable(tree)
    if found:
        named, more = found[:MOST_NAMED], len(found) - MOST_NAMED
        if more > 0:
            named.append(f"and {more} more")
        raise ValueError(
            f"check_replicas: replicas must agree to rtol={rtol} and atol={atol}. "
            f"Received {', '.join(named)}; pool with axis_name, or merge them with "
            "jaxnorm.merge_stats."
        )


def _check_comparable(tree: Any) -> None:
    """Raise if a tree without copies on devices looks like one of stacked replicas."""
    leaves = jax.tree.leaves(tree)
    arrays = [leaf for leaf in leaves if isinstance(leaf, jax.Array)]
    if leaves and not arrays:
        raise ValueError(
            "check_replicas: without stacked=True the copies that devices hold are "
            f"compared. Received {type(leaves[0]).__name__}, which is on no device; "
            "pass stacked=True, or check before jax.device_get."
        )
    spread = [array for array in arrays if len(array.sharding.device_set) > 1]
    if spread and all(
        shard.data.shape == (1, *array.shape[1:])
        for array in spread
        for shard in array.addressable_shards
    ):
        raise ValueError(
            "check_replicas: there must be copies that can be compared. Received "
            "arrays whose first axis is spread over devices, one element on each, as "
            "pmap returns replicas; pass stacked=True."
        )


def _pairs(
    leaf: ArrayLike, where: str, stacked: bool
) -> Iterator[tuple[np.ndarray, np.ndarray, tuple[str, str]]]:
    """Yield the first copy and each other one, and their names."""
    if stacked:
        copies = _numbers(leaf, where)
        if not copies.ndim or not len(copies):
            raise ValueError(
                "check_replicas: with stacked=True arrays must have a leading axis of "
                f"replicas. Received {where} of shape {copies.shape}; leave stacked "
                "out for what is not replicated."
            )
        first, *others = copies
        for i, other in enumerate(others, 1):
            yield first, other, ("replica 0", f"replica {i}")
    elif isinstance(leaf, jax.Array):
        shards = leaf.addressable_shards
        firsts = {str(shard.index): shard for shard in reversed(shards)}
        for shard in shards:
            first = firsts[str(shard.index)]
            if shard is not first:
                names = str(first.device), str(shard.device)
                yield _numbers(first.data, where), _numbers(shard.data, where), names
    else:
        _numbers(leaf, where)  # on no device: there is one copy


def _numbers(leaf: ArrayLike, where: str) -> np.ndarray:
    """Return a leaf as an array of NumPy, a random key as its data."""
    if isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        leaf = jax.random.key_data(leaf)
    array = np.asarray(leaf)
    if array.dtype.kind in "OSU":
        raise TypeError(
            f"check_replicas: arrays must hold numbers. Received {where} of "
            f"{array.dtype}; leave it out of the tree."
        )
    return array


def _difference(
    first: np.ndarray, other: np.ndarray, rtol: float, atol: float
) -> float | None:
    """Return the largest difference that is not allowed, if there is one.

    Integers are compared as such, since float64 does not hold all of 64 bits.
    """
    if first.dtype.kind in "biu":
        unequal = first != other
        first, other = (v[unequal].astype(object) for v in (first, other))
        far = abs(first - other) > atol + rtol * abs(other)
    else:
        wide = np.result_type(first, np.float64)
        first, other = first.astype(wide), other.astype(wide)
        far = ~np.isclose(first, other, rtol, atol, equal_nan=True)
    return np.max(np.abs(first[far] - other[far])) if np.any(far) else None
