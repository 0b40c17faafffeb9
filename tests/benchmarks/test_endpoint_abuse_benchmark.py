"""The verdicts of the benchmark of the abused endpoint: on all that is taken from the training's core, and none where noise hides it."""

from __future__ import annotations

import pytest

from benchmarks.endpoint_abuse import Block, Figures, _row


def cells(pairs: list[tuple[Block, Block]], shared: bool) -> list[str]:
    found = Figures(pairs, beside=[1.0] * len(pairs), after=[1.0] * len(pairs))
    return [cell.strip() for cell in _row("x", found, shared).strip("|").split("|")]


def block(seconds: float, answers: float = 0.0, endpoint: float = 0.0) -> Block:
    return Block([seconds] * 10, [seconds] * 10, answers * 10 * seconds, endpoint * 10 * seconds)


@pytest.mark.parametrize(
    ("shared", "answers", "endpoint", "taken", "verdict"),
    [
        (False, 0.0024, 0.0282, "0.24%", "yes"),
        (True, 0.0028, 0.0277, "3.05%", "no"),
        (True, 0.0028, 0.0070, "0.98%", "yes"),
        (False, 0.0110, 0.0, "1.10%", "no"),
    ],
)
def test_what_is_taken_is_the_answers_and_the_endpoint_where_it_is_on_the_same_core(
    shared: bool, answers: float, endpoint: float, taken: str, verdict: str
) -> None:
    row = cells([(block(0.1), block(0.1, answers, endpoint))] * 2, shared)
    assert row[12:14] == [taken, verdict]


@pytest.mark.parametrize(
    ("abused", "verdict"),
    [((0.1001, 0.1002, 0.1003), "yes"), ((0.102, 0.1021, 0.1022), "no"), ((0.05, 0.09, 0.15), "not shown"), ((0.1,), "not shown")],
)
def test_a_change_that_noise_hides_is_not_shown(abused: tuple[float, ...], verdict: str) -> None:
    assert cells([(block(0.1), block(seconds)) for seconds in abused], False)[8] == verdict
