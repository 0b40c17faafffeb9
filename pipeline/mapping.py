"""From plain values, as YAML and JSON give them, to frozen dataclasses, and nothing that does not fit."""

from __future__ import annotations

import dataclasses
import difflib
import types
import typing
from collections.abc import Iterable, Mapping
from typing import Any, Literal, TypeVar

from shards.errors import ExplainedError

ConfigT = TypeVar("ConfigT")


class ConfigError(ExplainedError, ValueError):
    """A setting that can't be used. The message names the key and says what would do."""


def from_mapping(config_type: type[ConfigT], values: Mapping[str, Any], path: str = "", method: type | None = None) -> ConfigT:
    """Builds a frozen dataclass from plain values; keys that are not given keep their defaults.

    Args:
        config_type: the dataclass.
        values: as YAML or JSON gives them.
        path: where in the tree it stands, for errors.
        method: what the field `method` of `Config` is made of.

    Raises:
        ConfigError: an unknown key (with the nearest right one) or a value of the wrong type.
    """
    fields = {item.name: item for item in dataclasses.fields(config_type)}  # type: ignore[arg-type]
    hints = typing.get_type_hints(config_type)
    if not isinstance(values, Mapping):
        raise ConfigError(f"{path or 'the file'}: {values!r} is not a table of settings")
    made: dict[str, Any] = {}
    for key, value in values.items():
        where = f"{path}.{key}" if path else str(key)
        if key not in fields:
            raise ConfigError(f"{where}: no such setting{nearest(str(key), fields)}")
        kind = method if key == "method" and method is not None else hints[key]
        made[key] = _made(kind, value, where)
    if method is not None and "method" not in made:
        made["method"] = method()
    try:
        return config_type(**made)
    except ConfigError:
        raise
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{path or 'settings'}: {error}") from error


def _made(kind: Any, value: Any, where: str) -> Any:
    return from_mapping(kind, value, where) if isinstance(kind, type) and dataclasses.is_dataclass(kind) else _value(kind, value, where)


def _value(kind: Any, value: Any, where: str) -> Any:
    origin, options = typing.get_origin(kind), typing.get_args(kind)
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
        return {str(key): _made(options[1], item, f"{where}.{key}") for key, item in value.items()}
    if kind is str and isinstance(value, bool) and where.rpartition(".")[0].endswith("storage_options"):
        return str(value).lower()  # `anon: true`, as people write it in YAML
    if kind is float and isinstance(value, str):  # YAML reads 1e-4 as text
        try:
            return float(value)
        except ValueError:
            pass
    if kind is float and isinstance(value, (int, float)) and not isinstance(value, bool):
        return float(value)
    if isinstance(kind, type) and isinstance(value, kind) and not (kind is int and isinstance(value, bool)):
        return value
    raise ConfigError(f"{where}: {value!r} is not {getattr(kind, '__name__', kind)}")


def nearest(word: str, known: Iterable[str]) -> str:
    """` Did you mean ...` where a known word is near, else nothing."""
    close = difflib.get_close_matches(word, list(known), n=1, cutoff=0.5)
    return f". Did you mean {close[0]!r}?" if close else ""
