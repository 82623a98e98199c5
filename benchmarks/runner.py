"""The one runner: every provider's program of every case, measured side by side."""

import multiprocessing
import random
import tempfile
from collections.abc import Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from typing import NamedTuple

import jax
import numpy as np
from tqdm import tqdm

from benchmarks import settings
from benchmarks.costs import Costs
from benchmarks.programs import Program, compile_case, copy_program, make_inputs
from benchmarks.providers import PROVIDERS, SUBJECT, Provider
from benchmarks.shapes import OPS, SYNC_DEVICES, Case, Mode
from benchmarks.timing import Summary, Timing, summarize, time_in_turns

# Between the inputs of two programs lie at most so many bytes: up to 64 pages.
MOST_BETWEEN = 2**18


@dataclass(frozen=True)
class Row:
    """What was measured of one provider on one case in one mode.

    Attributes:
      case: operation, shape and dtype.
      mode: forward, vjp or jvp.
      provider: whose program it is.
      device: kind of the device, and how many.
      samples: seconds of a call; none where no time was taken.
      subject_samples: those of jaxnorm, each taken beside one of `samples`.
      copy_samples: those of a plain pass over the input, in the same turns.
      compile_seconds: time to trace, lower and compile.
      costs: what the compiler says of the program.
    """

    case: Case
    mode: Mode
    provider: str
    device: str
    samples: tuple[float, ...] = ()
    subject_samples: tuple[float, ...] = ()
    copy_samples: tuple[float, ...] = ()
    compile_seconds: float | None = None
    costs: Costs | None = None

    @property
    def seconds(self) -> Summary | None:
        """Seconds of a call."""
        return _summarize(self.samples)

    @property
    def ratio(self) -> Summary | None:
        """This provider's time over jaxnorm's, above 1 where jaxnorm is faster."""
        if not self.subject_samples:
            return None
        pairs = zip(self.samples, self.subject_samples, strict=True)
        return _summarize([sample / subject for sample, subject in pairs])

    @property
    def bandwidth(self) -> float | None:
        """Minimal bytes over the median time, bytes a second."""
        return _per_second(self.case.minimal_bytes(self.mode), self.seconds)

    @property
    def copy_bandwidth(self) -> float | None:
        """That of the plain pass."""
        moved = 2 * self.case.size * self.case.itemsize
        return _per_second(moved, _summarize(self.copy_samples))


class Plan(NamedTuple):
    """What is to be measured, as another process can be told it."""

    cases: Sequence[Case]
    modes: Sequence[Mode]
    providers: Sequence[str]
    timing: Timing


def run(plan: Plan, processes: int = 1) -> list[Row]:
    """Measure every provider on every case in every mode, in one process or several.

    Which of two equal programs is faster can change from process to process, so
    samples of several are pooled. The first is this one, and compiles for all.

    Cases that need several devices run in processes of their own, on simulated CPU
    devices, where this one has too few: more devices would change how the other cases
    use the cores.
    """
    apart = [case for case in plan.cases if case.devices > jax.device_count()]
    here = [case for case in plan.cases if case not in apart]
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as folder:
        cache = folder if processes > 1 else None
        for cases, simulate in ((here, False), (apart, True)):
            part = plan._replace(cases=cases)
            each = [
                _run_elsewhere(part, cache, process, simulate=simulate)
                if simulate or process
                else run_here(part, cache)
                for process in range(processes if cases else 0)
            ]
            rows += pool_rows(each)
    order = list(OPS)
    return sorted(rows, key=lambda row: order.index(row.case.op))


def run_here(plan: Plan, cache: str | None = None, process: int = 0) -> list[Row]:
    """Measure in this process, one of those that share a cache."""
    rows: list[Row] = []
    providers = [PROVIDERS[name] for name in plan.providers]
    steps = [(case, mode) for case in plan.cases for mode in plan.modes]
    with settings.own_cache(cache):
        for case, mode in (bar := tqdm(steps, unit="row", disable=None)):
            bar.set_postfix_str(f"{case.op} {case.shape} {case.dtype} {mode}")
            rows += measure(case, mode, providers, plan.timing, process)
    return rows


def pool_rows(each: Sequence[Sequence[Row]]) -> list[Row]:
    """Put together what several processes measured of the same; the first knows all."""

    def pool(first: Row, *others: Row) -> Row:
        for row in others:
            first = replace(
                first,
                samples=first.samples + row.samples,
                subject_samples=first.subject_samples + row.subject_samples,
                copy_samples=first.copy_samples + row.copy_samples,
            )
        return first

    return [pool(*rows) for rows in zip(*each, strict=True)]


def measure(
    case: Case,
    mode: Mode,
    providers: Sequence[Provider],
    timing: Timing,
    process: int = 0,
) -> list[Row]:
    """Measure all providers on one case in one mode, in turns.

    Where arrays lie in memory makes one of two equal programs faster, by 10% and more.
    So they are compiled in an order that differs from row to row and from process to
    process, and their inputs are put elsewhere before every round.
    """
    inputs = make_inputs(case, mode)
    chance = random.Random(f"{case} {mode} {process}")  # the same in every run
    compiled = {
        provider.name: compile_case(
            provider, case, mode, inputs, with_costs=process == 0
        )
        for provider in chance.sample(providers, len(providers))
    }
    programs: dict[str, Program] = {
        provider.name: program
        for provider in providers
        if (program := compiled[provider.name]) is not None
    }
    if timing.rounds == 0:
        return [_row(case, mode, name, programs[name]) for name in programs]
    copy = "copy"
    timed = {**programs, copy: copy_program(case, inputs)}
    samples = time_in_turns(
        {name: program.run for name, program in timed.items()},
        timing,
        before_round=lambda: move_inputs(timed.values(), chance),
    )
    measured = {name: tuple(values) for name, values in samples.items()}
    return [
        _row(
            case,
            mode,
            name,
            program,
            samples=measured[name],
            subject_samples=measured.get(SUBJECT, ()),
            copy_samples=measured[copy],
        )
        for name, program in programs.items()
    ]


def _summarize(samples: Sequence[float]) -> Summary | None:
    return summarize(samples) if samples else None


def _per_second(moved: int, seconds: Summary | None) -> float | None:
    return None if seconds is None else moved / seconds.median


def _row(case: Case, mode: Mode, name: str, program: Program, **measured) -> Row:
    device = jax.devices()[0].device_kind
    return Row(
        case,
        mode,
        name,
        device=f"{case.devices} x {device}" if case.devices > 1 else device,
        compile_seconds=program.compile_seconds,
        costs=program.costs,
        **measured,
    )


def move_inputs(programs: Iterable[Program], chance: random.Random) -> None:
    """Put the inputs elsewhere in memory, at random distances, and warm up."""
    between = []
    for program in programs:
        between.append(np.ones(chance.randrange(MOST_BETWEEN), np.uint8))
        program.move()
        program.run()


def _run_elsewhere(
    plan: Plan, cache: str | None, process: int, *, simulate: bool
) -> list[Row]:
    """Measure in a new process, on simulated devices or on those that are there."""
    context = multiprocessing.get_context("spawn")
    start = _simulate_devices if simulate else None
    with ProcessPoolExecutor(1, mp_context=context, initializer=start) as pool:
        return pool.submit(run_here, plan, cache, process).result()


def _simulate_devices() -> None:
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", SYNC_DEVICES)
