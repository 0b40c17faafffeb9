"""Variables that other programs leave in the environment: without effect, or named in one line."""

from __future__ import annotations

import pytest

from pipeline.training.ranks.inherited import InheritedError, check_ranks, leave_out

OWN = {"PATH": "/bin", "PMI_SIZE": "1"}
LAUNCHED = {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "n0", "MASTER_PORT": "29500"}
ALONE = {**LAUNCHED, "RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1"}


@pytest.mark.parametrize("name", ["PROMETHEUS_MULTIPROC_DIR", "prometheus_multiproc_dir"])
def test_the_folder_of_a_web_services_metrics_is_not_used(name: str) -> None:
    environment = {**OWN, name: "/srv/metrics"}
    leave_out(environment)
    assert environment == OWN


@pytest.mark.parametrize("name", [*LAUNCHED, "TORCHELASTIC_RESTART_COUNT"])
def test_a_variable_of_a_launch_that_is_set_to_nothing_is_none(name: str) -> None:
    environment = {**OWN, name: ""}
    leave_out(environment)
    assert environment == OWN


@pytest.mark.parametrize("launched", [LAUNCHED, ALONE], ids=["two ranks", "one rank"])
@pytest.mark.parametrize("around", [{}, {"PMI_SIZE": "3"}, {"OMPI_COMM_WORLD_SIZE": "3"}, {"MV2_COMM_WORLD_SIZE": "3"}])
def test_a_launched_rank_is_what_its_launcher_says_whatever_is_around(launched: dict[str, str], around: dict[str, str]) -> None:
    environment = launched | around
    leave_out(environment)
    check_ranks(environment)
    assert environment == launched | around


@pytest.mark.parametrize("left", [{"LOCAL_RANK": "0"}, {"RANK": "0", "LOCAL_RANK": "0"}, {"WORLD_SIZE": "1", "LOCAL_RANK": "0"}])
def test_a_local_rank_that_a_launch_has_left_makes_no_process_group(left: dict[str, str]) -> None:
    environment = OWN | left
    check_ranks(environment)
    assert "LOCAL_RANK" not in environment


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({"PMI_SIZE": "2"}, "PMI_SIZE=2: this program does not start under MPI"),
        ({"OMPI_COMM_WORLD_SIZE": "2", "RANK": "0"}, "OMPI_COMM_WORLD_SIZE=2: this program"),
        ({"MV2_COMM_WORLD_SIZE": "4", "WORLD_SIZE": "1"}, "MV2_COMM_WORLD_SIZE=4: this program"),
        ({"RANK": "1"}, "RANK=1, but WORLD_SIZE is not set"),
        ({"RANK": "2", "WORLD_SIZE": "2"}, "RANK=2, but WORLD_SIZE=2"),
        ({"LOCAL_RANK": "1"}, "LOCAL_RANK=1, but there is one rank"),
        ({"WORLD_SIZE": "two"}, "WORLD_SIZE=two: is no number"),
    ],
)
def test_variables_that_contradict_each_other_are_named(environment: dict[str, str], message: str) -> None:
    with pytest.raises(InheritedError) as refused:
        check_ranks(environment)
    assert str(refused.value).startswith(message)
    assert f"unset {message.partition('=')[0]}" in str(refused.value)
    assert "\n" not in str(refused.value)
