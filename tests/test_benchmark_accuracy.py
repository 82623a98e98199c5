"""How the accuracy is measured that the README shows: table, figure, command."""

import numpy as np

from benchmarks import accuracy
from tests.example_parts import assert_is_picture

SMALL = accuracy.Config(rows=256, channels=2)


def test_table_and_figure(tmp_path, capsys):
    accuracy.main(accuracy.Config(rows=256, channels=2, out=tmp_path / "new"))
    *table, written = capsys.readouterr().out.splitlines()
    head, rule, *rows = [[cell.strip() for cell in row.split("|")] for row in table]
    assert head[1:-1] == ["offset", *accuracy.VARIANCES]
    assert set(rule[1:-1]) == {"---"}
    assert [row[1] for row in rows] == ["0", "100", "10,000", "1,000,000"]
    for row in rows:
        assert row[-2] == "below 2e-7" or float(row[-2]) <= 2e-6
    assert float(rows[-1][2]) > 1
    assert written.endswith("accuracy.png")
    assert_is_picture(tmp_path / "new" / "accuracy.png")


def test_what_is_measured_is_the_error():
    """Near 1e6 a float32 mean is rounded by up to 1/32, and by 1/16 at worst in sum."""
    fast, two_pass, own = accuracy.output_errors(SMALL, 1e6)
    assert own < 2e-6 < 1e-3 < two_pass < 1 / 16
    assert fast > 1
    assert np.allclose(accuracy.output_errors(SMALL, 0), 0, atol=1e-6)
    assert accuracy.variance_errors(SMALL, 1e6)[-1] < 2e-6
