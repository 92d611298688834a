"""What is told of a pool's machines before their figures are pooled."""

import pytest

from cnnbench.fleet.pools import PoolFigures, figure_of, list_outliers, pool_rows, pools_table
from cnnbench.results.record import Kpi
from run_files import INVALID, make_run


def gather(values: dict[str, list[float]], pool: str = "spr", into: PoolFigures | None = None, **facts) -> PoolFigures:
    """Return figures of machines by name, whose facts and CPU frequencies may differ."""
    figures = into or PoolFigures()
    for host, found in values.items():
        more = facts.get(host, {})
        clock = Kpi(key="CPU frequency", unit="MHz", value=more.get("MHz", 3000.0))
        told = {"host name": host} | {name: text for name, text in more.items() if name != "MHz"}
        for number, value in enumerate(found):
            figures.add(figure_of(pool, "", make_run(value, number, facts=told, extra=(clock,))))
    return figures


EVEN = {f"spr{number}": [100.0 + number / 10, 100.2 + number / 10] for number in range(6)}


def test_a_machine_that_is_out_of_line_is_named_with_what_differs_there():
    figures = gather(EVEN | {"spr6": [80.0, 81.0]}, spr6={"microcode": "0x2", "governor": "powersave", "MHz": 2400.0})
    (case,) = figures.judge()
    assert [one.host for one in case.outliers] == ["spr6"]
    (line,) = list_outliers([case])
    assert "spr6 is out of line" in line
    assert "-19.7% of the pool's median" in line
    assert "microcode is 0x2, of most others 0x1" in line
    assert "governor is powersave, of most others performance" in line
    assert "CPU frequency 2400 MHz, of most others 3000 MHz" in line
    assert figures.list_differences() == [
        "pool spr: machines differ in governor: performance (spr0, spr1, spr2, spr3 and 2 more); powersave (spr6)",
        "pool spr: machines differ in microcode: 0x1 (spr0, spr1, spr2, spr3 and 2 more); 0x2 (spr6)",
    ]


def test_machines_that_agree_are_none_of_them_out_of_line_and_neither_are_few():
    (case,) = gather(EVEN).judge()
    assert case.outliers == ()
    assert gather(EVEN).list_differences() == []
    (few,) = gather({"a": [100.0], "b": [100.0], "c": [50.0]}).judge()
    assert few.outliers == ()
    (unexplained,) = gather(EVEN | {"spr6": [80.0]}).judge()
    assert unexplained.outliers[0].cause == "no condition that is recorded tells why"


def test_spread_between_machines_stands_beside_that_within_one():
    figures = gather({"a": [100.0, 110.0], "b": [200.0, 220.0]})
    gather({"c": [300.0]}, pool="genoa", into=figures)
    spr, genoa = figures.judge()
    assert spr.within == pytest.approx(0.0674, abs=1e-4)
    assert spr.between == pytest.approx(0.4901, abs=1e-4)
    assert (genoa.within, genoa.between) == (None, None)
    table = pools_table(pool_rows([spr, genoa], ["spr", "genoa"]))
    assert "6.74%" in table
    assert "49.01%" in table
    assert "1.905" in table  # 300 over the middle of 105 and 210


def test_an_invalid_run_tells_of_its_machine_and_has_no_figure():
    figures = PoolFigures()
    figures.add(figure_of("spr", "", make_run(5, criteria=(INVALID,), facts={"host name": "a", "kernel": "5"})))
    figures.add(figure_of("spr", "", make_run(5, facts={"host name": "b", "kernel": "6"})))
    (case,) = figures.judge()
    assert (case.machines, case.runs) == (1, 1)
    assert figures.list_differences() == ["pool spr: machines differ in kernel: 5 (a); 6 (b)"]
