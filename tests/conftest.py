"""What every test needs before JAX starts: eight simulated devices, a compile cache."""

import os
from pathlib import Path

os.environ["XLA_FLAGS"] = (
    os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
)
os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import numpy as np
import pytest

jax.config.update(
    "jax_compilation_cache_dir", str(Path(__file__).parents[1] / ".cache" / "jax")
)
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)


@pytest.fixture(params=["packed", "plain"])
def way_to_sum(request, monkeypatch):
    """Run a test with the sums of one CPU device, then with those of everything else.

    With eight devices no program is known to run on one of them; here it is.
    """
    from jaxnorm import slices

    monkeypatch.setattr(slices, "_on_one_device", lambda: request.param == "packed")


@pytest.fixture(autouse=True)
def same_numbers(request, monkeypatch):
    """Let a test draw the same numbers whichever test ran before it."""
    if hasattr(request.module, "RNG"):
        monkeypatch.setattr(request.module, "RNG", np.random.default_rng(0))
