"""Time several programs in turns: A B C A B C, so that all see the same machine."""

import gc
import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple


class Timing(NamedTuple):
    """How long to measure.

    Attributes:
      rounds: samples of each program.
      sample_seconds: a sample repeats the call until it takes about so long.
      warmup: calls before the first sample.
    """

    rounds: int = 15
    sample_seconds: float = 0.02
    warmup: int = 2


class Summary(NamedTuple):
    """Median and spread of some samples.

    `mad` is the median absolute deviation from the median.
    """

    median: float
    first_quartile: float
    third_quartile: float
    mad: float
    best: float
    samples: int


def summarize(samples: Sequence[float]) -> Summary:
    """Return median and spread."""
    median = statistics.median(samples)
    first, third = median, median
    if len(samples) > 1:
        first, _, third = statistics.quantiles(samples, n=4, method="inclusive")
    mad = statistics.median(abs(sample - median) for sample in samples)
    return Summary(median, first, third, mad, min(samples), len(samples))


def time_in_turns(
    runs: Mapping[str, Callable[[], Any]],
    timing: Timing,
    before_round: Callable[[], Any] = lambda: None,
) -> dict[str, list[float]]:
    """Return seconds per call, `timing.rounds` samples of each run.

    Sample i of one run is taken next to sample i of every other, so that the ratio of
    the two is fair even where the machine is not steady. Each round starts with another
    run.
    """
    calls = {name: _calls_per_sample(run, timing) for name, run in runs.items()}
    samples: dict[str, list[float]] = {name: [] for name in runs}
    names = list(runs)
    collects = gc.isenabled()
    gc.disable()
    try:
        for turn in range(timing.rounds):
            before_round()
            first = turn % len(names)
            for name in names[first:] + names[:first]:
                samples[name].append(_sample(runs[name], calls[name]))
    finally:
        if collects:
            gc.enable()
    return samples


def _sample(run: Callable[[], Any], calls: int) -> float:
    start = time.perf_counter()
    for _ in range(calls):
        run()
    return (time.perf_counter() - start) / calls


def _calls_per_sample(run: Callable[[], Any], timing: Timing) -> int:
    """Warm up, and return how many calls fill a sample."""
    seconds = min(_sample(run, 1) for _ in range(max(timing.warmup, 1)))
    return max(1, math.ceil(timing.sample_seconds / max(seconds, 1e-7)))


def geometric_mean(values: Sequence[float]) -> float | None:
    """Return the geometric mean, None of nothing."""
    return statistics.geometric_mean(values) if values else None
