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


@pytest.fixture
def one_device(monkeypatch):
    """Run a test with the sums of one CPU device.

    With eight devices no program is known to run on one of them; here it is.
    """
    yield from sums_of_one_device(monkeypatch, True)


@pytest.fixture(params=["packed", "plain"])
def way_to_sum(request, monkeypatch):
    """Run a test with the sums of one CPU device, then with all others'."""
    yield from sums_of_one_device(monkeypatch, request.param == "packed")


def sums_of_one_device(monkeypatch, value):
    from jaxnorm import moments, normalization, slices

    monkeypatch.setattr(slices, "_on_one_device", lambda: value)
    # What was traced before would be taken for the same program.
    traced = (
        normalization.normalize_by_moments,
        normalization.normalize_by_statistics,
        moments._measure,
    )
    for function in traced:
        function.clear_cache()
    yield
    for function in traced:
        function.clear_cache()


@pytest.fixture(autouse=True)
def same_numbers(request, monkeypatch):
    """Let a test draw the same numbers whichever test ran before it."""
    if hasattr(request.module, "RNG"):
        monkeypatch.setattr(request.module, "RNG", np.random.default_rng(0))
