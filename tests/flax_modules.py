"""The Flax modules in one form, whichever API and whoever wrote them."""

from dataclasses import dataclass
from functools import partial
from typing import Any

import flax.linen
import flax.nnx
import jax
import jax.numpy as jnp
import numpy as np

import jaxnorm.linen
import jaxnorm.nnx

FLAX = {"linen": flax.linen, "nnx": flax.nnx}
OURS = {"linen": jaxnorm.linen, "nnx": jaxnorm.nnx}
KEY = jax.random.key(0)
TRAINING = {"use_running_average": False}
EVALUATING = {"use_running_average": True}


@dataclass(frozen=True)
class Case:
    """A module, its arguments, and the size that nnx is told."""

    name: str
    kwargs: dict[str, Any]
    num_features: int = 6

    def build(self, api: str, package: Any, **more: Any) -> Any:
        kwargs = self.kwargs | more
        if api == "linen":
            return getattr(package, self.name)(**kwargs)
        rngs = flax.nnx.Rngs(0)
        return getattr(package, self.name)(self.num_features, rngs=rngs, **kwargs)

    def __str__(self) -> str:
        kwargs = ",".join(f"{k}={v}" for k, v in self.kwargs.items())
        return f"{self.name}({kwargs})"


# For inputs of shape (4, 5, 3, 6).
CASES = [
    Case("BatchNorm", {}),
    Case("BatchNorm", {"axis": 1, "momentum": 0.7, "epsilon": 1e-3}, 5),
    Case("BatchNorm", {"use_scale": False}),
    Case("LayerNorm", {}),
    Case("LayerNorm", {"reduction_axes": (1, 2, -1), "use_bias": False}),
    Case("LayerNorm", {"reduction_axes": (1, 2), "feature_axes": 1}, 5),
    Case("RMSNorm", {}),
    Case("RMSNorm", {"reduction_axes": (1, 3), "epsilon": 1e-2}),
    Case("GroupNorm", {"num_groups": 3}),
    Case("GroupNorm", {"num_groups": None, "group_size": 2, "use_scale": False}),
    Case("InstanceNorm", {}),
    Case("InstanceNorm", {"feature_axes": 2}, 3),
]

# One case a family.
FAMILIES = [CASES[i] for i in (0, 3, 6, 8, 10)]


def sample(shape=(4, 5, 3, 6), dtype=jnp.float32, seed=0):
    x = jax.random.normal(jax.random.key(seed), shape, jnp.float32)
    return (1.5 * x + 0.5).astype(dtype)


def batch_norm(api: str, package: Any, x: Any, *, mask=None, steps=1, **kwargs: Any):
    """Train a BatchNorm on `x`; return the last output and the running statistics."""
    kwargs = TRAINING | kwargs
    if api == "linen":
        module = package.BatchNorm(**kwargs)
        variables = jax.jit(module.init)(jax.random.key(0), jnp.zeros_like(x))
        apply = jax.jit(partial(module.apply, mutable=["batch_stats"]))
        for _ in range(steps):
            y, updates = apply(variables, x, mask=mask)
            variables = {**variables, **updates}
        stats = variables.get("batch_stats")
    else:
        module = package.BatchNorm(x.shape[-1], rngs=flax.nnx.Rngs(0), **kwargs)
        for _ in range(steps):
            y = module(x, mask=mask)
        stats = flax.nnx.to_pure_dict(flax.nnx.state(module, flax.nnx.BatchStat))
    return y, stats


def assert_trees_close(a: Any, b: Any, **tolerance: Any) -> None:
    """Compare structure, shapes, dtypes and values."""
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for left, right in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        assert (left.shape, left.dtype) == (right.shape, right.dtype)
        np.testing.assert_allclose(
            np.asarray(left, np.float32), np.asarray(right, np.float32), **tolerance
        )


def build_linen(case: Case, package: Any, **more: Any) -> Any:
    """Build the module of a case; a BatchNorm is in training."""
    if case.name == "BatchNorm":
        more = TRAINING | more
    return case.build("linen", package, **more)


@partial(jax.jit, static_argnums=0)
def init(module: Any, x: Any) -> Any:
    """Return the variables of a linen module."""
    return module.init(KEY, x)


def train(module: Any, variables: Any, x: Any, steps: int = 1, **kwargs: Any) -> Any:
    """Take training steps of a linen module; return the output and the variables."""

    # Compiled: one program is quicker to make than each operation on its own.
    @jax.jit
    def step(variables, x):
        return module.apply(variables, x, mutable=["batch_stats"], **kwargs)

    for _ in range(steps):
        y, updates = step(variables, x)
        variables = {**variables, **updates}
    return y, variables


def rngs() -> flax.nnx.Rngs:
    """Return the keys that an nnx module is made with."""
    return flax.nnx.Rngs(0)


def pure(module: Any) -> Any:
    """Return the state of an nnx module, as dicts of arrays."""
    return flax.nnx.to_pure_dict(flax.nnx.state(module))
