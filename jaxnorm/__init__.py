"""jaxnorm: functional normalization for JAX. State in, state out, plain pytrees."""

from jaxnorm.moments import Moments, compute_moments, merge_moments, pool_moments
from jaxnorm.normalization import normalize
from jaxnorm.norms.batch import batch_norm
from jaxnorm.norms.per_example import group_norm, instance_norm, layer_norm, rms_norm
from jaxnorm.running import NormStats, init_stats, merge_stats, update_stats

__all__ = [
    "Moments",
    "NormStats",
    "batch_norm",
    "compute_moments",
    "group_norm",
    "init_stats",
    "instance_norm",
    "layer_norm",
    "merge_moments",
    "merge_stats",
    "normalize",
    "pool_moments",
    "rms_norm",
    "update_stats",
]
