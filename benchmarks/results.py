"""What the rows say: tables for people, geometric means, and JSON for programs."""

import math
import statistics
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict
from itertools import groupby, product
from typing import Any

from rich.console import Console

from benchmarks.providers import PROVIDERS, SUBJECT
from benchmarks.runner import Row
from benchmarks.shapes import DTYPES, MODE_LABELS, MODES, OPS, shape_name
from benchmarks.timing import geometric_mean

TableRow = dict[str, str]


def make_console() -> Console:
    """Return a console; where it is a file, long rows are not cut."""
    return Console(width=None if sys.stdout.isatty() else 150)


def to_json(row: Row) -> dict[str, Any]:
    """Return a row as plain data."""
    case = asdict(row.case)
    plain = {name: getattr(row, name) for name in ("mode", "provider", "device")}
    for name in ("seconds", "ratio", "costs"):
        value = getattr(row, name)
        plain[name] = None if value is None else value._asdict()
    for name in ("bandwidth", "copy_bandwidth", "compile_seconds"):
        plain[name] = getattr(row, name)
    return {**case, "shape": list(row.case.shape), **plain}


def by_case(rows: Iterable[Row]) -> list[dict[str, Row]]:
    """Return the rows of each case and mode by provider, in the order measured."""
    groups = groupby(rows, key=lambda row: (row.case, row.mode))
    return [{row.provider: row for row in group} for _, group in groups]


def peers_of(rows: Iterable[Row]) -> list[str]:
    """Return the peers that were measured, in the order of the table."""
    seen = {row.provider for row in rows}
    return [name for name in PROVIDERS if name in seen and name != SUBJECT]


def timed_mean(rows: Iterable[Row], **wanted: str) -> float | None:
    """Return the geometric mean of the ratios of some rows.

    Args:
      rows: what was measured.
      wanted: op, dtype, mode and provider of the rows that count.
    """
    return geometric_mean(
        [
            row.ratio.median
            for row in rows
            if row.ratio is not None
            and wanted.items()
            <= {
                "op": row.case.op,
                "dtype": row.case.dtype,
                "mode": row.mode,
                "provider": row.provider,
            }.items()
        ]
    )


def tables(
    rows: Sequence[Row], means: Sequence[dict[str, Any]]
) -> Iterator[tuple[str, list[TableRow]]]:
    """Give title and rows of each table: of one operation, dtype and mode, then means.

    They fit in 80 columns. `means` are the `mean_records` of the rows.
    """
    for group in _by_kind(rows):
        case, mode = group[0].case, MODE_LABELS[group[0].mode]
        kind = f"{case.op}, {case.dtype}, {mode}" + (", spread" if case.spread else "")
        if group[0].seconds is not None:
            yield f"{kind}: time", time_table(group)
        yield f"{kind}: costs of {' | '.join(costs_are_of(group))}", cost_table(group)
    kinds = groupby(means, key=lambda r: (r["mode"], r["dtype"]))
    for (mode, dtype), records in kinds:
        title = f"{dtype}, {MODE_LABELS[mode]}: geometric means over the shapes"
        yield title, mean_table(list(records))


def time_table(rows: Sequence[Row]) -> list[TableRow]:
    """Return jaxnorm's time and how much longer peers take, one row a shape."""
    peers = peers_of(rows)
    table = []
    for group in by_case(rows):
        subject = group[SUBJECT]
        cells = {"shape": shape_name(subject.case.shape)}
        cells["ms"] = _milliseconds(subject)
        cells["GB/s"] = _number(subject.bandwidth, 1e9, digits=1)
        cells["of copy"] = _percent(subject.bandwidth, subject.copy_bandwidth)
        for peer in peers:
            ratio = group[peer].ratio if peer in group else None
            cells[peer] = "" if ratio is None else f"{ratio.median:.2f}"
        table.append(cells)
    return table


def costs_are_of(rows: Sequence[Row]) -> list[str]:
    """Return jaxnorm and the peer that its costs are shown beside, if there is one."""
    return [SUBJECT, *(name for name in peers_of(rows) if PROVIDERS[name].is_jax)][:2]


def cost_table(rows: Sequence[Row]) -> list[TableRow]:
    """Return the deterministic costs, jaxnorm's beside those of one peer."""
    names = costs_are_of(rows)
    columns = {
        "bytes / element": lambda row: _number(row.costs.bytes_per_element, digits=1),
        "residual / input": lambda row: _number(row.costs.residual_per_input, digits=2),
        "temporary MiB": lambda row: _number(row.costs.temp_bytes, 2**20, digits=2),
        "collectives": lambda row: str(row.costs.collectives),
        "compile s": lambda row: _number(row.compile_seconds, digits=2),
    }
    table = []
    for group in by_case(rows):
        shown = [group[name] for name in names if name in group]
        cells = {"shape": shape_name(group[SUBJECT].case.shape)}
        for column, cell in columns.items():
            cells[column] = " | ".join(filter(None, map(cell, shown)))
        table.append(cells)
    return table


def mean_records(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Return means over the shapes, one record an op, dtype and mode.

    "ratios" are geometric means of times, and "fastest" is that of the fastest JAX peer
    in every case. "worst" is the case on which jaxnorm does worst against it: the
    ratio, the peer and the shape. "bytes" are the bytes per element that XLA counts, of
    jaxnorm and of each JAX peer.
    """
    records: list[dict[str, Any]] = []
    for mode, dtype, op in product(MODES, DTYPES, OPS):
        where = {"op": op, "dtype": dtype, "mode": mode}
        if timed_mean(rows, **where, provider=SUBJECT) is None:
            continue
        means = {p: timed_mean(rows, **where, provider=p) for p in peers_of(rows)}
        lowest = _against_the_fastest(rows, **where)
        names = "ratio", "provider", "shape"
        record = {
            **where,
            "ratios": means,
            "fastest": geometric_mean([ratio for ratio, *_ in lowest]),
            "worst": dict(zip(names, min(lowest), strict=True)) if lowest else None,
            "bytes": _mean_bytes(rows, **where),
        }
        records.append(record)
    return records


def mean_table(records: Sequence[dict[str, Any]]) -> list[TableRow]:
    """Return the geometric means of one mode and dtype as the cells of a table."""
    return [
        {
            "op": record["op"],
            **{p: _number(mean, digits=2) for p, mean in record["ratios"].items()},
            "fastest": _number(record["fastest"], digits=2),
            "worst case": "{ratio:.2f} {shape}".format(**record["worst"])
            if record["worst"]
            else "",
        }
        for record in records
    ]


def _by_kind(rows: Iterable[Row]) -> list[list[Row]]:
    """Return the rows of each operation, dtype and mode."""
    found: dict[tuple[str, str, str], list[Row]] = {}
    for row in rows:
        kind = (row.case.op, row.case.dtype, row.mode)
        found.setdefault(kind, []).append(row)
    return list(found.values())


def _mean_bytes(
    rows: Sequence[Row], *, op: str, dtype: str, mode: str
) -> dict[str, float]:
    found: dict[str, list[float]] = {}
    for row in rows:
        if (row.case.op, row.case.dtype, row.mode) == (op, dtype, mode):
            counted = row.costs and row.costs.bytes_per_element
            if counted is not None:
                found.setdefault(row.provider, []).append(counted)
    return {provider: statistics.mean(counts) for provider, counts in found.items()}


def _against_the_fastest(
    rows: Sequence[Row], *, op: str, dtype: str, mode: str
) -> list[tuple[float, str, str]]:
    """Return each case's ratio to the fastest JAX peer, that peer and the shape."""
    lowest = []
    for group in by_case(rows):
        found = [
            (row.ratio.median, name, shape_name(row.case.shape))
            for name, row in group.items()
            if (row.case.op, row.case.dtype, row.mode) == (op, dtype, mode)
            if name != SUBJECT and PROVIDERS[name].is_jax and row.ratio is not None
        ]
        if found:
            lowest.append(min(found))
    return lowest


def _milliseconds(row: Row) -> str:
    if row.seconds is None:
        return ""
    median, mad = 1e3 * row.seconds.median, 1e3 * row.seconds.mad
    return f"{_three_digits(median)} ± {_three_digits(mad)}"


def _three_digits(value: float) -> str:
    decimals = 3 if value <= 0 else max(0, 2 - math.floor(math.log10(value)))
    return f"{value:.{min(decimals, 3)}f}"


def _number(value: float | None, unit: float = 1, *, digits: int) -> str:
    return "" if value is None else f"{value / unit:.{digits}f}"


def _percent(value: float | None, whole: float | None) -> str:
    return "" if value is None or whole is None else f"{100 * value / whole:.0f}%"
