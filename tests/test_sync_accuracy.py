"""The accuracy of one device, on eight: the shards lie far from 0 and from each other.

The running mean is 0, so that nothing known beforehand helps.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxnorm as jn
from tests.spreading import DEVICES, MODES, place, spread

EPS = 1e-5


def shards_around(offset):
    """Return float32 values of standard deviation near 1, and their weights."""
    rng = np.random.default_rng(0)
    own_mean = np.repeat(rng.normal(0, 0.5, DEVICES), 100)[:, None]
    x = rng.normal(offset + own_mean, 1, (100 * DEVICES, 3)).astype(np.float32)
    weights = rng.integers(1, 4, (100 * DEVICES, 1)).astype(np.float32)
    weights[100:199] = weights[400:500] = 0  # one row in shard 1, none in shard 4
    return x, weights


@pytest.mark.usefixtures("number_of_devices")
@pytest.mark.parametrize("offset", [1e4, 1e6])
@pytest.mark.parametrize("mode", MODES, ids=str)
def test_accuracy_contract(mode, offset):
    def run(x, weights):
        return jn.batch_norm(
            x,
            jn.init_stats(3),
            training=True,
            weights=weights,
            axis_name=mode.axis_name,
            eps=EPS,
        )

    x, weights = shards_around(offset)
    f = jax.jit(spread(mode, run, in_axes=(0, 0), out_axes=(0, None)))
    y, stats = f(*place(mode, (jnp.asarray(x), jnp.asarray(weights)), (0, 0)))
    x, weights = x.astype(np.float64), weights.astype(np.float64)
    mean = np.sum(weights * x, 0) / weights.sum()
    var = np.sum(weights * (x - mean) ** 2, 0) / weights.sum()
    np.testing.assert_allclose(stats.var, var, rtol=2e-6)
    assert np.all(np.abs(stats.mean - mean) <= np.spacing(np.float32(offset)))
    np.testing.assert_allclose(y, (x - mean) / np.sqrt(var + EPS), rtol=0, atol=2e-6)
