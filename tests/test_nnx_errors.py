"""The nnx modules: what they refuse."""

import jax.numpy as jnp
import pytest
from flax import nnx

import jaxnorm.nnx as ours
from tests.flax_modules import rngs, sample


@pytest.mark.parametrize(
    ("call", "error", "text"),
    [
        (
            lambda: ours.BatchNorm(5, rngs=rngs())(sample((4, 6))),
            ValueError,
            r"BatchNorm\(num_features=5\): num_features must be the size of axis 1 of"
            r" x. Received x with shape \(4, 6\)",
        ),
        (
            lambda: ours.LayerNorm(5, rngs=rngs(), use_scale=False, use_bias=False)(
                sample((4, 6))
            ),
            ValueError,
            r"LayerNorm\(num_features=5\): num_features must be",
        ),
        (
            lambda: ours.RMSNorm(6, rngs=rngs())(jnp.ones((4, 6), int)),
            TypeError,
            r"RMSNorm\(num_features=6\): x must have a floating-point",
        ),
        (
            lambda: ours.BatchNorm(6, momentum=2.0, rngs=rngs())(sample((4, 6))),
            ValueError,
            r"BatchNorm\(num_features=6\): momentum must lie in",
        ),
        (
            lambda: ours.BatchNorm(6, use_running_average=None, rngs=rngs())(
                sample((4, 6))
            ),
            ValueError,
            "No `use_running_average` argument was provided",
        ),
        (
            lambda: ours.LayerNorm(6, rngs=rngs())(sample((4, 6)), scale=jnp.ones(6)),
            ValueError,
            "use_scale=False",
        ),
        (
            lambda: ours.GroupNorm(6, 2, reduction_axes=0, rngs=rngs())(sample((4, 6))),
            ValueError,
            "must include the feature axis 1",
        ),
        (
            lambda: ours.GroupNorm(6, 4, rngs=rngs()),
            ValueError,
            r"GroupNorm\(num_features=6\): num_groups must be positive and divide",
        ),
        (
            lambda: ours.GroupNorm(6, 2, 3, rngs=rngs()),
            ValueError,
            "either num_groups or group_size must be given",
        ),
        (
            lambda: ours.InstanceNorm(4, feature_axes=0, rngs=rngs())(sample((4, 6))),
            ValueError,
            "cannot include the leading dimension",
        ),
        (
            lambda: ours.SpectralNorm(
                nnx.Conv(3, 4, (2, 2), rngs=rngs()),
                error_on_non_matrix=True,
                rngs=rngs(),
            ),
            ValueError,
            "is 4D but error_on_non_matrix is True",
        ),
        (
            lambda: ours.SpectralNorm(
                nnx.Conv(3, 4, (2,), rngs=rngs()), error_on_non_matrix=True, rngs=rngs()
            ),
            ValueError,
            "is 3D but error_on_non_matrix is True",
        ),
        (
            lambda: ours.BatchNorm(6, rngs=rngs())(
                sample((4, 6)), jnp.ones((4, 1), bool)
            ),
            TypeError,
            r"use_running_average must be True, False or a boolean scalar array\. "
            r"Received use_running_average with shape \(4, 1\); a mask is",
        ),
        (
            lambda: ours.BatchNorm(6, rngs=rngs())(sample((4, 6)), "no"),
            TypeError,
            "use_running_average must be True, False .*average='no'; a mask is given",
        ),
        (
            lambda: ours.BatchNorm(6, rngs=rngs())(sample((4, 6)), jnp.array(0.3)),
            TypeError,
            r"use_running_average must be True, False .*average=Array\(0\.3.*; a mask",
        ),
        (
            lambda: ours.BatchNorm(32.0, rngs=rngs()),
            TypeError,
            r"^BatchNorm\(num_features=32\.0\): num_features must be an integer, or a "
            "sequence of them. Received float; pass",
        ),
        (
            lambda: ours.LayerNorm(6.0, use_scale=False, use_bias=False, rngs=rngs()),
            TypeError,
            r"^LayerNorm\(num_features=6\.0\): num_features must be an integer, or a "
            "sequence of them. Received float; pass",
        ),
        (
            lambda: ours.GroupNorm("6", 2, rngs=rngs()),
            TypeError,
            r"^GroupNorm\(num_features=6\): num_features must be an integer, or a "
            "sequence of them. Received str; pass",
        ),
        (
            lambda: ours.RMSNorm(-6, rngs=rngs()),
            ValueError,
            r"^RMSNorm\(num_features=-6\): num_features must not be negative. "
            "Received num_features=-6",
        ),
        (
            lambda: ours.BatchNorm((3, -1), rngs=rngs()),
            ValueError,
            r"^BatchNorm\(num_features=\(3, -1\)\): num_features must not be negative. "
            r"Received num_features=\(3, -1\)",
        ),
        (
            lambda: ours.SpectralNorm(nnx.Linear(6, 4, rngs=rngs()), rngs=rngs())(
                sample((4, 6)), update_stats="yes"
            ),
            TypeError,
            "^SpectralNorm: update_stats must be True, False or a boolean scalar array."
            " Received update_stats='yes'; it says whether the new u and sigma are kep",
        ),
        (
            lambda: ours.LayerNorm(6, epsilon=0.0, rngs=rngs())(sample((4, 6))),
            ValueError,
            "Received epsilon=0.0; the usual value is 1e-6",
        ),
    ],
)
def test_wrong_arguments(call, error, text):
    with pytest.raises(error, match=text):
        call()


def test_statistics_of_another_layer():
    norm = ours.BatchNorm(6, rngs=rngs())
    nnx.update(norm, {"mean": jnp.zeros(5), "var": jnp.ones(5)})
    with pytest.raises(ValueError, match=r"the running statistics must have shape"):
        norm(sample((4, 6)))
