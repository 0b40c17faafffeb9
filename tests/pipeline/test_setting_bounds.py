"""Every number of every recipe's settings has bounds, and is refused outside of them by its name, wherever it comes from."""

from __future__ import annotations

import dataclasses
import math
import types
import typing
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import pytest
import yaml
from annotated_types import Ge, Gt, Le
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline import recipes
from pipeline.config import Config, parse
from pipeline.mapping import ConfigError, bounds
from pipeline.training.slurm.submission import parse_settings

Refuser = Callable[[], object]


@dataclass(frozen=True)
class Number:
    """One number in the tree of a recipe's settings.

    Attributes:
        recipe: recipe that has it.
        path: dotted name; sources are represented by one called `a`.
        kind: int or float.
        limits: bounds on the field.
        words: bounds as an error has them.
        before, behind: values of the same tuple.
    """

    recipe: str
    path: str
    kind: type
    limits: tuple[Any, ...] = ()
    words: str = ""
    before: tuple[Any, ...] = ()
    behind: tuple[Any, ...] = ()

    def __str__(self) -> str:
        return f"{self.recipe}-{self.path}" + f"-{len(self.before)}" * bool(self.before or self.behind)

    def arguments(self, value: Any) -> list[str]:
        """The command line that sets the number."""
        data = "--data.sources.a.shards=x" if ".sources." in self.path else "--data.shards=x"
        given = [str(each) for each in (*self.before, value, *self.behind)]
        setting = [f"--{self.path}={given[0]}"] if len(given) == 1 else [f"--{self.path}", *given]
        return ["--recipe", self.recipe, data, *setting]

    def file(self, folder: Path, value: Any) -> list[str]:
        """The command line with a YAML file that sets the number."""
        tree: Any = [*self.before, value, *self.behind] if self.before or self.behind else value
        for key in reversed(self.path.split(".")):
            tree = {key: tree}
        data = tree.setdefault("data", {})
        (data["sources"]["a"] if ".sources." in self.path else data)["shards"] = "x"
        (folder / "settings.yaml").write_text(yaml.safe_dump({"recipe": self.recipe, **tree}))
        return ["--config", str(folder / "settings.yaml")]

    def edge(self, limit: Any) -> Any:
        """The number of a bound."""
        return self.kind(next(iter(dataclasses.asdict(limit).values())))

    def neighbours(self, value: Any) -> tuple[Any, Any]:
        """The next smaller and the next larger number."""
        if self.kind is int:
            return value - 1, value + 1
        return math.nextafter(value, -math.inf), math.nextafter(value, math.inf)

    def edges(self) -> tuple[list[Any], list[Any]]:
        """The last values inside the bounds, and the first ones outside."""
        inside, outside = [], []
        for limit in self.limits:
            edge, upwards, closed = self.edge(limit), isinstance(limit, Ge | Gt), isinstance(limit, Ge | Le)
            below, above = self.neighbours(edge)
            inside.append(edge if closed else above if upwards else below)
            outside.append(edge if not closed else below if upwards else above)
        return inside, outside


def numbers(recipe: str, kind: Any, path: str, default: Any = None) -> Iterator[Number]:
    """Every number below a type, by looking at the types alone."""
    origin, options = typing.get_origin(kind), typing.get_args(kind)
    if origin is Annotated and options[0] in (int, float):
        limits = [limit for mark in kind.__metadata__ for limit in (mark if hasattr(mark, "__iter__") else [mark])]
        yield Number(recipe, path, options[0], tuple(limits), bounds(kind))
    elif origin is Annotated:
        yield from numbers(recipe, options[0], path, default)
    elif kind in (int, float):
        yield Number(recipe, path, kind)
    elif dataclasses.is_dataclass(kind):
        hints, made = typing.get_type_hints(kind, include_extras=True), kind() if kind is not Config else None
        for each in dataclasses.fields(kind):
            hint = recipes.SETTINGS[recipe] if (kind, each.name) == (Config, "method") else hints[each.name]
            yield from numbers(recipe, hint, f"{path}.{each.name}".strip("."), getattr(made, each.name, None))
    elif origin is dict:
        yield from numbers(recipe, options[1], f"{path}.a")
    elif origin is tuple:
        for place, option in enumerate(options):
            found = next(numbers(recipe, option, path))
            yield dataclasses.replace(found, before=default[:place], behind=default[place + 1 :])
    elif origin in (typing.Union, types.UnionType):
        yield from (found for option in options if option is not type(None) for found in numbers(recipe, option, path, default))


EVERY = [number for recipe in recipes.SETTINGS for number in numbers(recipe, Config, "")]


def owner(number: Number) -> type:
    """The class that declares a setting: recipes may share the class of their settings, or inherit from another's."""
    section, name = number.path.split(".")[:2] if "." in number.path else ("", number.path)
    if section != "method":
        return Config
    return next(kind for kind in recipes.SETTINGS[number.recipe].__mro__ if name in vars(kind).get("__annotations__", {}))


DISTINCT = list({(owner(number), number.path, len(number.before)): number for number in reversed(EVERY)}.values())
"""One of the numbers that several recipes have from the same class."""


def refusal(arguments: list[str], read: Callable[[list[str]], object] = lambda words: parse(recipes.SETTINGS, words)) -> str:
    """The error that a command line ends with; empty where it is accepted."""
    try:
        read(arguments)
    except ConfigError as error:
        return str(error)
    return ""


def test_the_walk_sees_the_numbers_of_every_recipe() -> None:
    assert {number.recipe for number in EVERY} == set(recipes.RECIPES)
    assert len(EVERY) > 150
    paths = [number.path for number in EVERY if number.recipe == "features"]
    for path in ("seed", "training.steps", "data.sources.a.weight", "method.width", "method.mask.overlap", "method.optimiser.epsilon"):
        assert path in paths
    assert paths.count("method.discriminator_optimiser.betas") == 2


@pytest.mark.parametrize("number", DISTINCT, ids=str)
def test_a_number_outside_its_bounds_is_refused_by_its_name(number: Number, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert number.limits, f"{number.path} has no bounds: annotate its field with Ge, Gt or Interval"
    inside, outside = number.edges()
    for value in outside:
        expected = f"{number.path}: {value} is not {number.words}"
        assert refusal(number.arguments(value)) == refusal(number.file(tmp_path, value)) == expected
    for value in inside:  # may contradict another setting
        for arguments in (number.arguments(value), number.file(tmp_path, value)):
            assert number.words not in refusal(arguments)
    for value in (math.nan, math.inf, -math.inf):
        expected = f"{number.path}: {value} is not {'a finite number' if number.kind is float else 'int'}"
        assert refusal(number.file(tmp_path, value)) == expected
        if number.kind is float:
            assert refusal(number.arguments(value)) == expected
        else:
            with pytest.raises(SystemExit):
                parse(recipes.SETTINGS, number.arguments(value))
            assert f"--{number.path}" in capsys.readouterr().err


@settings(max_examples=30)
@given(st.data())
def test_file_command_line_and_submission_to_slurm_refuse_the_same_with_the_same_words(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    number = data.draw(st.sampled_from([each for each in EVERY if each.limits]))
    limit = data.draw(st.sampled_from(number.limits))
    edge, folder = number.edge(limit), tmp_path_factory.mktemp("settings")
    if number.kind is int:
        value: Any = data.draw(st.integers(max_value=edge - 1) if isinstance(limit, Ge) else st.integers(min_value=edge))
    else:
        wide = {"max_value" if isinstance(limit, Ge | Gt) else "min_value": edge}
        value = data.draw(st.floats(**wide, exclude_max=isinstance(limit, Ge), exclude_min=isinstance(limit, Le), allow_infinity=False))
    found = {refusal(number.arguments(value)), refusal(number.file(folder, value)), refusal(number.arguments(value), parse_settings)}
    assert found == {f"{number.path}: {value} is not {number.words}"}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["--method.reconstruction_weight", "0"], "method.reconstruction_weight: this weight and method.adversarial_weight are both 0"),
        (["--method.width", "40"], "method.width: 40 is not a multiple of 6"),
        (["--method.mixing_kernel", "2"], "method.mixing_kernel: 2 is not odd"),
        (["--method.mask.max_fraction", "0.15"], "method.mask.min_fraction: 0.1 is not above 0 and at most half of max_fraction"),
        (["--recipe", "inpainting", "--method.mask.max_fraction", "0.3"], "method.mask.max_fraction: 0.3 is not 0.25"),
        (["--training.offload", "optimizer"], "training.offload: ddp keeps everything"),
    ],
)
def test_settings_that_contradict_each_other_are_refused_before_any_rank_starts(settings: list[str], message: str) -> None:
    for read in (lambda words: parse(recipes.SETTINGS, words), parse_settings):
        assert message in refusal(["--data.shards", "x", *settings], read)


@pytest.mark.parametrize("recipe", recipes.SETTINGS)
def test_the_help_says_the_bounds_of_every_number(recipe: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse(recipes.SETTINGS, ["--recipe", recipe, "--data.sources.a.shards", "x", "--help"])
    text = " ".join(capsys.readouterr().out.replace("│", " ").split())
    for number in EVERY:
        if number.recipe == recipe:
            assert f"({number.words}; default: " in text.partition(f"--{number.path} ")[2].partition(" --")[0], number.path
