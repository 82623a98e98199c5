"""The demo, as its user runs it."""

import dataclasses
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
import tyro

from examples import demo
from examples.common import report, style
from tests.example_parts import assert_is_picture

ROOT = Path(__file__).parents[1]


def run_demo(*options: str) -> subprocess.CompletedProcess[str]:
    cache = {
        "JAX_COMPILATION_CACHE_DIR": jax.config.jax_compilation_cache_dir or "",
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.2",
    }
    return subprocess.run(
        [sys.executable, "-m", "examples.demo", *options],
        cwd=ROOT,
        env={**os.environ, **cache, "COLUMNS": "120"},
        capture_output=True,
        text=True,
        timeout=300,
    )


def test_demo_small(tmp_path):
    out = tmp_path / "new" / "demo"
    done = run_demo(
        "--epochs", "2", "--width", "2", "--depth", "2", "--limit", "75",
        "--batch-size", "30", "--devices", "4", "--out", str(out),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "step/s" not in done.stderr  # the progress bar is for terminals
    assert "4 simulated CPU devices with 75 images; 75 images" in done.stdout
    results = json.loads((out / "results.json").read_text())
    assert list(results["norms"]) == ["batch", "group", "none"]
    for norm, summary in results["norms"].items():
        row = next(
            line for line in done.stdout.splitlines() if style.NORM_LABELS[norm] in line
        )
        cells = row.replace(style.NORM_LABELS[norm], "").split()
        names = ["test_accuracy", "test_loss", "train_loss", "seconds_per_step"]
        assert cells == [
            *(report.format_number(summary[name]) for name in names),
            f"{summary['parameters']:,}",
        ]
        assert {len(values) for values in summary["history"].values()} == {2}
        assert all(np.isfinite(summary[name]) for name in names)
        assert 0 <= summary["test_accuracy"] <= 1
        # 75 rows: what was counted is a whole number of real ones
        hits = 75 * summary["test_accuracy"]
        np.testing.assert_allclose(hits, round(hits), atol=1e-3)
    for figure in ("curves.png", "layer_inputs.png"):
        assert_is_picture(out / figure)
        assert str(out / figure) in done.stdout


def test_demo_error_is_one_line():
    done = run_demo("--devices", "1000")
    assert done.returncode != 0
    message = r"1000 devices were asked for, and JAX has \d+ of one kind"
    assert any(re.search(message, line) for line in done.stderr.splitlines())
    assert "Traceback" not in done.stderr
    assert done.stdout == ""


@pytest.fixture
def stop_demo(tmp_path, monkeypatch, capsys):
    """Return what runs the demo where it stops: its exit code, and what it printed."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a file").touch()
    monkeypatch.setenv("COLUMNS", "120")

    def stop(*options: str) -> tuple[object, str, str]:
        with pytest.raises(SystemExit) as stopped:
            demo.main(tyro.cli(demo.Config, args=["--epochs=1", "--limit=8", *options]))
        return stopped.value.code, *capsys.readouterr()

    return stop


def test_demo_help(stop_demo):
    code, printed, _ = stop_demo("--help")
    assert code == 0
    for field in dataclasses.fields(demo.Config):
        assert f"--{field.name.replace('_', '-')} " in printed
    for choice in ("batch,group,layer,instance,none", "lamb", "warmup-cosine"):
        assert choice in printed


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--batch-size=0", "--batch-size must be positive, and it is 0"),
        ("--norms=bach", "invalid choice 'bach' for argument '--norms'"),
        ("--out=a file", "File exists: 'a file'"),
    ],
)
def test_demo_bad_options(options, message, stop_demo):
    code, printed, errors = stop_demo(options)
    assert code  # a number, or what Python prints as it stops
    lines = [*errors.splitlines(), *str(code).splitlines()]
    assert any(re.search(message, line) for line in lines)
    assert printed == ""


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"devices": 0}, "--devices must be positive, and it is 0"),
        ({"epochs": -1}, "--epochs must be positive, and it is -1"),
        ({"limit": 0}, "--limit must be positive, and it is 0"),
        ({"learning_rate": float("nan")}, "--learning-rate must be positive"),
        ({"learning_rate": float("inf")}, "--learning-rate must be positive"),
        ({"seed": -1}, "--seed must not be negative, and it is -1"),
        ({"weight_decay": -0.1}, "--weight-decay must not be negative"),
        ({"norms": ()}, "one norm or more, each of them once"),
        ({"norms": ("batch", "batch")}, "one norm or more, each of them once"),
    ],
)
def test_config_refuses(options, message):
    with pytest.raises(ValueError, match=message):
        demo.Config(**options)
