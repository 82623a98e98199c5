"""Flax linen's normalization modules, on the functional core.

Class names, arguments and their order, defaults, parameters and collections are those
of `flax.linen`, so that the import is all that changes and checkpoints load in both
directions. Arguments that are not explained here are Flax's. What is added comes last
and leaves Flax's behaviour as it is:

- `mask` may hold fractional weights; it broadcasts to the input.
- `scale` and `bias` may be given at call time, as conditional norms do: per feature, or
  of the rank of the input. Build the module with `use_scale=False, use_bias=False`.

Where Flax is wrong, these modules are right: masked statistics across devices, empty
masks, data with a large offset, statistics of half-precision modules. A batch whose
statistics are not finite leaves the running ones alone. `use_fast_variance` and
`force_float32_reductions` are accepted and change nothing.
"""

from jaxnorm.linen.batch import BatchNorm
from jaxnorm.linen.per_example import GroupNorm, InstanceNorm, LayerNorm, RMSNorm
from jaxnorm.linen.weight_norms import SpectralNorm, WeightNorm

__all__ = [
    "BatchNorm",
    "GroupNorm",
    "InstanceNorm",
    "LayerNorm",
    "RMSNorm",
    "SpectralNorm",
    "WeightNorm",
]
