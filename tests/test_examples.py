"""What the examples share: data, the network and its steps, reports."""

import json
from functools import partial

import chex
import jax
import numpy as np
import optax
import pytest
from jax.sharding import Mesh

from examples import demo
from examples.common import convnet, data, devices, report, style
from examples.common.convnet import Network
from examples.common.curves import plot_curves
from examples.common.histograms import LayerInputs, plot_layer_inputs
from examples.common.optimizers import is_kernel, make_optimizer, make_schedule
from examples.common.training import on_all_devices
from tests.example_parts import assert_is_picture, counting_data

# Data.


@pytest.mark.parametrize("shuffle", [None, 0])
@pytest.mark.parametrize(
    ("count", "batch_size", "multiple", "rows"),
    [
        (10, 4, 1, 4),  # the last batch is not full
        (8, 4, 4, 4),  # nothing to pad
        (9, 8, 4, 8),  # one real row in the last batch: three shards are empty
        (10, 5, 4, 8),  # no batch divides by the devices
        (3, 128, 4, 128),  # fewer rows than a batch
    ],
)
def test_batches_hold_every_row_once(count, batch_size, multiple, rows, shuffle):
    generator = None if shuffle is None else np.random.default_rng(shuffle)
    dataset = counting_data(count)
    cut = list(data.batches(dataset, batch_size, multiple=multiple, shuffle=generator))
    assert len(cut) == data.num_batches(dataset, batch_size)
    for batch in cut:
        assert batch.images.shape == (rows, 1, 1, 1)
        assert batch.labels.shape == batch.weights.shape == (rows,)
        assert [array.dtype.name for array in batch] == ["float32", "int32", "float32"]
        np.testing.assert_array_equal(batch.images[batch.weights == 0], 0)
        real = int(batch.weights.sum())
        np.testing.assert_array_equal(batch.weights, np.arange(rows) < real)
    labels = np.concatenate([batch.labels[batch.weights == 1] for batch in cut])
    images = np.concatenate([batch.images[batch.weights == 1] for batch in cut])
    np.testing.assert_array_equal(np.sort(labels), np.arange(count))
    np.testing.assert_array_equal(images.ravel(), labels + 1)
    assert shuffle is not None or (labels == np.arange(count)).all()


def test_every_epoch_has_its_own_order():
    generator = np.random.default_rng(0)
    first, second = (
        np.concatenate(
            [b.labels for b in data.batches(counting_data(64), 16, shuffle=generator)]
        )
        for _ in range(2)
    )
    assert (first != second).any()


def test_padding_never_drops_rows():
    images, labels = counting_data(5)
    with pytest.raises(ValueError, match="cannot pad 5 rows to 4, which is fewer"):
        data.pad_batch(images, labels, 4)


def test_digits_split():
    train, test = data.load_digits()
    assert train.images.shape == (1347, 8, 8, 1)
    assert test.images.shape == (450, 8, 8, 1)
    assert np.bincount(test.labels).min() >= 43
    np.testing.assert_allclose(train.images.mean(), 0, atol=1e-5)
    np.testing.assert_allclose(train.images.std(), 1, rtol=1e-5)
    known = {image.tobytes() for image in train.images}
    assert not any(image.tobytes() in known for image in test.images)
    for part, whole in zip(data.load_digits(limit=20), (train, test), strict=True):
        chex.assert_trees_all_equal(part, data.Dataset(*(x[:20] for x in whole)))


# The network, and the steps on several devices.


def test_network_shapes():
    network = Network("batch", width=4, depth=6)
    assert convnet.features_and_strides(network) == [
        (4, 1), (4, 1), (8, 2), (8, 1), (16, 2), (16, 1),
    ]  # fmt: skip
    params, stats = jax.eval_shape(
        partial(convnet.init, network=network), jax.random.key(0)
    )
    images = jax.ShapeDtypeStruct((3, 8, 8, 1), "float32")
    output = jax.eval_shape(
        partial(convnet.apply, network, training=True), params, stats, images
    )
    assert output.logits.shape == (3, 10)
    assert [x.shape[1:] for x in output.layer_inputs] == [
        (8, 8, 4), (8, 8, 4), (4, 4, 8), (4, 4, 8), (2, 2, 16), (2, 2, 16),
    ]  # fmt: skip
    assert jax.tree.structure(stats) == jax.tree.structure(output.stats)
    kernels = 9 * (1 * 4 + 4 * 4 + 4 * 8 + 8 * 8 + 8 * 16 + 16 * 16) + 16 * 10
    scales_and_biases = 2 * (4 + 4 + 8 + 8 + 16 + 16) + 10
    assert convnet.count_parameters(params) == kernels + scales_and_biases


@pytest.fixture(scope="module")
def mesh() -> Mesh:
    jax.devices()  # settles the number of devices for all tests, before the mesh asks
    return devices.data_mesh(4)


def start_state(network: Network, optimizer) -> demo.TrainState:
    params, stats = convnet.init(jax.random.key(0), network)
    return demo.TrainState(params, stats, optimizer.init(params))


def plain_step(network, optimizer, state, images, labels):
    """A step on one device, written without weights and without an axis name."""

    def mean_loss(params):
        output = convnet.apply(network, params, state.stats, images, training=True)
        losses = optax.softmax_cross_entropy_with_integer_labels(output.logits, labels)
        return losses.mean(), output.stats

    (loss, stats), grads = jax.value_and_grad(mean_loss, has_aux=True)(state.params)
    updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    return demo.TrainState(params, stats, opt_state), loss


@pytest.mark.parametrize("norm", ["batch", "group", "none"])
def test_four_devices_agree_with_one(mesh, norm):
    # Shards of 4, 4, 1 and 0 real rows. Plain SGD: where a gradient is summed over
    # devices once too often, or not at all, the parameters show it.
    network, optimizer = Network(norm, width=4, depth=3), optax.sgd(0.1)
    images, labels = (array[:9] for array in data.load_digits()[0])
    step = on_all_devices(partial(demo.train_step, network, optimizer), mesh)
    batch = devices.shard_rows(data.pad_batch(images, labels, 16), mesh)
    plain = jax.jit(partial(plain_step, network, optimizer))
    expected = start_state(network, optimizer)
    state = devices.replicate(expected, mesh)
    for _ in range(3):
        state, metrics = step(state, batch)
        expected, loss = plain(expected, images, labels)
        np.testing.assert_allclose(metrics.loss, loss, rtol=1e-5)
        assert metrics.rows == 9
    chex.assert_trees_all_close(state, expected, rtol=1e-4, atol=1e-5)


def test_evaluation_uses_running_averages(mesh):
    network, optimizer = Network("batch", width=4, depth=3), optax.sgd(0.1)
    images, labels = (array[:9] for array in data.load_digits()[0])
    step = jax.jit(partial(plain_step, network, optimizer))
    state, _ = step(start_state(network, optimizer), images, labels)
    evaluate = jax.jit(partial(convnet.apply, network, training=False))
    logits = np.concatenate(  # one image at a time: a batch's statistics would show
        [evaluate(state.params, state.stats, image[None]).logits for image in images]
    )
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
    metrics = on_all_devices(partial(demo.eval_step, network), mesh)(
        devices.replicate(state, mesh),
        devices.shard_rows(data.pad_batch(images, labels, 16), mesh),
    )
    np.testing.assert_allclose(metrics.loss, losses.mean(), rtol=1e-5)
    hits = np.argmax(logits, axis=-1) == labels
    np.testing.assert_allclose(metrics.accuracy, hits.mean(), rtol=1e-6)


@pytest.mark.parametrize("name", ["sgd", "adam", "adamw", "lamb", "lion", "rmsprop"])
def test_every_optimizer_goes_downhill(name):
    params = {"kernel": np.ones((2, 2), np.float32), "bias": np.ones(2, np.float32)}
    optimizer = make_optimizer(name, 0.1, weight_decay=0.0)
    updates, _ = optimizer.update(params, optimizer.init(params), params)
    assert all((update < 0).all() for update in jax.tree.leaves(updates))


@pytest.mark.parametrize("name", ["adamw", "lamb", "lion"])
def test_weight_decay_is_for_kernels(name):
    params = {"kernel": np.ones((2, 2), np.float32), "bias": np.ones(2, np.float32)}
    assert is_kernel(params) == {"kernel": True, "bias": False}
    optimizer = make_optimizer(name, 0.1, weight_decay=0.5)
    zeros = jax.tree.map(np.zeros_like, params)
    updates, _ = optimizer.update(zeros, optimizer.init(params), params)
    assert (updates["kernel"] < 0).all()
    np.testing.assert_array_equal(updates["bias"], 0)


@pytest.mark.parametrize(
    ("name", "rates"),
    [
        ("constant", [1.0, 1.0, 1.0, 1.0]),
        ("cosine", [1.0, (1 + np.cos(0.1 * np.pi)) / 2, 0.5, 0.0]),
        ("warmup-cosine", [0.0, 1.0, (1 + np.cos(4 / 9 * np.pi)) / 2, 0.0]),
        ("step", [1.0, 1.0, 0.1, 0.01]),
    ],
)
def test_schedules(name, rates):
    schedule = make_schedule(name, 1.0, 100)
    # piecewise_constant_schedule takes a new rate after the boundary, not on it
    steps = [0, 10, 51 if name == "step" else 50, 100]
    np.testing.assert_allclose(
        [schedule(step) for step in steps], rates, rtol=1e-5, atol=1e-6
    )


def test_mesh_needs_enough_devices(mesh):
    available = len(jax.devices())
    with pytest.raises(
        devices.DevicesNotAvailableError,
        match=f"{available + 1} devices were asked for, and JAX has {available} of one",
    ):
        devices.data_mesh(available + 1)


# Reports.


def test_results_stay_readable_without_finite_numbers(tmp_path):
    nan = float("nan")
    path = report.write_json(tmp_path / "results.json", {"a": [nan, 1.5], "b": -np.inf})
    assert json.loads(path.read_text()) == {"a": [None, 1.5], "b": None}
    assert report.format_number(nan) == "nan"
    assert report.format_number(0.5) == "0.5000"
    assert report.format_number(123456.7) == "1.23e+05"

    losses = {"train_loss": [nan, nan], "test_loss": [nan, nan]}
    accuracies = {"train_accuracy": [0.1, 0.1], "test_accuracy": [0.1, 0.1]}
    draw = partial(plot_curves, {"none": losses | accuracies})
    assert_is_picture(style.draw_figure(draw, tmp_path / "curves.png"))

    values = np.random.default_rng(0).normal(size=(4, 8))
    broken = LayerInputs([values, 0 * values], [nan * values, 0 * values])
    draw = partial(plot_layer_inputs, {"none": broken})
    assert_is_picture(style.draw_figure(draw, tmp_path / "layer_inputs.png"))
