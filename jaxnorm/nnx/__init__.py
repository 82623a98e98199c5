"""Flax nnx's normalization modules, on the functional core.

Class names, arguments and their order, defaults, and variables with their names and
types are those of `flax.nnx`, so that the import is all that changes and checkpoints
load in both directions. Arguments that are not explained here are Flax's. What is added
comes last and leaves Flax's behaviour as it is:

- `mask` may hold fractional weights; it broadcasts to the input.
- `scale` and `bias` may be given at call time, as conditional norms do: per feature, or
  of the rank of the input. Build the module with `use_scale=False, use_bias=False`.
- `num_features` may be a tuple where there are several feature axes.

Where Flax is wrong, these modules are right: masked statistics across devices, empty
masks, data with a large offset, statistics of half-precision modules (`promote_dtype`
says the dtype of the output; nothing is rounded before). A batch whose statistics are
not finite leaves the running ones alone. SpectralNorm and WeightNorm leave the kernels
of their layer as they are, and the lengths of WeightNorm are learned. The argument
`use_fast_variance` is accepted and changes nothing, and so is `promote_dtype` by
WeightNorm, as in Flax.
"""

from jaxnorm.nnx.batch import BatchNorm
from jaxnorm.nnx.per_example import GroupNorm, InstanceNorm, LayerNorm, RMSNorm
from jaxnorm.nnx.weight_norms import SpectralNorm, WeightNorm

__all__ = [
    "BatchNorm",
    "GroupNorm",
    "InstanceNorm",
    "LayerNorm",
    "RMSNorm",
    "SpectralNorm",
    "WeightNorm",
]
