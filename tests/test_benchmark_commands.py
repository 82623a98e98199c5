"""The benchmarks' command lines; growth, and a training step."""

import json
import math
import os
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tyro

from benchmarks import __main__ as cli
from benchmarks import (
    accuracy,
    growth,
    networks,
    settings,
    train_step,
)
from benchmarks.providers import PROVIDERS, installed_providers
from tests.example_parts import assert_is_picture

# Command lines.


@pytest.mark.parametrize(
    ("module", "option"),
    [
        (cli, "--rounds"),
        (growth, "--rounds"),
        (train_step, "--rounds"),
        (accuracy, "--rows"),
    ],
)
def test_help(module, option, capsys):
    with pytest.raises(SystemExit) as stop:
        tyro.cli(module.Config, args=["--help"])
    assert stop.value.code == 0
    assert option in capsys.readouterr().out


@pytest.mark.parametrize(
    ("module", "arguments", "message"),
    [
        (cli, "--ops batchnorm", "invalid choice 'batchnorm'"),
        (cli, "--shapes 3x3", "invalid choice '3x3'"),
        (cli, "--rounds 0", "--rounds must be positive, and it is 0"),
        (cli, "--quick --ops rms_norm --shapes 32x7x7x512", "no operation of --ops is"),
        (
            cli,
            "--spread --ops sync_batch_norm",
            "leave one of them out",
        ),
        (growth, "--elements -1", "--elements must be positive"),
        (growth, "--largest 1e4", "--largest must be 100000 or more, and --channels"),
        (growth, "--ops", "--ops takes one operation or more"),
        (train_step, "--networks resnet resnet", "--networks takes one or more, each"),
        (accuracy, "--rows 1", "--rows must be 2 or more, and it is 1"),
        (train_step, "--width 12", "--width must be a multiple of the 8 heads"),
    ],
)
def test_wrong_options_are_one_clear_error(module, arguments, message, capsys):
    with pytest.raises(SystemExit) as stop:
        tyro.cli(module.Config, args=arguments.split())
    assert stop.value.code == 2
    printed = "".join(capsys.readouterr())
    assert message in " ".join(printed.replace("│", " ").split())


def test_peer_that_is_not_installed(monkeypatch):
    absent = PROVIDERS["torch"]._replace(package="no_such_package")
    monkeypatch.setitem(PROVIDERS, "torch", absent)
    assert "torch" not in [provider.name for provider in installed_providers()]
    with pytest.raises(ValueError, match="not installed here: torch; install"):
        cli.Config(providers=("torch",))


def test_process_restarts_with_the_allocator_settings(monkeypatch):
    started = []
    monkeypatch.setattr(os, "execve", lambda *call: started.append(call))
    monkeypatch.setenv("MALLOC_ARENA_MAX", "2")  # what a user has set is kept
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    settings.restart_with_settings("benchmarks", ["--quick"])
    ((_, command, environment),) = started
    assert command == [sys.executable, "-m", "benchmarks", "--quick"]
    assert environment["MALLOC_ARENA_MAX"] == "2"
    assert environment["OMP_WAIT_POLICY"] == "PASSIVE"
    for name in settings.missing_settings():
        monkeypatch.setenv(name, environment[name])
    settings.restart_with_settings("benchmarks", ["--quick"])
    assert len(started) == 1


# Growth, and a training step.


def test_growth(tmp_path, capsys):
    config = growth.Config(
        ops=("batch_norm",), largest=1e5, elements=64, most_channels=2,
        mode="forward", rounds=1, sample_ms=0.01, out=tmp_path,
    )  # fmt: skip
    growth.main(config)
    records = json.loads((tmp_path / "growth.json").read_text())["records"]
    printed = capsys.readouterr().out
    assert "growing" in printed and "390x256" in printed and "linen" in printed
    assert [record["shape"] for record in records[::2]] == [
        [390, 256],
        [64, 1],
        [32, 2],
    ]
    assert all(r["nanoseconds_per_element"]["median"] > 0 for r in records)
    assert_is_picture(tmp_path / "growth.png")


def test_growth_beside_a_peer_that_lacks_the_operation(tmp_path):
    config = growth.Config(ops=("rms_norm",), peer="jax.nn", out=tmp_path)
    with pytest.raises(SystemExit, match=r"error: --peer jax\.nn has no rms_norm"):
        growth.main(config)


def test_growth_covers_what_was_asked():
    grown = growth.growing_cases(growth.Config(), "layer_norm")
    sizes = [case.size for case in grown["elements"]]
    assert 0.99e5 < sizes[0] <= 1e5 and 0.99e8 < sizes[-1] <= 1e8
    assert [case.features for case in grown["channels"]] == [2**n for n in range(14)]
    far = growth.growing_cases(growth.Config(largest=1e9), "layer_norm")
    assert 0.99e9 < far["elements"][-1].size <= 1e9


def test_train_step(tmp_path):
    config = train_step.Config(
        networks=("transformer",), layers=2, width=16, length=4, sequences=1,
        rounds=1, out=tmp_path,
    )  # fmt: skip
    train_step.main(config)
    records = json.loads((tmp_path / "train_step.json").read_text())["records"]
    assert [(r["scan"], r["provider"]) for r in records] == [
        (False, "jaxnorm"), (False, "linen"), (True, "jaxnorm"), (True, "linen"),
    ]  # fmt: skip
    losses = [record["first_loss"] for record in records]
    np.testing.assert_allclose(losses, losses[0], rtol=1e-5)
    assert all(record["temp_bytes"] > 0 for record in records)
    assert_is_picture(tmp_path / "train_step.png")


def test_resnet_is_one_function_by_any_norm_and_loop():
    config = train_step.Config(blocks=1, images=4)
    outcomes = []
    for name, scan in (("jaxnorm", True), ("linen", False)):
        network = train_step.make_network(config, "resnet", PROVIDERS[name], scan)
        params, stats = network.init(jax.random.key(0))
        batch = network.batch(jax.random.key(1))
        loss, stats = jax.jit(network.loss)(params, stats, batch)
        leaves = [jnp.squeeze(leaf) for leaf in jax.tree.leaves(stats)]
        outcomes.append((loss, leaves))
    (loss, leaves), (other_loss, other_leaves) = outcomes
    assert math.isfinite(loss)
    assert len(leaves) == len(networks.STAGES) * 3 * 2
    np.testing.assert_allclose(other_loss, loss, rtol=1e-4)
    for given, expected in zip(other_leaves, leaves, strict=True):
        np.testing.assert_allclose(given, expected, rtol=1e-3, atol=1e-4)
