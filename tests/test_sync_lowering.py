"""What TPUs and GPUs would run, lowered without them: the collectives are there."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export

from examples import sync_bn_shard_map
from examples.common import data, sync
from tests.collectives import list_lowered_collectives
from tests.spreading import AXIS, CHECKED, MAPPED, VMAP, make_mesh, spread
from tests.sync_norms import NORMS

PLATFORMS = ["tpu", "cuda", "cpu"]


def lowered(f, platform, *args):
    """Return the StableHLO text of `f`, exported for one platform."""
    exported = export.export(f, platforms=[platform])(*args)
    assert exported.platforms == (platform,)
    assert exported.nr_devices == 8
    return exported.mlir_module()


@pytest.mark.parametrize("platform", PLATFORMS)
@pytest.mark.parametrize("mode", [m for m in MAPPED if m is not VMAP], ids=str)
def test_a_norm_lowers_to_one_collective_each_way(mode, platform):
    norm, axis = NORMS["batch"]
    scale = bias = np.ones(4, np.float32)

    def forward(x):
        return norm(x, scale, bias, axis_name=AXIS)[0]

    def backward(x):
        return jax.grad(lambda x: jnp.sum(forward(x) ** 2))(x)

    x = np.ones((16, 3, 4), np.float32)
    for f, count in ((forward, 1), (backward, 2)):
        whole = jax.jit(spread(mode, f, in_axes=(axis,), out_axes=axis))
        text = lowered(whole, platform, x)
        assert list_lowered_collectives(text) == ["all_reduce"] * count


@pytest.mark.parametrize("platform", PLATFORMS)
def test_the_training_step_of_the_example_lowers(platform):
    config = sync.Config(width=2, depth=3)
    task = sync.make_task(config)
    step = sync_bn_shard_map.make_step(task, make_mesh(CHECKED))
    train_data, _ = data.load_digits(limit=20)
    batch = next(sync.batches_from(0, train_data, config, multiple=8))
    state = jax.eval_shape(partial(sync.start_state, config, task))
    found = list_lowered_collectives(lowered(step, platform, state, batch))
    # Three layers, forward and backward. XLA joins the others, which JAX adds: the sums
    # of the loss and of the gradient of every parameter.
    parameters = len(jax.tree.leaves(state.params))
    assert set(found) == {"all_reduce"}
    assert 2 * config.depth < len(found) <= 2 * config.depth + parameters + 2
