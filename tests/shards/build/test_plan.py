"""The plan: a pure function of listing, seed and settings."""

from __future__ import annotations

import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shards.build import plan as plans
from shards.build.picture import PictureRules
from shards.build.plan import Plan, PlanSettings
from shards.build.sources import Listing
from shards.build.sources.listing import ListingBuilder
from shards.errors import ShardError


def listing(count: int, url: str = "somewhere", length: int = 10) -> Listing:
    builder = ListingBuilder(url)
    for number in range(count):
        builder.add(f"c{number % 3}/{number}.jpg", length)
    return builder.finish(url, "folder", None)


@given(st.integers(1, 300), st.integers(1, 50), st.integers(0, 2**63 - 1))
def test_every_picture_goes_to_exactly_one_place(count: int, shard_size: int, seed: int) -> None:
    plan = Plan(listing(count), PlanSettings(shard_size=shard_size, seed=seed))
    tasks = list(plan)
    assert len(tasks) == len(plan) == -(-count // shard_size)
    assert sorted(entry.name for task in tasks for entry in task.entries) == sorted(entry.name for entry in plan.listing)
    keys = [key for task in tasks for key in task.keys]
    assert keys == sorted(keys)
    assert len(set(keys)) == count
    assert not any("." in key for key in keys)
    assert [len(task.entries) for task in tasks[:-1]] == [shard_size] * (len(tasks) - 1)
    assert len({task.digest for task in tasks}) == len({task.shard for task in tasks}) == len(tasks)


def test_a_plan_is_the_same_every_time_and_wherever_the_source_lies() -> None:
    a, b = Plan(listing(50), PlanSettings(shard_size=7)), Plan(listing(50, "elsewhere"), PlanSettings(shard_size=7))
    assert a.digest == b.digest
    assert list(a) == list(b) == pickle.loads(pickle.dumps(list(a)))  # noqa: S301 - bytes made on this line


@pytest.mark.parametrize(
    "change",
    [
        {"seed": 1},
        {"shard_size": 8},
        {"prefix": "other"},
        {"picture": PictureRules(resize=100)},
        {"picture": PictureRules(quality=80)},
        {"picture": PictureRules(resize=None)},
        {"picture": PictureRules(max_pixels=10)},
    ],
)
def test_whatever_changes_the_bytes_changes_the_digests(change: dict[str, object]) -> None:
    plain, changed = Plan(listing(50), PlanSettings(shard_size=7)), Plan(listing(50), PlanSettings(**{"shard_size": 7, **change}))  # type: ignore[arg-type]
    assert plain.digest != changed.digest
    assert plain.task(0).digest != changed.task(0).digest


def test_other_pictures_change_the_digests() -> None:
    settings = PlanSettings(shard_size=100)
    plans_ = [Plan(pictures, settings) for pictures in (listing(50), listing(51), listing(50, length=11))]
    assert len({plan.digest for plan in plans_}) == len({plan.task(0).digest for plan in plans_}) == 3


def test_another_encoder_makes_shards_anew_but_the_data_set_stays_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    before = Plan(listing(5), PlanSettings())
    untouched = Plan(listing(5), PlanSettings(PictureRules(resize=None)))
    monkeypatch.setattr(plans, "encoder", lambda: "Pillow 99")
    after = Plan(listing(5), PlanSettings())
    assert before.digest == after.digest
    assert before.task(0).digest != after.task(0).digest
    assert untouched.task(0).digest == Plan(listing(5), PlanSettings(PictureRules(resize=None))).task(0).digest


@pytest.mark.parametrize(
    "settings",
    [{"shard_size": 0}, {"seed": -1}, {"prefix": ""}, {"prefix": "a/b"}, {"prefix": "a.b"}, {"prefix": "../x"}, {"prefix": "_x"}],
)
def test_settings_outside_their_range_are_refused(settings: dict[str, object]) -> None:
    with pytest.raises(ShardError, match=next(iter(settings))):
        PlanSettings(**settings)  # type: ignore[arg-type]
