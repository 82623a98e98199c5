"""Show how accurate a float32 norm is, on data far from zero.

python -m benchmarks.accuracy
python -m benchmarks.accuracy --help
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from flax import linen
from matplotlib.figure import Figure

import jaxnorm as jn
from benchmarks.providers import PROVIDERS
from examples.common import style
from examples.common.options import (
    one_line_errors,
    require_not_negative,
    require_positive,
)

EPS = 1e-5
OFFSETS = (0, 100, 10_000, 1_000_000)  # of the table; the figure has more
BELOW = 2e-7  # a relative error of one or two roundings


@dataclass(frozen=True)
class Config:
    """Show how accurate a float32 norm is, on data far from zero."""

    rows: int = 4096
    """The number of values of each channel, drawn from N(offset, 1)."""
    channels: int = 4
    """The number of channels; the worst counts."""
    seed: int = 0
    """Seed of the values."""
    out: Path = Path("runs/benchmarks")
    """Where accuracy.png goes."""

    def __post_init__(self) -> None:
        """Refuse what makes no sense before any work is done."""
        require_positive(channels=self.channels)
        if self.rows < 2:
            raise ValueError(f"--rows must be 2 or more, and it is {self.rows}")
        require_not_negative(seed=self.seed)


def fast_variance(x: jax.Array) -> jax.Array:
    """Return E[x^2] - E[x]^2, the default of Flax and Haiku."""
    return jnp.mean(jnp.square(x), 0) - jnp.square(jnp.mean(x, 0))


def two_pass_variance(x: jax.Array) -> jax.Array:
    """Return E[(x - E[x])^2]: Flax's with `use_fast_variance=False`, PyTorch's."""
    return jnp.mean(jnp.square(x - jnp.mean(x, 0)), 0)


def own_variance(x: jax.Array) -> jax.Array:
    """Return the variance of jaxnorm."""
    return jn.compute_moments(x, axis=0).var


def own_output(x: jax.Array) -> jax.Array:
    """Return the output of jaxnorm's batch_norm in training."""
    return jn.batch_norm(x, jn.init_stats(x.shape[-1]), training=True, eps=EPS)[0]


def linen_output(x: jax.Array, *, fast: bool) -> jax.Array:
    """Return the output of Flax's BatchNorm in training."""
    module = linen.BatchNorm(
        use_running_average=False, epsilon=EPS, use_fast_variance=fast
    )
    return module.init_with_output(jax.random.key(0), x)[0]


VARIANCES = {
    "E[x^2] - E[x]^2": fast_variance,
    "two passes": two_pass_variance,
    "jaxnorm": own_variance,
}
OUTPUTS: dict[str, tuple[Callable[[jax.Array], jax.Array], str, str]] = {
    "flax.linen": (lambda x: linen_output(x, fast=True), "linen", "-"),
    "flax.linen, use_fast_variance=False": (
        lambda x: linen_output(x, fast=False),
        "linen",
        "--",
    ),
    "jaxnorm": (own_output, "jaxnorm", "-"),
}


def draw_values(config: Config, offset: float) -> np.ndarray:
    """Return float32 values of standard deviation 1 around `offset`."""
    rng = np.random.default_rng(config.seed)
    return rng.normal(offset, 1, (config.rows, config.channels)).astype(np.float32)


def variance_errors(config: Config, offset: float) -> list[float]:
    """Return the largest relative error of each way to compute a variance."""
    x = draw_values(config, offset)
    exact = x.astype(np.float64).var(0)
    return [
        float(np.max(np.abs(jax.jit(f)(x) - exact) / exact)) for f in VARIANCES.values()
    ]


def output_errors(config: Config, offset: float) -> list[float]:
    """Return the largest absolute error of each output; its values are near 1."""
    x = draw_values(config, offset)
    wide = x.astype(np.float64)
    exact = (wide - wide.mean(0)) / np.sqrt(wide.var(0) + EPS)
    return [
        float(np.max(np.abs(jax.jit(f)(x) - exact))) for f, _, _ in OUTPUTS.values()
    ]


def markdown_table(config: Config) -> str:
    """Return the relative errors of the variance as a Markdown table."""
    lines = [["offset", *VARIANCES], ["---"] * (1 + len(VARIANCES))]
    for offset in OFFSETS:
        errors = variance_errors(config, offset)
        cells = ["below 2e-7" if e < BELOW else f"{e:.0e}" for e in errors]
        lines.append([f"{offset:,}", *cells])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def plot_output_errors(
    offsets: Sequence[float], errors: Sequence[Sequence[float]]
) -> Figure:
    """Draw the error of every output over how far from zero the data lies."""
    figure = Figure(figsize=(7, 3.6), layout="constrained")
    axes = figure.subplots()
    for (name, (_, provider, line)), values in zip(
        OUTPUTS.items(), zip(*errors, strict=True), strict=True
    ):
        color = PROVIDERS[provider].color
        axes.plot(offsets, values, line, color=color, marker="o", ms=4, label=name)
    axes.set(
        xscale="log",
        yscale="log",
        xlabel="mean / standard deviation of the input",
        ylabel="largest error of the output",
        title="BatchNorm in training, float32, against float64 on the same values",
    )
    axes.legend()
    return figure


def main(config: Config) -> None:
    """Print the table; write the figure."""
    with one_line_errors(OSError):
        config.out.mkdir(parents=True, exist_ok=True)
    print(markdown_table(config))
    offsets = np.logspace(0, 6, 13)
    errors = [output_errors(config, offset) for offset in offsets]
    draw = partial(plot_output_errors, offsets.tolist(), errors)
    print("Written:", style.draw_figure(draw, config.out / "accuracy.png"))


if __name__ == "__main__":
    main(tyro.cli(Config, prog="python -m benchmarks.accuracy"))
