"""The two training examples: they learn, save, resume and refuse."""

import json
import shutil

import jax
import numpy as np
import pytest
import tyro
from numpy.testing import assert_allclose

from examples import digits_linen, digits_nnx
from examples.common import data, digits
from tests.example_parts import assert_is_picture

EXAMPLES = pytest.mark.parametrize(
    "example", [digits_linen, digits_nnx], ids=["linen", "nnx"]
)


def quick(example, out, **options):
    options = {"epochs": 4, "width": 8, "limit": 600} | options
    return example.Config(out=out, **options)


def stored(path):
    with digits.checkpointer() as reader:
        return reader.restore(path)


def files(out):
    return {p: p.read_bytes() for p in sorted(out.rglob("*")) if p.is_file()}


def histories(out):
    """The losses and accuracies of all epochs, to five digits."""
    history = json.loads((out / "results.json").read_text())["history"]
    return {name: [round(v, 5) for v in values] for name, values in history.items()}


@pytest.fixture(scope="module", params=[digits_linen, digits_nnx], ids=["linen", "nnx"])
def trained(request, tmp_path_factory):
    """An example, and where it has been run."""
    out = tmp_path_factory.mktemp("run")
    return request.param, out, digits.run(quick(request.param, out), request.param.make)


def test_it_learns_and_reports(trained):
    _, out, last = trained
    assert last["test_accuracy"] > 0.85
    results = json.loads((out / "results.json").read_text())
    assert len(results["history"]["test_loss"]) == 4
    assert_is_picture(out / "curves.png")


def test_resuming_changes_nothing(trained, tmp_path, capsys):
    """The run that was interrupted ends where the other does, statistics included."""
    example, whole, _ = trained
    shutil.copytree(whole / "epoch_0003", tmp_path / "epoch_0003")
    before = files(tmp_path)
    shutil.copy(whole / "history.json", tmp_path)
    digits.run(quick(example, tmp_path, resume=True), example.make)
    assert "test accuracy" in capsys.readouterr().out
    assert before.items() <= files(tmp_path).items()
    assert histories(tmp_path) == histories(whole)
    expected, actual = stored(whole / "epoch_0004"), stored(tmp_path / "epoch_0004")
    assert digits.shapes(actual) == digits.shapes(expected)
    means = [name for name in digits.shapes(actual) if name.endswith("/mean")]
    assert len(means) == 3
    for a, b in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        assert_allclose(a, b, rtol=1e-5, atol=1e-6)


def test_resuming_where_the_past_is_unknown(trained, tmp_path):
    """Without the history of a run, and again with what was written then."""
    example, whole, _ = trained
    shutil.copytree(whole / "epoch_0003", tmp_path / "epoch_0003")
    for epochs in (4, 5):
        config = quick(example, tmp_path, resume=True, epochs=epochs)
        last = digits.run(config, example.make)
        assert last["test_accuracy"] > 0.8
        assert_is_picture(tmp_path / "curves.png")
        history = json.loads((tmp_path / "results.json").read_text())["history"]
        assert history["test_loss"][:3] == [None] * 3
        assert len(history["test_loss"]) == epochs
    assert {p.name for p in tmp_path.iterdir()} >= {"history.json", "results.json"}
    assert not list(tmp_path.glob(".*"))


@EXAMPLES
def test_padding_does_not_count(example, tmp_path):
    """A batch that is filled up trains like the rows it holds."""
    train_data, _ = data.load_digits(20)
    learners = [
        example.make(quick(example, tmp_path, width=2), train_data) for _ in range(2)
    ]
    trees = []
    for learner, rows in zip(learners, (20, 32), strict=True):
        batch = data.pad_batch(train_data.images, train_data.labels, rows)
        state = learner.state
        for _ in range(2):  # the learning rate of the first is 0
            state, metrics = learner.train_step(state, batch)
        assert metrics.count == 20
        trees.append(learner.to_tree(state))
    for a, b in zip(*map(jax.tree.leaves, trees), strict=True):
        assert_allclose(a, b, rtol=1e-3, atol=1e-4)


def test_it_refuses_and_overwrites_nothing(trained, tmp_path):
    example, out, _ = trained

    def refuses(text, out=out, **options):
        before = files(out)
        with pytest.raises(SystemExit, match=f"error: .*{text}"):
            digits.run(quick(example, out, **options), example.make)
        assert files(out) == before

    refuses("there is no checkpoint in .* to resume from", tmp_path, resume=True)
    refuses("epoch_0004 exists and is not overwritten")
    refuses("epoch_0004 has seen 4 epochs; .* --epochs", resume=True)
    # Its steps are counted in batches: others would end where the rate is 0.
    refuses(
        "begun with: --batch-size was .*, and is 7",
        resume=True,
        epochs=5,
        batch_size=7,
    )
    refuses(
        r"epoch_0004 does not fit the model, in \d+ arrays: .* is \(.*\) in the "
        r"checkpoint and \(.*\) in the model",
        resume=True,
        epochs=5,
        width=5,
    )


def test_it_says_which_file_is_damaged(trained, tmp_path):
    example, out, _ = trained
    damaged = tmp_path / "damaged"
    shutil.copytree(out, damaged)

    def refuses(text):
        config = quick(example, damaged, resume=True, epochs=5)
        with pytest.raises(SystemExit, match=f"error: .*{text}"):
            digits.run(config, example.make)

    history = damaged / digits.HISTORY
    history.write_text("{")
    refuses("history.json is damaged: .*; remove it")
    history.unlink()
    shutil.rmtree(damaged / "epoch_0004")
    (damaged / "epoch_0004").mkdir()
    refuses("epoch_0004 is damaged; remove it to go on from before")


def test_checkpoints_are_in_the_order_of_their_numbers(tmp_path):
    for name in ("epoch_9999", "epoch_10000", "epoch_10001.orbax-checkpoint-tmp"):
        (tmp_path / name).mkdir()
    found = digits.checkpoints_in(tmp_path)
    assert [digits.epoch_of(path) for path in found] == [9999, 10000]


@EXAMPLES
def test_gradients_are_clipped(example, tmp_path):
    config = quick(example, tmp_path, clip=0.5)
    optimizer = digits.make_optimizer(config, data.load_digits(100)[0])
    params = {"kernel": np.ones((3, 3), np.float32)}
    state = optimizer.init(params)
    grads = {"kernel": np.full((3, 3), 100, np.float32)}
    _, state = optimizer.update(grads, state, params)
    first_moment = jax.tree.leaves(state)[1]
    assert_allclose(np.linalg.norm(first_moment), 0.1 * 0.5, rtol=1e-5)


@EXAMPLES
def test_options(example):
    config = tyro.cli(example.Config, args=["--epochs", "3", "--resume"])
    assert config.epochs == 3 and config.resume
    assert config.out.name in ("digits_linen", "digits_nnx")
    with pytest.raises(ValueError, match="--width must be positive"):
        example.Config(width=0)
