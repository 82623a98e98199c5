"""Print how accurate a float32 variance is, far from zero.

python -m benchmarks.accuracy
"""

import jax
import jax.numpy as jnp
import numpy as np

import jaxnorm as jn


def fast_variance(x: jax.Array) -> jax.Array:
    """Return E[x^2] - E[x]^2, the default of Flax and Haiku."""
    return jnp.mean(jnp.square(x), 0) - jnp.square(jnp.mean(x, 0))


def variance(x: jax.Array) -> jax.Array:
    """Return the variance of jaxnorm."""
    return jn.compute_moments(x, axis=0).var


def main() -> None:
    """Print a Markdown table of the worst relative error of 4 channels."""
    rng = np.random.default_rng(0)
    print("| offset | E[x^2] - E[x]^2 | jaxnorm |\n|---|---|---|")
    for offset in (0, 100, 10_000, 1_000_000):
        x = rng.normal(offset, 1, (4096, 4)).astype(np.float32)
        exact = x.astype(np.float64).var(0)
        errors = [
            float(np.max(np.abs(f(x) - exact) / exact))
            for f in (jax.jit(fast_variance), jax.jit(variance))
        ]
        cells = [f"{e:.0e}" if e >= 1e-7 else "below 1e-7" for e in errors]
        print(f"| {offset:,} | {cells[0]} | {cells[1]} |")


if __name__ == "__main__":
    main()
