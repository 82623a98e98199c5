"""jaxnorm: functional normalization for JAX. State in, state out, plain pytrees."""

from jaxnorm.moments import Moments, compute_moments, merge_moments, pool_moments
from jaxnorm.normalization import normalize
from jaxnorm.norms.batch import batch_norm
from jaxnorm.norms.per_example import group_norm, instance_norm, layer_norm, rms_norm
from jaxnorm.replicas import check_replicas, merge_stats
from jaxnorm.running import NormStats, init_stats, update_stats
from jaxnorm.weight_norms import (
    SpectralStats,
    init_spectral_stats,
    spectral_norm,
    weight_norm,
    weight_standardization,
)

__all__ = [
    "Moments",
    "NormStats",
    "SpectralStats",
    "batch_norm",
    "check_replicas",
    "compute_moments",
    "group_norm",
    "init_spectral_stats",
    "init_stats",
    "instance_norm",
    "layer_norm",
    "merge_moments",
    "merge_stats",
    "normalize",
    "pool_moments",
    "rms_norm",
    "spectral_norm",
    "update_stats",
    "weight_norm",
    "weight_standardization",
]
