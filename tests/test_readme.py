"""What the README shows runs, from the top to the bottom."""

import re
from pathlib import Path

import jax.numpy as jnp
import numpy as np

README = Path(__file__).parents[1] / "README.md"


def test_every_python_block_runs():
    blocks = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
    assert len(blocks) >= 5
    namespace = {}
    for block in blocks:
        exec(compile(block, str(README), "exec"), namespace)
    assert jnp.all(namespace["out"] >= 0)  # after a ReLU
    # Sequences of different lengths, normalized over what is there.
    y, mask = namespace["y"], namespace["mask"]
    mean = jnp.mean(y, (0, 1), where=mask)
    np.testing.assert_allclose(mean, 0, atol=1e-6)


def test_every_link_to_a_file_leads_somewhere():
    links = re.findall(r"\]\(([^)#:]+)\)", README.read_text())
    assert links
    for link in links:
        assert (README.parent / link).exists(), link
