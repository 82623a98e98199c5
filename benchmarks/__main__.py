"""Measure jaxnorm and its peers side by side, and write table, JSON and figure.

python -m benchmarks --quick
python -m benchmarks --help
"""

import math
import sys
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import tyro

from benchmarks import settings
from benchmarks.providers import PROVIDERS, SUBJECT, Provider, installed_providers
from benchmarks.shapes import MODES, OPS, SHAPE_NAMES, Dtype, Mode, select_cases
from examples.common.options import one_line_errors, require_positive

OpName = Literal[tuple(OPS)]
ShapeName = Literal[SHAPE_NAMES]
ProviderName = Literal[tuple(PROVIDERS)]


@dataclass(frozen=True)
class Config:
    """Measure jaxnorm and its peers side by side, and write table, JSON and figure.

    Every filter takes several names; without it all are measured. In a table the
    column of a peer is its time over jaxnorm's: above 1 jaxnorm is faster.
    """

    ops: tuple[OpName, ...] = ()
    """Only these operations."""
    shapes: tuple[ShapeName, ...] = ()
    """Only these shapes."""
    dtypes: tuple[Dtype, ...] = ()
    """Only these dtypes."""
    modes: tuple[Mode, ...] = ()
    """Only these modes: the forward pass, it and gradients, it and a tangent."""
    providers: tuple[ProviderName, ...] = ()
    """Only these peers beside jaxnorm, which have to be installed."""
    spread: bool = False
    """Spread batches over four devices, on a CPU simulated ones, under plain jit."""
    quick: bool = False
    """One or two shapes an operation, no jvp, fewer samples: two minutes."""
    costs_only: bool = False
    """Take no time; only what is deterministic."""
    processes: int | None = None
    """Processes, whose samples are pooled; 5, or 1 where quick or on an accelerator."""
    rounds: int | None = None
    """Samples of each program in each process; 15 in all, or 5 where quick."""
    sample_ms: float | None = None
    """A sample repeats the call for about so long; 20, or 4 where quick."""
    out: Path | None = None
    """Where results.json and ratios.png go; runs/benchmarks[/spread][/quick]."""

    def __post_init__(self) -> None:
        """Refuse what makes no sense before any work is done."""
        require_positive(
            processes=self.processes, rounds=self.rounds, sample_ms=self.sample_ms
        )
        self.chosen_providers()
        if not self.cases():
            raise ValueError(
                "no operation of --ops is measured on a shape of --shapes (and "
                "sync_batch_norm not with --spread); leave one of them out to see what "
                "goes together"
            )

    def folder(self) -> Path:
        """Return where results go; what was measured otherwise is left alone."""
        kinds = {"spread": self.spread, "quick": self.quick}
        chosen = (kind for kind, is_chosen in kinds.items() if is_chosen)
        return self.out or Path("runs/benchmarks", *chosen)

    def cases(self) -> list[Any]:
        """Return the cases of the table that pass the filters."""
        filters = self.ops, self.shapes, self.dtypes
        return select_cases(*filters, quick=self.quick, spread=self.spread)

    def chosen_modes(self) -> tuple[Mode, ...]:
        """Return the modes; a quick run leaves out jvp, unless it is named."""
        default = tuple(mode for mode in MODES if not self.quick or mode != "jvp")
        return self.modes or default

    def chosen_processes(self) -> int:
        """Return the number of processes. An accelerator belongs to one of them."""
        import jax

        alone = jax.default_backend() != "cpu"
        if alone and (self.processes or 1) > 1:
            raise ValueError("--processes must be 1 where the device is no CPU")
        one = alone or self.quick or self.costs_only
        return self.processes or (1 if one else 5)

    def chosen_providers(self) -> list[Provider]:
        """Return jaxnorm and the chosen peers; a peer that is named must be there."""
        names = (SUBJECT, *self.providers) if self.providers else ()
        chosen = installed_providers(names)
        absent = set(self.providers) - {provider.name for provider in chosen}
        if absent:
            raise ValueError(
                f"--providers: not installed here: {', '.join(sorted(absent))}; "
                f"install what is missing, or leave it out"
            )
        return chosen


def measure(config: Config) -> tuple[list[Any], dict[str, Any]]:
    """Measure what was chosen; return the rows and the environment."""
    from benchmarks.runner import Plan, Timing, run

    with one_line_errors(ValueError):
        processes = config.chosen_processes()
    rounds = config.rounds or math.ceil((5 if config.quick else 15) / processes)
    timing = Timing(
        rounds=0 if config.costs_only else rounds,
        sample_seconds=(config.sample_ms or (4 if config.quick else 20)) / 1e3,
    )
    names = [provider.name for provider in config.chosen_providers()]
    plan = Plan(config.cases(), config.chosen_modes(), names, timing)
    rows = run(plan, processes)
    how = {"timing": timing._asdict(), "processes": processes}
    return rows, {**settings.describe_environment(), **how}


def report_rows(rows: list[Any], environment: dict[str, Any], config: Config) -> None:
    """Print the tables; write results.json and, where time was taken, ratios.png."""
    from benchmarks import results
    from benchmarks.figure import plot_ratios
    from examples.common import report, style

    console = results.make_console()
    means = results.mean_records(rows)
    for title, table in results.tables(rows, means):
        report.print_table(console, title, table, padding=0)

    content = {
        "environment": environment,
        "config": asdict(config),
        "means": means,
        "rows": [results.to_json(row) for row in rows],
    }
    folder = config.folder()
    written = [report.write_json(folder / "results.json", content)]
    if means:
        title = f"{settings.device_name(environment)}, {environment['cores']} cores"
        draw = partial(plot_ratios, rows, title)
        written.append(style.draw_figure(draw, folder / "ratios.png"))
    console.print("Written:", *written, sep="\n  ", soft_wrap=True, highlight=False)


def main(config: Config) -> None:
    """Measure and report."""
    with one_line_errors(OSError):
        config.folder().mkdir(parents=True, exist_ok=True)
    report_rows(*measure(config), config)


if __name__ == "__main__":
    chosen = tyro.cli(Config, prog="python -m benchmarks")
    settings.restart_with_settings("benchmarks", sys.argv[1:])
    main(chosen)
