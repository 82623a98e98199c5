"""jaxnorm: functional normalization for JAX. State in, state out, plain pytrees.

`help(jaxnorm.batch_norm)` has its equation, shapes, dtypes, errors and an example.

Normalize
    batch_norm              every feature over the batch, with running statistics
    layer_norm, rms_norm    every example over its features
    group_norm              groups of channels of every example
    instance_norm           every channel of every example over space
    normalize               by given statistics
Moments
    compute_moments, merge_moments, pool_moments    of an array, two sets, all devices
Running statistics
    init_stats, update_stats        start and move them
    merge_stats, check_replicas     where every device keeps its own
Kernels
    weight_norm, weight_standardization, spectral_norm, init_spectral_stats

The public API is these names, the types `Moments`, `NormStats` and `SpectralStats`, and
the modules `jaxnorm.linen` and `jaxnorm.nnx`. All other modules may change at any time.
"""

from jaxnorm.moments import Moments, compute_moments, merge_moments, pool_moments
from jaxnorm.normalization import normalize
from jaxnorm.norms.batch import batch_norm
from jaxnorm.norms.per_example import group_norm, instance_norm, layer_norm, rms_norm
from jaxnorm.replicas import check_replicas, merge_stats
from jaxnorm.running import update_stats
from jaxnorm.spectral import SpectralStats, init_spectral_stats, spectral_norm
from jaxnorm.stats import NormStats, init_stats
from jaxnorm.weight_norms import weight_norm, weight_standardization

__version__ = "0.1.0"

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
