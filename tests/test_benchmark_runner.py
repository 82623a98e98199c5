"""The benchmarks: the runner, and what it writes."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
import pytest
from rich.console import Console

from benchmarks import __main__ as cli
from benchmarks import programs, results, runner, settings, shapes
from benchmarks.costs import Costs
from benchmarks.figure import plot_ratios
from benchmarks.providers import PROVIDERS
from benchmarks.runner import Plan, Row
from benchmarks.shapes import Case
from benchmarks.timing import Timing
from examples.common import report
from tests.benchmark_cases import small_case
from tests.example_parts import assert_is_picture

ROOT = Path(__file__).parents[1]
BRIEF = Timing(rounds=2, sample_seconds=1e-5, warmup=1)


def providers(*names):
    return [PROVIDERS[name] for name in names]


def test_runner_writes_json_and_figure(tmp_path, capsys):
    cases = [small_case("batch_norm"), small_case("sync_batch_norm", "bfloat16")]
    modes = ("forward", "vjp")
    rows = runner.run(Plan(cases, modes, ("jaxnorm", "linen"), BRIEF))
    assert len(rows) == len(cases) * len(modes) * 2
    config = cli.Config(out=tmp_path)
    cli.report_rows(rows, settings.describe_environment(), config)
    printed = capsys.readouterr().out
    for text in (
        "batch_norm, float32, forward: time",
        "batch_norm, float32, forward: costs of jaxnorm | linen",
        " linen ",
        "of copy",
    ):
        assert text in printed

    content = json.loads((tmp_path / "results.json").read_text())
    assert content["environment"]["cores"] >= 1
    assert content["environment"]["versions"]["jax"] == jax.__version__
    assert {"MALLOC_MMAP_MAX_", "XLA_FLAGS"} <= content["environment"][
        "settings"
    ].keys()
    assert len(content["means"]) == 4
    counted = content["rows"][0]["costs"]["bytes_per_element"]
    assert content["means"][0]["bytes"]["jaxnorm"] == counted
    for row, record in zip(rows, content["rows"], strict=True):
        assert record["shape"] == list(row.case.shape)
        assert record["seconds"]["median"] > 0 and record["seconds"]["samples"] == 2
        assert record["bandwidth"] > 0 and record["copy_bandwidth"] > 0
        assert record["compile_seconds"] > 0
        moved = record["costs"]["bytes_per_element"] * row.case.size
        assert moved >= row.case.minimal_bytes(row.mode)
        sync = row.case.op == "sync_batch_norm"
        expected = (2 if row.mode == "vjp" else 1) if sync else 0
        assert record["costs"]["collectives"] == expected
        assert (record["costs"]["residual_per_input"] is None) == (row.mode != "vjp")
    assert_is_picture(tmp_path / "ratios.png")


def test_tables_fit_in_80_columns(capsys):
    names = tuple(PROVIDERS)
    counts = Costs(188.8, 18.88, 188 * 2**20, 18)
    rows = [
        Row(
            Case(op, (32, 56, 56, 64), "bfloat16"),
            mode,
            name,
            "cpu",
            samples=(0.01111, 0.01111, 0.00888),
            subject_samples=(0.000125, 0.000125, 0.000125),
            copy_samples=(0.0001,),
            compile_seconds=18.88,
            costs=counts,
        )
        for op in shapes.OPS
        for mode in shapes.MODES
        for name in names
    ]
    for title, table in results.tables(rows, results.mean_records(rows)):
        report.print_table(Console(width=80), title, table, padding=0)
        printed = capsys.readouterr().out
        assert title in printed and "…" not in printed
        for row in table:
            for cell in row.values():
                assert all(word in printed for word in cell.split())


def test_a_quick_run_leaves_the_results_of_a_long_one_alone(tmp_path):
    assert cli.Config().folder() == Path("runs/benchmarks")
    assert cli.Config(quick=True).folder() == Path("runs/benchmarks/quick")
    both = cli.Config(quick=True, spread=True)
    assert both.folder() == Path("runs/benchmarks/spread/quick")
    assert cli.Config(quick=True, out=tmp_path).folder() == tmp_path


def test_the_figure_tells_a_ratio_of_1_from_none():
    rows = [
        Row(small_case("layer_norm"), "vjp", name, "cpu", (1.0,), (1.0,))
        for name in ("jaxnorm", "linen")
    ]
    more = Row(small_case("rms_norm"), "vjp", "nnx", "cpu", (2.0,), (1.0,))
    (axes, *_) = plot_ratios([*rows, more], "title").axes
    dots = [found.get_offsets()[:, 1].tolist() for found in axes.collections]
    assert dots == [[1.0], [2.0]]


def test_bandwidth_is_that_of_the_bytes_that_have_to_be_moved(monkeypatch):
    monkeypatch.setattr(
        runner,
        "time_in_turns",
        lambda runs, *_, **__: {name: [0.5] * 2 for name in runs},
    )
    case = small_case("batch_norm")
    (row,) = runner.measure(case, "vjp", providers("jaxnorm"), BRIEF)
    assert row.bandwidth == case.minimal_bytes("vjp") / 0.5
    assert row.copy_bandwidth == 2 * 4 * case.size / 0.5  # read, and written


def test_the_first_to_be_compiled_differs_from_row_to_row(monkeypatch):
    compiled = []

    def compile_case(provider, *args, **options):
        compiled.append(provider.name)
        return programs.compile_case(provider, *args, **options)

    monkeypatch.setattr(runner, "compile_case", compile_case)
    names = ("jaxnorm", "linen", "jax.nn")
    untimed = Timing(rounds=0)

    def first(features, process=0):
        compiled.clear()
        case = Case("layer_norm", (8, features), "float32")
        rows = runner.measure(case, "forward", providers(*names), untimed, process)
        assert tuple(row.provider for row in rows) == names
        return compiled[0]

    firsts = [first(features) for features in range(2, 12)]
    assert set(firsts) == set(names)
    assert firsts == [first(features) for features in range(2, 12)]
    assert {first(2, process) for process in range(10)} == set(names)


def test_ratio_is_above_one_where_jaxnorm_is_faster():
    case = small_case("layer_norm")
    rows = [
        Row(case, "vjp", name, "cpu", (ratio,), (1.0,))
        for name, ratio in (("jaxnorm", 1.0), ("linen", 4.0), ("nnx", 0.5))
    ]
    (record,) = results.mean_records(rows)
    assert record["ratios"] == {"linen": 4.0, "nnx": 0.5}
    assert record["worst"] == {"ratio": 0.5, "provider": "nnx", "shape": "24x16"}


def test_the_fastest_peer_is_another_in_every_case():
    rows = [
        Row(Case("layer_norm", shape, "float32"), "vjp", name, "cpu", (ratio,), (1.0,))
        for shape, linen in (((8, 16), 4.0), ((8, 32), 0.5))
        for name, ratio in (("jaxnorm", 1.0), ("linen", linen), ("torch", 0.1))
        + ((("nnx", 2.0),) if linen > 1 else ())
    ]
    (record,) = results.mean_records(rows)
    assert record["fastest"] == pytest.approx(1.0)  # of 2, nnx's, and 0.5, linen's
    assert record["worst"] == {"ratio": 0.5, "provider": "linen", "shape": "8x32"}
    (cells,) = results.mean_table([record])
    assert cells["fastest"] == "1.00"


def test_samples_of_several_processes_are_pooled(monkeypatch):
    """Another finds what the first has compiled, and takes no costs anew."""
    cases = [small_case("layer_norm")]
    plan = Plan(cases, ("forward",), ("jaxnorm", "linen"), BRIEF)
    elsewhere, found = runner._run_elsewhere, []

    def run_elsewhere(plan, cache, process, *, simulate):
        before = set(os.listdir(cache))
        rows = elsewhere(plan, cache, process, simulate=simulate)
        found.append((process, simulate, before, set(os.listdir(cache)) - before))
        assert all(row.costs is None for row in rows)
        return rows

    monkeypatch.setattr(runner, "_run_elsewhere", run_elsewhere)
    for row in runner.run(plan, processes=2):
        assert len(row.samples) == len(row.subject_samples) == 2 * BRIEF.rounds
        assert row.costs is not None
        expected = np.median(np.divide(row.samples, row.subject_samples))
        assert row.ratio.median == pytest.approx(expected)
    ((process, simulate, before, new),) = found
    assert (process, simulate, new) == (1, False, set())
    assert before


@pytest.mark.parametrize(
    ("backend", "options", "processes"),
    [
        ("cpu", {}, 5),
        ("cpu", {"quick": True}, 1),
        ("cpu", {"costs_only": True}, 1),
        ("cpu", {"processes": 2}, 2),
        ("gpu", {}, 1),
        ("gpu", {"processes": 1}, 1),
    ],
)
def test_as_many_processes_as_the_device_allows(
    backend, options, processes, monkeypatch
):
    monkeypatch.setattr(jax, "default_backend", lambda: backend)
    assert cli.Config(**options).chosen_processes() == processes


def test_an_accelerator_belongs_to_one_process(monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    with pytest.raises(SystemExit, match="error: --processes must be 1 where the dev"):
        cli.measure(cli.Config(processes=2))


def test_batches_that_plain_jit_spreads():
    case = replace(small_case("batch_norm"), spread=True)
    names = ("jaxnorm", "linen", "equinox")
    rows = runner.measure(case, "vjp", providers(*names), BRIEF)
    assert [row.costs.collectives > 0 for row in rows] == [True] * 3
    assert rows[0].costs.collectives == 2
    assert rows[0].device == "4 x cpu" and rows[0].ratio.median == 1
    titles = [title for title, _ in results.tables(rows, [])]
    assert titles[0] == "batch_norm, float32, forward + backward, spread: time"
    alone = runner.measure(small_case("batch_norm"), "vjp", providers(*names), BRIEF)
    for row, other in zip(rows, alone, strict=True):
        # Each device has a quarter of the elements.
        ratio = row.costs.bytes_per_element / other.costs.bytes_per_element
        assert 0.5 < ratio < 3


@pytest.mark.parametrize(
    "options", ["--ops sync_batch_norm", "--ops batch_norm --spread"]
)
def test_one_process_has_too_few_devices(options, tmp_path):
    """The runner starts another, with simulated devices."""
    options += " --shapes 32x7x7x512 --dtypes bfloat16 --costs-only"
    command = [sys.executable, "-m", "benchmarks", *options.split()]
    command += ["--modes", "forward", "--providers", "linen", "--out", str(tmp_path)]
    environment = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"}
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    content = json.loads((tmp_path / "results.json").read_text())
    assert content["environment"]["settings"]["MALLOC_ARENA_MAX"] == "1"
    assert [row["costs"]["collectives"] for row in content["rows"]] == [1, 1]
    assert not (tmp_path / "ratios.png").exists()  # no time was taken
