"""Counting what programs cost on devices that are not there."""

import dataclasses
import json

import jax
import pytest
import tyro

from benchmarks import deviceless, hlo
from benchmarks.deviceless import Config, Count
from benchmarks.shapes import Case

# Two sums in one kernel, of which it slices one operand twice, and their use.
PROGRAM = """HloModule jit_f, is_scheduled=true

%fused.1 (p.0: f32[64,8], p.1: bf16[64,8]) -> (f32[8], f32[8]) {
  %p.0 = f32[64,8]{1,0} parameter(0)
  %p.1 = bf16[64,8]{1,0} parameter(1)
  %b = f32[32,2,8]{2,1,0} bitcast(%p.0), metadata={op_name="jit(f)/reshape"}
  %s.1 = f32[4,2,8]{2,1,0} slice(%b), slice={[0:4], [0:2], [0:8]}
  %s.2 = f32[8,2,8]{2,1,0} slice(%b), slice={[4:12], [0:2], [0:8]}
  %s.3 = bf16[4,8]{1,0} slice(%p.1), slice={[0:4], [0:8]}
  %n.1 = bf16[64,8]{1,0} negate(%p.1)
  ROOT %t = (f32[8], f32[8]) tuple(%s.1, %n.1)
}

ENTRY %main (x.1: f32[64,8], y.1: bf16[64,8]) -> (f32[8], f32[8]) {
  %x.1 = f32[64,8]{1,0} parameter(0), metadata={op_name="x"}
  %y.1 = bf16[64,8]{1,0} parameter(1)
  %sums = (f32[8]{0}, /*index=1*/f32[8]{0}) fusion(%x.1, %y.1), kind=kInput, \
calls=%fused.1, backend_config={"estimated_cycles":"1200"}
  %first = f32[8]{0} get-tuple-element(%sums), index=0
  %start = f32[8]{0} all-reduce-start(%first), to_apply=%add
  %done = f32[8]{0} all-reduce-done(%start)
  ROOT %copy = f32[8]{0} copy(%done), backend_config={"estimated_cycles":"34"}
}
"""


def test_kernels_bytes_and_cycles_of_a_program():
    assert hlo.count_kernels(PROGRAM) == 3  # the sums, the collective, and the copy
    slices = (4 + 8) * 2 * 8 * 4  # of x; y is read as a whole beside a slice
    sums = slices + 64 * 8 * 2 + 2 * 8 * 4
    assert hlo.bytes_moved(PROGRAM) == sums + 4 * (8 * 4)
    assert hlo.estimated_cycles(PROGRAM) == 1234
    assert hlo.estimated_cycles(PROGRAM.replace("cycles", "")) is None


CASE = Case("layer_norm", (8, 16), "float32")


def counted(provider, cost, shape=(8, 16), phase="forward"):
    case = Case("layer_norm", shape, "float32")
    return Count(case, phase, provider, 1, cost, None, 0)


def test_means_are_of_what_others_cost_over_ones_own():
    rows = [counted("jaxnorm", 2), counted("linen", 4), counted("none", 1)]
    rows += [counted("jaxnorm", 3, (4, 4)), counted("linen", 24, (4, 4))]
    means = deviceless.mean_ratios(rows)
    assert means["layer_norm", "float32", "linen"]["forward"] == pytest.approx(4)
    assert means["layer_norm", "float32", "none"]["forward"] == pytest.approx(0.5)


@pytest.mark.parametrize("op", ["layer_norm", "batch_norm_eval", "sync_batch_norm"])
def test_a_network_is_counted_on_any_kind_of_device(op):
    """Here on CPUs, which are there."""
    case = Case(op, (8, 4, 4, 16), "bfloat16")
    own, other = (
        {c.phase: c for c in deviceless.count(case, name, jax.devices())}
        for name in ("jaxnorm", "none")
    )
    assert list(own) == list(other) == ["forward", "training"]
    for phase, collectives in (("forward", 1), ("training", 2)):
        # jaxlib 0.12 fuses rows, forward, with the norm of each.
        fused = op == "layer_norm" and phase == "forward"
        assert own[phase].kernels + fused > other[phase].kernels > 0
        assert own[phase].passes > other[phase].passes > 2
        more = own[phase].collectives - other[phase].collectives
        assert more == (collectives if op == "sync_batch_norm" else 0)
    assert own["training"].passes > own["forward"].passes


def test_a_batch_is_spread_over_four_devices_under_plain_jit():
    case = Case("batch_norm", (8, 16), "float32", spread=True)
    counts = deviceless.count(case, "jaxnorm", jax.devices())
    assert [c.collectives for c in counts] == [1, 3]  # two are of other gradients
    on_one = dataclasses.replace(case, spread=False)
    alone = deviceless.count(on_one, "jaxnorm", jax.devices())
    assert [c.collectives for c in alone] == [0, 0]


def test_what_a_library_does_not_have_is_left_out():
    assert deviceless.count(Case("rms_norm", (8, 16), "float32"), "jax.nn", []) == []


def test_table_and_file(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(deviceless, "describe", lambda device: jax.devices())
    arguments = "--device v5e --ops rms_norm --shapes 4096x512 --dtypes float32 --out"
    config = tyro.cli(Config, args=[*arguments.split(), str(tmp_path / "new")])
    deviceless.main(config)
    shown = capsys.readouterr().out
    assert "rms_norm 4096x512 float32" in shown and "training linen" in shown
    deviceless.main(dataclasses.replace(config, spread=True))
    assert (tmp_path / "new" / "deviceless-v5e-spread.json").exists()
    written = json.loads((tmp_path / "new" / "deviceless-v5e.json").read_text())
    assert [row["provider"] for row in written["rows"]] == [
        *["jaxnorm", "linen", "none"] * 2
    ]


@pytest.mark.parametrize(
    "filters", [{"ops": ("sync_batch_norm",), "spread": True}, {"shapes": ("none",)}]
)
def test_filters_that_leave_nothing(filters, monkeypatch):
    monkeypatch.setattr(deviceless, "describe", lambda device: jax.devices())
    with pytest.raises(ValueError, match="the filters leave nothing to count"):
        deviceless.main(Config(**filters))


def test_a_compiler_that_is_not_installed(monkeypatch):
    monkeypatch.setitem(deviceless.COMPILERS, "h100", "not_installed")
    message = r"for h100 is not installed.*pip install --group deviceless"
    with pytest.raises(ModuleNotFoundError, match=message):
        deviceless.describe("h100")
