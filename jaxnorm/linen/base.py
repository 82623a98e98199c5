"""What the linen modules have in common."""

from typing import Any, ClassVar

import jax
from flax import linen as nn
from flax.linen.dtypes import canonicalize_dtype
from jax.typing import ArrayLike

from jaxnorm.flax_shared import inputs

STATS = "batch_stats"


def label_of(module: nn.Module) -> str:
    """Return the module's name and path, for errors."""
    path = "/".join(module.path)
    return f"{type(module).__name__} at {path!r}" if path else type(module).__name__


class Norm(nn.Module):
    """Declares scale and bias. Helpers are kept out of summaries by `nowrap`."""

    # Those of this library. A user's subclass of RMSNorm may have an attribute `bias`,
    # and a use for it, of its own.
    _parameter_names: ClassVar[tuple[str, ...]] = ("scale", "bias")

    @nn.nowrap
    def _parameters(
        self,
        x: jax.Array,
        features: tuple[int, ...],
        scale: ArrayLike | None,
        bias: ArrayLike | None,
    ) -> tuple[jax.Array | None, jax.Array | None, Any]:
        """Return scale and bias of the rank of `x`, and the dtype of the output."""

        def find(name: str, given: ArrayLike | None) -> jax.Array | None:
            own = None
            if name in self._parameter_names and getattr(self, f"use_{name}"):
                init = getattr(self, f"{name}_init")
                shape = inputs.sizes_of(x, features)
                own = self.param(name, init, shape, self.param_dtype)
            return inputs.parameter(label_of(self), name, x, features, own, given)

        gamma, beta = find("scale", scale), find("bias", bias)
        return gamma, beta, canonicalize_dtype(x, gamma, beta, dtype=self.dtype)
