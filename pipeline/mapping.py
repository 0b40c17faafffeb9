"""Plain values, as YAML and JSON give them, become frozen dataclasses: of the right types, within the bounds, or not at all.

The bounds of a setting stand on its field, as in `steps: Annotated[int, Ge(1)] = 100`. Every number must be finite, bounds or not.
"""

from __future__ import annotations

import dataclasses
import fnmatch
import math
import operator
import os
import re
import types
import typing
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from typing import Annotated, Any, Literal, TypeVar

from annotated_types import Ge, Gt, Interval, Le, Lt

from pipeline.spelling import nearest
from shards.errors import ExplainedError
from shards.urls import redacted, scheme

ConfigT = TypeVar("ConfigT")


class ConfigError(ExplainedError, ValueError):
    """A setting that can't be used. The message names the key and says which values can."""


def from_mapping(config_type: type[ConfigT], values: Mapping[str, Any], path: str = "", method: type | None = None) -> ConfigT:
    """Builds a frozen dataclass from plain values; keys that are not given keep their defaults.

    Args:
        config_type: dataclass to build.
        values: values by field name, as YAML or JSON gives them; those of nested dataclasses may be instances.
        path: dotted name of the dataclass in the tree, for errors.
        method: dataclass of the field `method` of `Config`.

    Raises:
        ConfigError: an unknown key (with the nearest right one), a value of the wrong type, or one outside the bounds of its field.
    """
    if not isinstance(values, Mapping):
        raise ConfigError(f"{path or 'the file'}: {values!r} is not a table of settings")
    hints = typing.get_type_hints(config_type, include_extras=True)
    known = [item.name for item in dataclasses.fields(config_type)]  # type: ignore[arg-type]
    made: dict[str, Any] = {}
    for key, value in values.items():
        where = f"{path}.{key}" if path else str(key)
        if key not in known:
            raise ConfigError(f"{where}: no such setting{nearest(str(key), known)}")
        made[key] = _value(method if key == "method" and method is not None else hints[key], value, where)
    if method is not None and "method" not in made:
        made["method"] = method()
    try:
        return config_type(**made)
    except ConfigError:
        raise
    except (TypeError, ValueError) as error:
        names_a_field = str(error).partition(":")[0] in known
        raise ConfigError(f"{path or 'settings'}{'.' if names_a_field else ': '}{error}") from error


def checked(config: ConfigT, path: str = "") -> ConfigT:
    """Passes a tree of dataclasses through the same checks as `from_mapping`, whoever built it.

    Raises:
        ConfigError: as `from_mapping`.
    """
    fields = {item.name: getattr(config, item.name) for item in dataclasses.fields(config)}  # type: ignore[arg-type]
    return from_mapping(type(config), fields, path, type(fields["method"]) if "method" in fields else None)


def with_places(value: Any, places: Collection[str], path: str = "", change: Callable[[str, str], str] | None = None) -> Any:
    """Expands `~` and variables in the settings that name a file, a folder or a URL; returns a tree of the same types.

    A tree passes through once, because a `$$` that became a literal `$` would be read as a variable the second time.

    Args:
        value: dataclass of a tree of settings, or a part of one.
        places: dotted names of those settings; * stands for any part of a name.
        path: dotted name of the value in the tree.
        change: function of text and dotted name that makes the new text; None expands.

    Raises:
        ConfigError: as `expanded`.
    """
    if isinstance(value, str):
        return (change or expanded)(value, path) if any(fnmatch.fnmatchcase(path, place) for place in places) else value
    start = f"{path}." if path else ""
    if isinstance(value, dict):
        return {name: with_places(each, places, f"{start}{name}", change) for name, each in value.items()}
    if not dataclasses.is_dataclass(value) or isinstance(value, type):
        return value
    fields = {item.name: getattr(value, item.name) for item in dataclasses.fields(value)}
    return dataclasses.replace(value, **with_places(fields, places, path, change))


def expanded(text: str, where: str) -> str:
    """Expands a leading `~`, `$NAME` and `${NAME}` as a shell does, because settings of a file pass through none; `$$` is a literal `$`.

    Args:
        text: path or URL.
        where: dotted name of the setting, for errors.

    Raises:
        ConfigError: a variable is not set, `${` begins no plain name, or there is no such user.
    """

    def value(found: re.Match[str]) -> str:
        if found[0] == "$$":
            return "$"
        name = found[1] or found[2]
        if name is None:
            raise ConfigError(
                f"{where}: {redacted(text)}: ${{ is not followed by a plain name and }}. Give ${{NAME}}, or $${{ for a literal ${{"
            )
        if name not in os.environ:
            raise ConfigError(
                f"{where}: {redacted(text)} needs the variable {name}, which is not set here. Set it, or write its value out; "
                f"$$ is a literal dollar, as in $${name}"
            )
        return os.environ[name]

    path = os.path.expanduser(re.sub(r"\$(?:([A-Za-z_]\w*)|\{([A-Za-z_]\w*)\}|\$|\{)", value, text))  # noqa: PTH111 (of a URL, // stays)
    if path.startswith("~"):
        raise ConfigError(
            f"{where}: {text}: there is no user {path[1:].split('/')[0]!r} here. Write the folder out, or ./{text} for that name"
        )
    return path


def check_local(where: str, path: str, instead: str) -> None:
    """Refuses a URL where a file or folder of this machine is needed, because a folder named `s3:` would be made without a word.

    Args:
        where: name of the setting or argument.
        path: value of the setting or argument.
        instead: sentence that says what to give.

    Raises:
        ConfigError: the path begins with a scheme such as s3://, also in the form s3:/ that path libraries make of it.
    """
    if scheme(path):
        raise ConfigError(f"{where}: {redacted(path)} is a URL, not a path of this machine. {instead}")


def bounds(kind: Any) -> str:
    """The bounds of a type in words, `at least 0 and below 1`; empty where there are none.

    Args:
        kind: type of a field, such as `Annotated[float, Interval(ge=0, lt=1)]`, also inside a tuple or beside None.
    """
    if typing.get_origin(kind) is Annotated:
        return " and ".join(f"{words} {_shown(limit)}" for words, limit, _ in _limits(kind.__metadata__))
    return next(filter(None, map(bounds, typing.get_args(kind))), "")


def _value(kind: Any, value: Any, where: str) -> Any:
    """The value as its field holds it."""
    origin, options = typing.get_origin(kind), typing.get_args(kind)
    if origin is Annotated:
        return _bounded(kind, _value(options[0], value, where), where)
    if isinstance(kind, type) and dataclasses.is_dataclass(kind):
        return checked(value, where) if isinstance(value, kind) else from_mapping(kind, value, where)
    if origin is Literal:
        if value in options:
            return value
        raise ConfigError(f"{where}: {value!r} is not one of {', '.join(map(repr, options))}{nearest(str(value), map(str, options))}")
    if origin in (typing.Union, types.UnionType):
        if value is None and type(None) in options:
            return None
        return _value(next(option for option in options if option is not type(None)), value, where)
    if origin is tuple and isinstance(value, (list, tuple)):
        inner = options[:1] * len(value) if options[-1] is Ellipsis else options
        if len(inner) == len(value):
            return tuple(_value(each, item, where) for each, item in zip(inner, value, strict=True))
    if origin is dict and isinstance(value, Mapping):
        return {str(key): _value(options[1], item, f"{where}.{key}") for key, item in value.items()}
    return _plain(kind, value, where)


def _plain(kind: Any, value: Any, where: str) -> Any:
    """A number, a word or a truth value."""
    if kind is str and isinstance(value, bool) and where.rpartition(".")[0].endswith("storage_options"):
        return str(value).lower()  # `anon: true`, as people write it in YAML
    if kind is float and isinstance(value, (int, float, str)) and not isinstance(value, bool):
        try:
            number = float(value)  # also of text, because YAML reads 1e-4 as text
        except (ValueError, OverflowError):
            number = None
        if number is not None and not math.isfinite(number):
            raise ConfigError(f"{where}: {value} is not a finite number")
        if number is not None:
            return number
    elif isinstance(kind, type) and isinstance(value, kind) and not (kind is int and isinstance(value, bool)):
        return value
    raise ConfigError(f"{where}: {value!r} is not {getattr(kind, '__name__', kind)}")


def _bounded(kind: Any, value: Any, where: str) -> Any:
    """The value, which lies within the bounds of an annotated type."""
    if not all(keeps(value, limit) for _, limit, keeps in _limits(kind.__metadata__)):
        raise ConfigError(f"{where}: {value} is not {bounds(kind)}")
    return value


def _shown(limit: Any) -> str:
    """A bound as people write it: 2**63 and not its 19 digits."""
    power = int(limit).bit_length() - 1
    return f"2**{power}" if power >= 16 and limit == 2**power else str(limit)


def _limits(metadata: Iterable[Any]) -> Iterator[tuple[str, Any, Callable[[Any, Any], bool]]]:
    """Words, number and test of each bound among the annotations of a field."""
    for mark in metadata:
        if isinstance(mark, Interval):
            yield from _limits(mark)
        elif isinstance(mark, Gt):
            yield "above", mark.gt, operator.gt
        elif isinstance(mark, Ge):
            yield "at least", mark.ge, operator.ge
        elif isinstance(mark, Lt):
            yield "below", mark.lt, operator.lt
        elif isinstance(mark, Le):
            yield "at most", mark.le, operator.le
