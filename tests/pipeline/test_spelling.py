"""The name that an error suggests is the nearest by its spelling, and the sentence around it ends once."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.spelling import edits, nearest

WORDS = st.text("abc", max_size=6)


@pytest.mark.parametrize(
    ("one", "other", "count"),
    [("", "abc", 3), ("steps", "stesp", 1), ("shard", "shards", 1), ("evry", "every", 1), ("fp23", "fp32", 1), ("ab", "cd", 2)],
)
def test_edits_are_counted_as_a_person_makes_them(one: str, other: str, count: int) -> None:
    assert edits(one, other) == edits(other, one) == count


@given(WORDS, WORDS)
def test_edits_are_none_for_the_same_word_and_never_more_than_to_write_it_anew(one: str, other: str) -> None:
    assert (edits(one, other) == 0) == (one == other)
    assert abs(len(one) - len(other)) <= edits(one, other) <= max(len(one), len(other))


def test_the_suggestion_does_not_depend_on_the_order_of_the_names(draw: random.Random) -> None:
    names = ["training.steps", "schedule.warmup_steps", "training.pictures", "watchdog.collapse_steps"]
    draw.shuffle(names)
    assert nearest("training.stesp", names) == ". Did you mean 'training.steps'?"


@pytest.mark.parametrize(
    ("word", "end"),
    [
        ("featuers", ". Did you mean 'features'? There are: autoencoder, features"),
        ("autoencodr", ". Did you mean 'autoencoder'? There are: autoencoder, features"),
        ("gan", ". There are: autoencoder, features"),
    ],
)
def test_a_suggestion_and_the_list_behind_it_are_two_sentences(word: str, end: str) -> None:
    assert nearest(word, ["features", "autoencoder"], listed=True) == end
