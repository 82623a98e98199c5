"""What the README shows runs, from the top to the bottom."""

import re
from pathlib import Path

import chex
import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
from flax import linen

import jaxnorm as jn

README = Path(__file__).parents[1] / "README.md"
BATCHES = np.random.default_rng(0).normal(1, 2, (5, 16, 3)).astype(np.float32)


def test_every_python_block_runs():
    text = README.read_text()
    blocks = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    assert len(blocks) == text.count("```python") > 0
    namespace = {}
    for block in blocks:
        exec(compile(block, str(README), "exec"), namespace)
    assert jnp.all(namespace["out"] >= 0)  # after a ReLU
    # A training step that learns, and a function that Haiku takes.
    np.testing.assert_allclose(namespace["loss"], np.log(3), rtol=1e-6)
    assert namespace["logits"].argmax(-1).tolist() == [0, 2]
    images = namespace["images"]
    model = hk.transform_with_state(namespace["haiku_forward"])
    _, state = model.init(None, images, True)
    _, state = model.apply({}, state, None, images, True)
    np.testing.assert_allclose(
        state["~"]["stats"].mean, images.mean((0, 1, 2)), atol=1e-6
    )
    # The gradient of all devices together is that of one.
    normalized = jax.nn.standardize(images, (0, 1, 2), epsilon=1e-5)
    cubes = jnp.mean(normalized**3, (0, 1, 2))
    np.testing.assert_allclose(namespace["grads"], cubes, atol=1e-6)
    # Sequences of different lengths, normalized over what is there.
    y, mask = namespace["y"], namespace["mask"]
    mean = jnp.mean(y, (0, 1), where=mask)
    np.testing.assert_allclose(mean, 0, atol=1e-6)


def test_the_recipe_for_flaxs_averages():
    module = linen.BatchNorm(use_running_average=False, momentum=0.99)
    variables = module.init(jax.random.key(0), BATCHES[0])
    stats = jn.init_stats(3, prior_weight=1.0)
    for x in BATCHES:
        _, updates = module.apply(variables, x, mutable=["batch_stats"])
        variables = {**variables, **updates}
        _, stats = jn.batch_norm(x, stats, training=True, decay=0.99)
    theirs = variables["batch_stats"]
    chex.assert_trees_all_close(
        (stats.mean, stats.var), (theirs["mean"], theirs["var"]), rtol=1e-5
    )


def test_the_recipe_for_haikus_averages():
    def forward(x):
        return hk.BatchNorm(True, True, decay_rate=0.99)(x, is_training=True)

    module = hk.without_apply_rng(hk.transform_with_state(forward))
    params, state = module.init(None, BATCHES[0])
    stats = jn.init_stats(3)
    for x in BATCHES:
        _, state = module.apply(params, state, x)
        _, stats = jn.batch_norm(x, stats, training=True, decay=0.99)
    mean, var = (
        state[f"batch_norm/~/{name}_ema"]["average"][0] for name in ("mean", "var")
    )
    chex.assert_trees_all_close((stats.mean, stats.var), (mean, var), rtol=1e-4)


def test_every_link_to_a_file_leads_somewhere():
    links = re.findall(r"\]\(([^)#:]+)\)", README.read_text())
    assert links
    for link in links:
        assert (README.parent / link).exists(), link
