"""Measure a whole training step: its time and its memory, jaxnorm against Flax.

A small residual network with BatchNorm on images of digits, and a stack of transformer
blocks with LayerNorm; their blocks unrolled, and under `lax.scan`. Only the norm
differs between two programs of a row.

python -m benchmarks.train_step
python -m benchmarks.train_step --help
"""

import random
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import tyro

from benchmarks import settings
from benchmarks.providers import PROVIDERS, SUBJECT, Function, Provider
from benchmarks.shapes import Case, Dtype
from examples.common.options import one_line_errors, require_positive

NetworkName = Literal["resnet", "transformer"]
PeerName = Literal["linen", "nnx", "haiku"]


@dataclass(frozen=True)
class Config:
    """Measure a whole training step: its time and its memory, jaxnorm against Flax."""

    networks: tuple[NetworkName, ...] = ("resnet", "transformer")
    """The networks."""
    peers: tuple[PeerName, ...] = ("linen",)
    """Whose norm stands beside jaxnorm's."""
    dtype: Dtype = "float32"
    """The dtype of activations; parameters are float32."""
    blocks: int = 3
    """Blocks in each of the three stages of the residual network."""
    images: int = 64
    """Images in a batch."""
    layers: int = 12
    """Blocks of the transformer."""
    width: int = 512
    """Features of the transformer, a multiple of its 8 heads."""
    length: int = 128
    """Tokens in a sequence."""
    sequences: int = 2
    """Sequences in a batch."""
    rounds: int = 7
    """Samples of each program."""
    out: Path = Path("runs/benchmarks")
    """Where train_step.json and train_step.png go."""

    def __post_init__(self) -> None:
        """Refuse what makes no sense before any work is done."""
        names = ("blocks", "images", "layers", "width", "length", "sequences", "rounds")
        require_positive(**{name: getattr(self, name) for name in names})
        if self.width % 8:
            raise ValueError(
                f"--width must be a multiple of the 8 heads, and it is {self.width}"
            )
        for name, values in (("networks", self.networks), ("peers", self.peers)):
            if not values or len(set(values)) < len(values):
                raise ValueError(f"--{name} takes one or more, each of them once")


def make_network(config: Config, name: str, provider: Provider, scan: bool) -> Any:
    """Return a network with the norm of a provider."""
    import jax.numpy as jnp

    from benchmarks.networks import resnet, transformer

    if name == "resnet":
        shape: tuple[int, ...] = (config.images, 8, 8)
        sizes = {"blocks": config.blocks, "batch_size": config.images}
        make, op = partial(resnet, **sizes), "batch_norm"
    else:
        shape = (config.sequences, config.length)
        sizes = {
            "layers": config.layers,
            "width": config.width,
            "length": config.length,
            "batch_size": config.sequences,
        }
        make, op = partial(transformer, **sizes), "layer_norm"

    def norms(features: int) -> Function:
        function = provider.build(Case(op, (*shape, features), config.dtype))
        assert function is not None
        return function

    norms(1)  # imports the library, before anything is timed
    return make(norms, jnp.dtype(config.dtype), scan=scan)


def compile_step(network: Any) -> tuple[Callable[[], float], dict[str, Any]]:
    """Compile a training step; return what runs it, and its memory and compile time.

    Each call takes the next step from the state that the last one left, and returns the
    loss.
    """
    import jax
    import optax

    optimizer = optax.sgd(1e-3, momentum=0.9)

    def step(state, batch):
        params, stats, momentum = state
        grad = jax.value_and_grad(network.loss, has_aux=True)
        (loss, stats), grads = grad(params, stats, batch)
        updates, momentum = optimizer.update(grads, momentum, params)
        return (optax.apply_updates(params, updates), stats, momentum), loss

    params, stats = jax.jit(network.init)(jax.random.key(0))
    state = (params, stats, optimizer.init(params))
    batch = network.batch(jax.random.key(1))
    start = time.perf_counter()
    compiled = jax.jit(step, donate_argnums=0).lower(state, batch).compile()
    seconds = time.perf_counter() - start
    memory = compiled.memory_analysis()
    whole = ("argument", "output", "temp")
    sizes = {name: getattr(memory, f"{name}_size_in_bytes", 0) for name in whole}
    aliased = getattr(memory, "alias_size_in_bytes", 0)

    def run() -> float:
        nonlocal state
        state, loss = jax.block_until_ready(compiled(state, batch))
        return float(loss)

    return run, {
        "temp_bytes": sizes["temp"],
        "total_bytes": sum(sizes.values()) - aliased,
        "compile_seconds": seconds,
    }


def measure_steps(config: Config) -> list[dict[str, Any]]:
    """Return one record a network, way to run its blocks, and provider."""
    from benchmarks.timing import Timing, summarize, time_in_turns

    records = []
    providers = (SUBJECT, *config.peers)
    timing = Timing(config.rounds, sample_seconds=0.05)
    for name in config.networks:
        for scan in (False, True):
            networks = {
                provider: make_network(config, name, PROVIDERS[provider], scan)
                for provider in providers
            }
            chance = random.Random(f"{name} {scan}")  # the same in every run
            compiled = {
                provider: compile_step(networks[provider])
                for provider in chance.sample(providers, len(providers))
            }
            steps = {provider: compiled[provider] for provider in providers}
            losses = {provider: run() for provider, (run, _) in steps.items()}
            runs = {provider: run for provider, (run, _) in steps.items()}
            samples = time_in_turns(runs, timing)
            for provider, (_, facts) in steps.items():
                records.append(
                    {
                        "network": name,
                        "scan": scan,
                        "provider": provider,
                        "first_loss": losses[provider],
                        "seconds": summarize(samples[provider])._asdict(),
                        **facts,
                    }
                )
    return records


def table_row(record: dict[str, Any]) -> dict[str, str]:
    """Return the cells of a record."""
    seconds = record["seconds"]
    return {
        "network": record["network"] + (", scan" if record["scan"] else ""),
        "norm": record["provider"],
        "ms": f"{1e3 * seconds['median']:.1f} ± {1e3 * seconds['mad']:.1f}",
        "temporary MiB": f"{record['temp_bytes'] / 2**20:.2f}",
        "all MiB": f"{record['total_bytes'] / 2**20:.2f}",
        "compile s": f"{record['compile_seconds']:.1f}",
        "first loss": f"{record['first_loss']:.5f}",
    }


def plot_steps(records: list[dict[str, Any]], title: str) -> Any:
    """Draw step time, and temporary memory below. Returns a matplotlib figure."""
    from matplotlib.figure import Figure

    networks = list(dict.fromkeys(record["network"] for record in records))
    figure = Figure(figsize=(1 + 4.5 * len(networks), 6.4), layout="constrained")
    panels = figure.subplots(len(QUANTITIES), len(networks), squeeze=False)
    for (label, value), line in zip(QUANTITIES.items(), panels, strict=True):
        for network, axes in zip(networks, line, strict=True):
            _plot_bars(axes, [r for r in records if r["network"] == network], value)
            axes.set(title=network, ylabel=label)
    figure.suptitle(title)
    handles, labels = panels[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels))
    return figure


QUANTITIES: dict[str, Callable[[dict[str, Any]], float]] = {
    "step time (ms)": lambda record: 1e3 * record["seconds"]["median"],
    "temporary memory (MiB)": lambda record: record["temp_bytes"] / 2**20,
}


def _plot_bars(
    axes: Any, records: list[dict[str, Any]], value: Callable[..., float]
) -> None:
    """Draw one network's bars, providers side by side."""
    providers = list(dict.fromkeys(record["provider"] for record in records))
    width = 0.8 / len(providers)
    for index, provider in enumerate(providers):
        axes.bar(
            [place - 0.4 + (index + 0.5) * width for place in (0, 1)],
            [value(record) for record in records if record["provider"] == provider],
            width=0.9 * width,
            color=PROVIDERS[provider].color,
            label=provider,
        )
    axes.set_xticks((0, 1), ("unrolled", "scan"))
    axes.grid(visible=False, axis="x")


def main(config: Config) -> None:
    """Measure; print a table; write train_step.json and train_step.png."""
    from benchmarks.results import make_console
    from examples.common import report, style

    with one_line_errors(OSError):
        config.out.mkdir(parents=True, exist_ok=True)
    with settings.own_cache():
        records = measure_steps(config)
    table = [table_row(record) for record in records]
    report.print_table(make_console(), "A training step", table)
    environment = settings.describe_environment()
    content = {
        "environment": environment,
        "config": asdict(config),
        "records": records,
    }
    written = [report.write_json(config.out / "train_step.json", content)]
    title = f"A training step, {config.dtype}; {settings.device_name(environment)}"
    draw = partial(plot_steps, records, title)
    written.append(style.draw_figure(draw, config.out / "train_step.png"))
    print("Written:", *written, sep="\n  ")


if __name__ == "__main__":
    chosen = tyro.cli(Config, prog="python -m benchmarks.train_step")
    settings.restart_with_settings("benchmarks.train_step", sys.argv[1:])
    main(chosen)
