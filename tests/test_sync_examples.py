"""The examples of synchronized BatchNorm: each against one device, and real processes.

Processes talk over loopback addresses and a port that was free a moment ago.
"""

import json
import os
import re
import signal
import subprocess
import sys
import time
from functools import cache
from itertools import chain
from pathlib import Path

import jax
import numpy as np
import pytest
import tyro
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from examples import (
    sync_bn_jit,
    sync_bn_multiprocess,
    sync_bn_pmap,
    sync_bn_shard_map,
)
from examples.common import convnet, data, launcher, sync
from tests.example_parts import assert_is_picture, counting_data

ROOT = Path(__file__).parents[1]
EXAMPLES = [sync_bn_jit, sync_bn_shard_map, sync_bn_pmap, sync_bn_multiprocess]


def name_of(example):
    return example.__name__.split(".")[-1]


def check_report(printed, out):
    """Return results.json, once everything that a user looks at is right."""
    results = json.loads((out / "results.json").read_text())
    # 30 rows on 4 or 8 devices: some are padding, and not all devices hold the same.
    assert max(results["differences"].values()) < 1e-5
    assert results["images_per_second"] > 0
    assert len(results["losses"]) == results["config"]["steps"]
    words = "loss .*, parameters .*, running statistics "
    assert re.search(
        rf"Largest difference from one device: {words}\d\.\de-\d\d", printed
    )
    assert f"images/s on {results['devices']}" in printed
    assert "no speed-up can show here" in printed
    assert_is_picture(out / "losses.png")
    return results


SMALL = {"width": 2, "depth": 2, "batch_size": 30}


@pytest.mark.parametrize("example", EXAMPLES, ids=name_of)
def test_example_in_one_process(example, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "120")
    jax.devices()
    options = {**SMALL, "steps": 5, "out": tmp_path / "new"}
    if example is sync_bn_multiprocess:
        options["out"].mkdir()
        example.work(example.Config(**options))
    else:
        example.main(example.Config(devices=8, **options))
    results = check_report(capsys.readouterr().out, tmp_path / "new")
    losses, accuracy = on_one_device(5)
    np.testing.assert_allclose(results["losses"], losses, atol=1e-5)
    np.testing.assert_allclose(results["test_accuracy"], accuracy, atol=0.01)


@cache
def on_one_device(steps):
    """Train; return the losses, and how many test images are classified correctly."""
    config = sync.Config(**SMALL, steps=steps)
    task = sync.make_task(config)
    images, tested = data.load_digits()
    run = sync.train(sync.one_device(task), config, task, images)
    params, stats, _ = run.state
    logits = convnet.apply(
        task.network, params, stats, tested.images, training=False
    ).logits
    told = np.asarray(logits).argmax(-1) == tested.labels
    assert 0 < told.mean() < 1
    return run.losses, told.mean()


def test_processes_whose_devices_disagree_are_told():
    mesh = Mesh(np.array(jax.devices()[:2]), ("data",))
    copies = [
        jax.device_put(np.full(3, i, np.float32), device)
        for i, device in enumerate(mesh.devices.flat)
    ]
    everywhere = NamedSharding(mesh, P())
    array = jax.make_array_from_single_device_arrays((3,), everywhere, copies)
    with pytest.raises(ValueError, match="replicas must agree"):
        sync_bn_multiprocess.check_agreement({"mean": array})


@pytest.mark.parametrize("example", EXAMPLES, ids=name_of)
def test_example_help(example, capsys):
    with pytest.raises(SystemExit) as end:
        tyro.cli(example.Config, args=["--help"])
    assert end.value.code == 0
    printed = capsys.readouterr().out
    for option in ("--devices", "--steps", "--learning-rate", "--out"):
        assert option in printed
    assert f"runs/{name_of(example)}" in printed


@pytest.mark.parametrize(
    ("example", "options", "message"),
    [
        (sync_bn_jit, {"devices": 0}, "--devices must be positive, and it is 0"),
        (sync_bn_pmap, {"steps": -1}, "--steps must be positive, and it is -1"),
        (sync_bn_jit, {"seed": -1}, "--seed must not be negative, and it is -1"),
        (sync_bn_multiprocess, {"processes": 0}, "--processes must be positive"),
        (sync_bn_multiprocess, {"grace": 0.0}, "--grace must be positive"),
    ],
)
def test_example_refuses(example, options, message):
    with pytest.raises(ValueError, match=message):
        example.Config(**options)


def test_batches_go_on_where_they_were():
    config = sync.Config(batch_size=4, seed=3)
    dataset = counting_data(10)  # three batches an epoch

    def labels(step, how_many):
        batches = sync.batches_from(step, dataset, config, multiple=2)
        return [next(batches).labels.tolist() for _ in range(how_many)]

    whole = labels(0, 9)
    for step in range(9):
        assert labels(step, 9 - step) == whole[step:]
    epochs = [[*chain.from_iterable(whole[i : i + 3])] for i in (0, 3, 6)]
    assert len(set(map(tuple, epochs))) == 3
    assert all(sorted(set(epoch)) == list(range(10)) for epoch in epochs)


# The launcher.


def launch(code, **kwargs):
    kwargs = {"processes": 3, "devices": 2, "grace": 0.5, **kwargs}
    launcher.launch([sys.executable, "-c", code], **kwargs)


def test_launcher_tells_processes_who_they_are(tmp_path):
    code = f"""
import os, pathlib
names = "LAUNCHER_PROCESSES", "JAX_NUM_CPU_DEVICES", "JAX_COORDINATOR_ADDRESS"
who = os.environ["LAUNCHER_PROCESS_ID"]
pathlib.Path({str(tmp_path)!r}, who).write_text(" ".join(map(os.environ.get, names)))
"""
    launch(code)
    told = [(tmp_path / str(i)).read_text() for i in range(3)]
    assert len(set(told)) == 1
    assert re.fullmatch(r"3 2 127\.0\.0\.1:\d+", told[0])


@pytest.mark.parametrize(
    ("ending", "words"),
    [
        ("sys.exit(3)", "failed with exit code 3"),
        ("os.kill(os.getpid(), 9)", "was ended by SIGKILL"),
    ],
)
def test_launcher_stops_all_when_one_fails(ending, words, capfd):
    code = f"""
import os, signal, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)  # stubborn
if os.environ["LAUNCHER_PROCESS_ID"] == "1":
    {ending}
time.sleep(60)
"""
    start = time.monotonic()
    with pytest.raises(launcher.ProcessFailedError) as error:
        launch(code)
    assert time.monotonic() - start < 10
    assert str(error.value) == f"process 1 of 3 {words}; all others were stopped"
    pids = re.findall(r"\d+", capfd.readouterr().err.splitlines()[0])
    assert len(pids) == 3
    assert not any(map(is_running, pids))


def test_launcher_that_is_stopped_stops_all():
    code = (
        "import sys; from examples.common import launcher; launcher.launch("
        "['sleep', '60'], processes=2, devices=1, grace=1)"
    )
    parent = subprocess.Popen(
        [sys.executable, "-c", code], cwd=ROOT, stderr=subprocess.PIPE, text=True
    )
    pids = re.findall(r"\d+", parent.stderr.readline())
    assert all(map(is_running, pids))
    parent.terminate()
    assert parent.wait(timeout=20) == 128 + signal.SIGTERM
    assert not any(map(is_running, pids))


def is_running(pid):
    try:
        os.kill(int(pid), 0)
    except ProcessLookupError:
        return False
    return True


# Where a run over processes begins.


def begins(out, **options):
    sync_bn_multiprocess.begin(sync_bn_multiprocess.Config(out=out, **options))


def test_a_run_over_processes_replaces_nothing(tmp_path):
    mine = tmp_path / "checkpoints" / "mine.txt"
    mine.parent.mkdir()
    mine.touch()
    begins(tmp_path)
    (tmp_path / "checkpoints" / "20").mkdir()
    (tmp_path / "checkpoints" / "30.part").mkdir()  # was interrupted
    with pytest.raises(ValueError, match="holds a checkpoint of step 20; go on from"):
        begins(tmp_path)
    assert mine.exists()
    begins(tmp_path, resume=True)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": 20}, "checkpoint of step 20; to go on, ask for more with --steps"),
        ({"seed": 1}, "begun with: --seed was 0, and is 1"),
        ({"batch_size": 9, "width": 4}, "--batch-size was 100, and is 9; --width was"),
    ],
)
def test_a_run_over_processes_is_resumed_as_it_was_begun(tmp_path, options, message):
    begins(tmp_path)
    (tmp_path / "checkpoints" / "20").mkdir(parents=True)
    with pytest.raises(ValueError, match=message):
        begins(tmp_path, resume=True, **options)


def test_a_run_over_processes_needs_a_checkpoint_to_resume(tmp_path):
    with pytest.raises(ValueError, match=r"no checkpoint in .*; leave out --resume"):
        begins(tmp_path, resume=True)


def test_no_cluster_is_an_error_of_one_line():
    command = [sys.executable, "-m", "examples.sync_bn_multiprocess", "--cluster"]
    environment = {**os.environ, "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 1
    assert done.stderr.startswith("error: no cluster's launcher was found (")
    assert "Traceback" not in done.stderr


# Real processes.


def start_processes(out, *options):
    """Start the example over processes, a checkpoint every four steps."""
    cache = {
        "JAX_COMPILATION_CACHE_DIR": jax.config.jax_compilation_cache_dir or "",
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.2",
        "COLUMNS": "120",
    }
    small = [f"--{name.replace('_', '-')}={value}" for name, value in SMALL.items()]
    return subprocess.Popen(
        [
            *(sys.executable, "-m", "examples.sync_bn_multiprocess"),
            *("--steps=20", "--checkpoint-every=4", f"--out={out}", *small),
            *options,
        ],
        cwd=ROOT,
        env={**os.environ, **cache},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def fingerprint(printed):
    return re.search("Fingerprint of the final state: ([0-9a-f]{64})", printed)[1]


def test_processes_give_what_one_gives_and_survive_a_kill(tmp_path):
    """Two processes of two devices, one killed and all resumed; and four of one."""
    out = tmp_path / "two"
    two = ("--processes=2", "--devices=2", "--heartbeat-timeout=5", "--grace=30")
    job = start_processes(out, *two)
    pids = re.findall(r"\d+", job.stderr.readline())
    while not list((out / "checkpoints").glob("[0-9]")):  # complete once it has a name
        assert job.poll() is None, job.stderr.read()
        time.sleep(0.02)
    os.kill(int(pids[1]), signal.SIGKILL)
    killed = time.monotonic()
    _, errors = job.communicate(timeout=60)
    # JAX itself ends the other one, long before the launcher would.
    assert time.monotonic() - killed < 20
    assert job.returncode == 1
    assert "error: process 1 of 2 was ended by SIGKILL; all others" in errors
    assert not any(map(is_running, pids))
    assert not (out / "results.json").exists()

    printed, errors = start_processes(out, *two, "--resume").communicate(timeout=120)
    assert re.search("Resumed after step (4|8|12|16) of 20", printed), errors
    resumed = check_report(printed, out)
    assert resumed["devices"] == "2 x 2 devices"

    four = start_processes(tmp_path / "four", "--processes=4", "--devices=1")
    whole, errors = four.communicate(timeout=120)
    assert four.returncode == 0, errors
    uninterrupted = check_report(whole, tmp_path / "four")
    assert uninterrupted["devices"] == "4 x 1 devices"
    # Four ranks either way, which gloo adds up in the same order: no bit was lost.
    assert resumed["losses"] == uninterrupted["losses"]
    assert fingerprint(printed) == fingerprint(whole)
