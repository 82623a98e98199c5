"""The benchmarks: the table, the providers, costs and timing."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import programs, shapes, timing
from benchmarks.costs import list_collectives, residual_bytes
from benchmarks.programs import compile_case, make_inputs, place
from benchmarks.providers import PROVIDERS, SUBJECT
from benchmarks.shapes import Case
from benchmarks.timing import Timing
from tests.benchmark_cases import small_case

# The table.


def test_table_has_every_operation_shape_and_dtype():
    assert set(shapes.OPS) == {
        "batch_norm", "batch_norm_eval", "batch_norm_relu", "sync_batch_norm",
        "layer_norm", "rms_norm", "group_norm", "instance_norm",
    }  # fmt: skip
    assert set(shapes.SHAPE_NAMES) == {
        "32x56x56x64", "32x28x28x128", "32x14x14x256", "32x7x7x512", "4096x512",
        "4096x768", "32768x256", "8x512x768", "8x32x32x256",
    }  # fmt: skip
    cases = shapes.select_cases()
    assert {case.dtype for case in cases} == {"float32", "bfloat16"}
    assert {case.groups for case in cases} == {32}
    assert len(set(cases)) == len(cases)
    assert shapes.MODES == ("forward", "vjp", "jvp")


def test_filters_keep_what_is_named():
    chosen = shapes.select_cases(("rms_norm",), ("4096x512",), ("bfloat16",))
    assert chosen == [Case("rms_norm", (4096, 512), "bfloat16")]
    quick = shapes.select_cases(quick=True)
    assert {case.op for case in quick} == set(shapes.OPS)
    assert set(quick) < set(shapes.select_cases())
    spread = shapes.select_cases(spread=True)
    assert {case.op for case in spread} == {*shapes.OPS} - {"sync_batch_norm"}
    assert {case.devices for case in spread} == {4}
    sizes = {case.shape[0] for case in spread}
    assert all(rows % 4 == 0 for rows in sizes)  # four devices share them evenly


def test_minimal_bytes():
    case = Case("layer_norm", (10, 4), "bfloat16")
    assert case.minimal_bytes("forward") == 2 * 40 * 2  # read x, write y
    assert case.minimal_bytes("vjp") == 5 * 40 * 2  # and x, the cotangent, dx
    batch = Case("batch_norm", (10, 4), "float32")
    assert batch.minimal_bytes("vjp") == 8 * 40 * 4  # x and the cotangent once more


# The providers compute the same thing.


LACKING = {"jax.nn": ("rms", "group", "sync"), "torch": ("sync",)}
PEERS = [(name, op) for name in PROVIDERS if name != SUBJECT for op in shapes.OPS]
OFFERED = [(name, op) for name, op in PEERS if not op.startswith(LACKING.get(name, ()))]


def skip_unless_installed(name):
    if not PROVIDERS[name].is_installed():
        pytest.skip(f"{PROVIDERS[name].package} is not installed")


@pytest.mark.parametrize(
    ("name", "op"), [pair for pair in PEERS if pair not in OFFERED]
)
def test_what_a_provider_lacks_is_no_row(name, op):
    skip_unless_installed(name)
    case = small_case(op)
    inputs = make_inputs(case, "forward")
    assert compile_case(PROVIDERS[name], case, "forward", inputs) is None


@pytest.mark.parametrize(("name", "op"), OFFERED)
@pytest.mark.parametrize(
    ("dtype", "mode", "tolerance"),
    # bfloat16 has 8 bits; Haiku also keeps its statistics in it.
    [("float32", "vjp", 2e-5), ("bfloat16", "forward", 0.05)],
)
def test_providers_agree(name, op, dtype, mode, tolerance):
    skip_unless_installed(name)
    case = small_case(op, dtype)
    inputs = make_inputs(case, mode)
    expected, given = (
        compile_case(PROVIDERS[each], case, mode, inputs).results()
        for each in (SUBJECT, name)
    )
    assert given["y"].shape == case.shape
    assert len(expected) == (4 if mode == "vjp" else 1)
    assert expected.keys() - given.keys() <= ({"dbias"} if op == "rms_norm" else set())
    for key, value in given.items():
        scale = max(1, np.abs(expected[key]).max())
        np.testing.assert_allclose(
            value, expected[key], atol=tolerance * scale, err_msg=key
        )


@pytest.mark.parametrize("name", [SUBJECT, "equinox"])
def test_moved_inputs_lie_elsewhere_and_are_the_same(name, monkeypatch):
    skip_unless_installed(name)
    places = []

    def noted(*args, **options):
        arrays = place(*args, **options)
        places.append({array.unsafe_buffer_pointer() for array in arrays})
        return arrays

    monkeypatch.setattr(programs, "place", noted)
    case = small_case("batch_norm")
    inputs = make_inputs(case, "vjp")
    program = compile_case(PROVIDERS[name], case, "vjp", inputs)
    before = program.results()
    program.move()
    first, second = places
    assert first.isdisjoint(second)
    chex.assert_trees_all_equal(before, program.results())


def test_evaluation_returns_no_statistics():
    """They would be copied, for a provider that returns them."""
    case = small_case("batch_norm_eval")
    inputs = make_inputs(case, "forward")
    for name in (SUBJECT, "linen", "jax.nn"):
        program = compile_case(PROVIDERS[name], case, "forward", inputs)
        assert jax.tree.leaves(program.run())[1:] == []


def test_inputs_are_random_and_of_the_dtype():
    inputs = make_inputs(small_case("batch_norm", "bfloat16"), "jvp")
    assert list(inputs) == [
        "x", "scale", "bias", "mean", "var", "t_x", "t_scale", "t_bias",
    ]  # fmt: skip
    assert inputs["x"].dtype == inputs["t_x"].dtype == jnp.bfloat16
    assert inputs["scale"].dtype == np.float32
    assert (inputs["x"] != inputs["t_x"]).any()


# Costs.


def test_residuals_are_counted_once():
    x, feature = jnp.ones((8, 4)), jnp.ones(4)
    arrays = (x, feature, feature, feature, feature)

    def linear(x, scale, bias, mean, var):
        return 3 * x, ()

    def cube(x, scale, bias, mean, var):
        return x * x * x, ()

    assert residual_bytes(linear, arrays) < x.nbytes
    # x and its square; x is needed by both products, and kept once.
    assert residual_bytes(cube, arrays) == 2 * x.nbytes


def test_collectives_are_counted():
    mesh = jax.make_mesh((4,), ("d",), axis_types=(jax.sharding.AxisType.Auto,))
    spec = jax.sharding.PartitionSpec("d")

    def local(x):
        return jax.lax.psum(x, "d"), jax.lax.ppermute(x, "d", [(0, 1), (1, 0)])

    for function, expected in ((local, 2), (lambda x: (x, x + 1), 0)):
        f = jax.shard_map(
            function, mesh=mesh, in_specs=spec, out_specs=spec, check_vma=False
        )
        compiled = jax.jit(f).lower(jnp.ones(8)).compile()
        assert len(list_collectives(compiled)) == expected


# Timing.


def test_samples_are_taken_in_turns():
    calls = []
    runs = {name: lambda name=name: calls.append(name) for name in "abc"}
    settings = Timing(3, sample_seconds=0, warmup=1)
    samples = timing.time_in_turns(runs, settings, before_round=lambda: runs["a"]())
    assert "".join(calls) == "abc" + "a" + "abc" + "a" + "bca" + "a" + "cab"
    assert {name: len(values) for name, values in samples.items()} == dict.fromkeys(
        "abc", 3
    )


def test_a_sample_is_the_time_of_one_call(monkeypatch):
    """By a clock that only the runs move: of 2 ms, so often that 9 ms are filled."""
    now, calls = [0.0], [0]

    def run():
        calls[0] += 1
        now[0] += 0.002

    monkeypatch.setattr(timing.time, "perf_counter", lambda: now[0])
    settings = Timing(3, sample_seconds=0.009, warmup=2)
    samples = timing.time_in_turns({"a": run}, settings)
    assert samples["a"] == pytest.approx([0.002] * 3)
    assert calls[0] == 2 + 3 * 5


def test_summary():
    summary = timing.summarize([5.0, 1.0, 2.0, 3.0, 4.0])
    assert summary == (3.0, 2.0, 4.0, 1.0, 1.0, 5)
    assert timing.summarize([2.0]).mad == 0
    assert timing.geometric_mean([1.0, 4.0]) == pytest.approx(2)
    assert timing.geometric_mean([]) is None
