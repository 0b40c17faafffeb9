"""The benchmark of embedding runs: a line for each case, with the ratio to the slower side. No time is asserted."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.embedding import Case, Speed, main, measure
from tests.datasets import photographs


@pytest.mark.slow
def test_every_case_is_a_line_of_the_table(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    for number, data in enumerate(photographs(9, 256, 300)):
        (tmp_path / f"{number}.jpg").write_bytes(data)
    main(["--photographs", str(tmp_path), "--pictures", "16", "--rounds", "1", "--cases", "12:1:1", "12:2:2"])
    head, rule, *rows = [line for line in capfd.readouterr().out.splitlines() if line.startswith("|")]
    assert rule.count("---") == head.count("|") - 1
    assert [[cell.strip() for cell in row.split("|")[1:4]] for row in rows] == [["12", "1", "1"], ["12", "2", "2"]]
    assert all(len(row.split("|")) == len(head.split("|")) for row in rows)


class Fixed:
    """Sides whose speeds are given: the loader is the slower one in the second round."""

    case = Case(96, 1, 1)

    def __init__(self) -> None:
        self._loader, self._network, self._both = ([100.0, 40.0, 100.0], [50.0, 50.0, 60.0], [45.0, 40.0, 30.0])

    def loader(self) -> Speed:
        return Speed(self._loader.pop(0), 1.0)

    def network(self) -> Speed:
        return Speed(self._network.pop(0), 3.0)

    def both(self) -> Speed:
        return Speed(self._both.pop(0), 5.0)


def test_the_ratio_is_that_of_each_round_to_its_own_slower_side() -> None:
    cells = [cell.strip() for cell in measure(Fixed(), 3).split("|")[1:-1]]  # type: ignore[arg-type]
    assert cells == ["96", "1", "1", "100", "50", "40", "0.90 (0.50 to 1.00)", "yes", "1.00", "3.00", "5.00", "1.25"]
