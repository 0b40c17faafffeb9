"""The two places that settings are read from: YAML files, and dotted arguments of a command line, both as plain values.

Neither refuses a value for being out of bounds: `pipeline.mapping.from_mapping` does, so that both are refused with the same words. The
help of the command line says the bounds that stand on the fields.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import tyro
import yaml
from tyro.constructors import ConstructorRegistry, StructConstructorSpec, StructFieldSpec, StructTypeInfo

from pipeline.mapping import ConfigError, bounds, expanded
from pipeline.spelling import nearest
from shards.urls import redacted


def load_yaml(path: Path, option: str) -> Any:
    """Reads a YAML file that an option of the command line names.

    Args:
        path: path of the file.
        option: option that named it, for errors.

    Raises:
        ConfigError: the file can't be read, is not YAML, or gives a key twice, of which YAML would keep the last without a word.
    """
    try:
        loader = yaml.SafeLoader(path.read_text(encoding="utf-8"))
        node = loader.get_single_node()
        if twice := next(_keys_given_twice(node), None):
            key, first, second = twice
            raise ConfigError(f"{option} {path}: {key} is given twice, in lines {first} and {second}. Join the two, or remove one of them")
        return loader.construct_document(node) if node is not None else None
    except OSError as error:
        raise ConfigError(f"{option} {path}: {error.strerror or error}") from error
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        raise ConfigError(f"{option} {path}: not readable as YAML: {' '.join(str(error).split())}") from error


def read_yaml(files: Sequence[str]) -> dict[str, Any]:
    """The table of settings in some files together: a setting of a later file replaces that of an earlier one, and all others stay.

    Args:
        files: paths of the files, in which `~` and variables are expanded.

    Raises:
        ConfigError: no such file, or one that holds anything else.
    """
    if "" in files:
        raise ConfigError("--config: the name of the file is empty. Give a file, or leave --config out")
    joined: dict[str, Any] = {}
    for path in (Path(expanded(file, "--config")) for file in files):
        values = load_yaml(path, "--config")
        if not isinstance(values, dict | None):
            raise ConfigError(f"--config {path}: holds {type(values).__name__}, not a table of settings")
        joined = _joined(joined, values or {})
    return joined


def name_sources(values: dict[str, Any], arguments: Sequence[str]) -> None:
    """Adds an empty entry for each source that only the command line names, because overrides need an entry to change."""
    named = [found[1] for argument in arguments if (found := re.match(r"--data\.sources\.(\w+)\.", argument))]
    if named and isinstance(data := values.setdefault("data", {}), dict) and isinstance(sources := data.setdefault("sources", {}), dict):
        for name in named:
            sources.setdefault(name, {})


def take(arguments: Sequence[str], name: str) -> tuple[list[str], list[str]]:
    """Splits an option off: the arguments without any `name VALUE` or `name=VALUE`, and the values in their order.

    Raises:
        ConfigError: the option without a value.
    """
    rest, values, position = list[str](), list[str](), 0
    while position < len(arguments):
        argument = arguments[position]
        if argument == name:
            if position + 1 == len(arguments):
                raise ConfigError(f"{name}: a value is missing")
            values.append(arguments[position + 1])
            position += 1
        elif argument.startswith(f"{name}="):
            values.append(argument.partition("=")[2])
        else:
            rest.append(argument)
        position += 1
    return rest, values


def overridden(config_type: Any, defaults: Any, arguments: Sequence[str], program: str, description: str) -> dict[str, Any]:
    """The plain values of a tree of dataclasses after the arguments of a command line have replaced some.

    Args:
        config_type: dataclass of the tree.
        defaults: instance of the dataclass.
        arguments: command line without the program, as in `--training.steps 100`.
        program: name of the program, for help.
        description: first lines of the help.

    Raises:
        ConfigError: an unknown argument, with the nearest right one.
        SystemExit: --help, or a malformed value, after it has been explained.
    """
    values: dict[str, Any]
    values, unknown = tyro.cli(
        config_type,
        prog=program,
        description=description,
        default=defaults,
        args=arguments,
        use_underscores=True,
        config=(tyro.conf.FlagConversionOff, tyro.conf.SuppressFixed),
        registry=_registry(),
        return_unknown_args=True,
    )
    if unknown:
        word = redacted(unknown[0].partition("=")[0])
        if not word.startswith("-"):
            raise ConfigError(f"{word}: is no setting. Settings are given as --SECTION.SETTING VALUE; --help lists them")
        suggestion = nearest(word.lstrip("-").replace("-", "_"), _names(defaults), prefix="--")
        raise ConfigError(f"{word}: no such setting{suggestion or '. --help lists them'}")
    return values


def _keys_given_twice(root: yaml.Node | None) -> Iterator[tuple[str, int, int]]:
    """Yields the dotted name of each key that a table has twice, and the lines of both."""
    stack, seen = [("", root)], set[int]()
    while stack:
        path, node = stack.pop()
        if not isinstance(node, yaml.CollectionNode) or id(node) in seen:  # aliases lead to one node from many places
            continue
        seen.add(id(node))
        if isinstance(node, yaml.SequenceNode):
            stack += [(path, each) for each in node.value]
            continue
        lines: dict[str, int] = {}
        for key, value in node.value:
            name, line = str(key.value), key.start_mark.line + 1
            where = f"{path}.{name}" if path else name
            if name in lines:
                yield where, lines[name], line
            lines[name] = line
            stack.append((where, value))


def _joined(first: Mapping[str, Any], second: Mapping[str, Any]) -> dict[str, Any]:
    both = {key: _joined(first[key], second[key]) for key in second if isinstance(first.get(key), dict) and isinstance(second[key], dict)}
    return {**first, **second, **both}


def _names(values: Any, path: str = "") -> Iterator[str]:
    """Yields the dotted names of all settings in a tree of dataclasses, and of tables of dataclasses."""
    if dataclasses.is_dataclass(values):
        values = {item.name: getattr(values, item.name) for item in dataclasses.fields(values)}
    elif not isinstance(values, dict) or not any(map(dataclasses.is_dataclass, values.values())):
        yield path
        return
    for name, value in values.items():
        yield from _names(value, f"{path}.{name}" if path else name)


def _registry() -> ConstructorRegistry:
    """Rules for tyro: a dataclass is read as a table of plain values, and the help of a field says its bounds."""
    registry, entered = ConstructorRegistry(), False

    def table(info: StructTypeInfo) -> StructConstructorSpec | None:
        nonlocal entered
        if entered or not dataclasses.is_dataclass(info.type):
            return None
        entered = True  # the rule for dataclasses that tyro has is to answer now
        try:
            spec = ConstructorRegistry.get_struct_spec(info)
        finally:
            entered = False
        if not isinstance(spec, StructConstructorSpec):  # what tyro found wrong, it says
            return None
        return StructConstructorSpec(dict, tuple(map(_with_bounds, spec.fields)))

    registry.struct_rule(table)
    return registry


def _with_bounds(field: StructFieldSpec) -> StructFieldSpec:
    words = bounds(field.type)
    if not words:
        return field
    hint: Callable[[str], str] = lambda default: f"({words}; default: {default})"  # noqa: E731
    return dataclasses.replace(field, type=Annotated[field.type, tyro.conf.arg(help_behavior_hint=hint)])  # type: ignore[arg-type]
