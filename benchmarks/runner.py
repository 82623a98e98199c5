"""The one runner: every provider's program of every case, measured side by side."""

import multiprocessing
import random
from collections.abc import Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial

import jax
import numpy as np
from tqdm import tqdm

from benchmarks import settings
from benchmarks.costs import Costs
from benchmarks.programs import Program, compile_case, copy_program, make_inputs
from benchmarks.providers import SUBJECT, Provider
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
      seconds: of a call; None where no time was taken.
      ratio: this provider's time over jaxnorm's, sample by sample: above 1 where
        jaxnorm is faster.
      bandwidth: minimal bytes over the median time, bytes a second.
      copy_bandwidth: that of a plain pass over the input, measured in the same turns.
      compile_seconds: time to trace, lower and compile.
      costs: what the compiler says of the program.
    """

    case: Case
    mode: Mode
    provider: str
    device: str
    seconds: Summary | None = None
    ratio: Summary | None = None
    bandwidth: float | None = None
    copy_bandwidth: float | None = None
    compile_seconds: float | None = None
    costs: Costs | None = None


def run(
    cases: Sequence[Case],
    modes: Sequence[Mode],
    providers: Sequence[Provider],
    timing: Timing,
) -> list[Row]:
    """Measure every provider on every case in every mode.

    Cases that need several devices run in a process of their own, on simulated CPU
    devices, where this one has too few: more devices would change how the other cases
    use the cores.
    """
    apart = [
        case for case in cases if case.axis_name and jax.device_count() < SYNC_DEVICES
    ]
    here = [case for case in cases if case not in apart]
    rows = run_here(here, modes, providers, timing)
    if apart:
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(
            1, mp_context=context, initializer=_simulate_devices
        ) as pool:
            names = [provider.name for provider in providers]
            task = partial(_run_by_name, apart, modes, names, timing)
            rows += pool.submit(task).result()
    order = list(OPS)
    return sorted(rows, key=lambda row: order.index(row.case.op))


def run_here(
    cases: Sequence[Case],
    modes: Sequence[Mode],
    providers: Sequence[Provider],
    timing: Timing,
) -> list[Row]:
    """Measure in this process."""
    rows: list[Row] = []
    steps = [(case, mode) for case in cases for mode in modes]
    for case, mode in (bar := tqdm(steps, unit="row", disable=None)):
        bar.set_postfix_str(f"{case.op} {case.shape} {case.dtype} {mode}")
        rows += measure(case, mode, providers, timing)
    return rows


def measure(
    case: Case, mode: Mode, providers: Sequence[Provider], timing: Timing
) -> list[Row]:
    """Measure all providers on one case in one mode, in turns.

    Where arrays lie in memory makes one of two equal programs faster, by 10% and more.
    So they are compiled in an order that differs from row to row, and their inputs are
    put elsewhere before every round.
    """
    inputs = make_inputs(case, mode)
    chance = random.Random(f"{case} {mode}")  # the same in every run
    compiled = {
        provider.name: compile_case(provider, case, mode, inputs)
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
    copied = 2 * case.size * case.itemsize / summarize(samples[copy]).median
    rows = []
    for name, program in programs.items():
        seconds = summarize(samples[name])
        rows.append(
            _row(
                case,
                mode,
                name,
                program,
                seconds=seconds,
                ratio=_ratio(samples[name], samples.get(SUBJECT)),
                bandwidth=case.minimal_bytes(mode) / seconds.median,
                copy_bandwidth=copied,
            )
        )
    return rows


def _row(case: Case, mode: Mode, name: str, program: Program, **measured) -> Row:
    device = jax.devices()[0].device_kind
    return Row(
        case,
        mode,
        name,
        device=f"{SYNC_DEVICES} x {device}" if case.axis_name else device,
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


def _ratio(samples: Sequence[float], subject: Sequence[float] | None) -> Summary | None:
    if subject is None:
        return None
    return summarize([a / b for a, b in zip(samples, subject, strict=True)])


def _simulate_devices() -> None:
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", SYNC_DEVICES)


def _run_by_name(
    cases: Sequence[Case], modes: Sequence[Mode], names: Sequence[str], timing: Timing
) -> list[Row]:
    from benchmarks.providers import PROVIDERS

    with settings.compiled_anew():
        return run_here(cases, modes, [PROVIDERS[name] for name in names], timing)
