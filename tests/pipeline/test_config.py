"""Settings come from a file and the command line, and what is wrong with them is said before anything starts."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from pipeline import recipes
from pipeline.config import Config, OptimiserConfig, parse, to_mapping
from pipeline.mapping import ConfigError, from_mapping


@dataclass(frozen=True)
class Method:
    """Settings of a recipe."""

    layout: Literal["caffenet", "torchvision"] = "caffenet"
    """Which."""
    std: float | None = None
    """Deviation."""
    sizes: tuple[int, ...] = (1, 2)
    """Some."""
    optimiser: OptimiserConfig = field(default_factory=lambda: OptimiserConfig(learning_rate=2e-3))


METHODS = {"features": Method, "other": OptimiserConfig}


def write(folder: Path, text: str) -> str:
    path = folder / "settings.yaml"
    path.write_text(text)
    return str(path)


def test_the_command_line_overrides_the_file_and_the_file_the_defaults(tmp_path: Path) -> None:
    file = write(
        tmp_path, "data: {shards: here, flip: false}\ntraining: {steps: 7, max_gradient_norm: 1e-1}\nmethod: {std: 1, sizes: [3]}\n"
    )
    config = parse(METHODS, ["--config", file, "--training.steps", "9", "--method.layout=torchvision"])
    assert (config.training.steps, config.training.max_gradient_norm, config.training.global_batch) == (9, 0.1, 256)
    assert (config.data.shards, config.data.flip) == ("here", False)
    assert config.method == Method("torchvision", 1.0, (3,))
    assert config.method.optimiser.learning_rate == 2e-3


def test_the_recipe_decides_what_the_method_is() -> None:
    assert isinstance(parse(METHODS, ["--recipe", "other", "--data.shards", "x"]).method, OptimiserConfig)
    with pytest.raises(ConfigError, match=r"'feature' is not a recipe\. Did you mean 'features'"):
        parse(METHODS, ["--recipe", "feature"])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("data: {shard: x}", "data.shard: no such setting. Did you mean 'shards'"),
        ("trainin: {}", "trainin: no such setting. Did you mean 'training'"),
        ("method: {optimiser: {learning_rat: 1}}", "method.optimiser.learning_rat: no such setting. Did you mean 'learning_rate'"),
        ("training: {steps: many}", "training.steps: 'many' is not int"),
        ("training: {steps: true}", "training.steps: True is not int"),
        ("training: {steps: 1.5}", "training.steps: 1.5 is not int"),
        ("training: {precision: fp16}", "training.precision: 'fp16' is not one of 'fp32', 'bf16'"),
        ("training: 3", "training: 3 is not a table of settings"),
        ("method: {optimiser: {betas: [0.9]}}", "method.optimiser.betas"),
        ("data: {storage_options: {key: 3}}", "data.storage_options.key: 3 is not str"),
        ("[1, 2]", "holds list, not a table"),
        ("a: [", "not readable as YAML"),
    ],
)
def test_what_is_wrong_in_a_file_is_named(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse(METHODS, ["--config", write(tmp_path, text), "--data.shards", "x"])


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"none.yaml: No such file"):
        parse(METHODS, ["--config", str(tmp_path / "none.yaml")])
    with pytest.raises(ConfigError, match="--config: a value is missing"):
        parse(METHODS, ["--config"])


@pytest.mark.parametrize(
    ("argument", "right"),
    [
        ("--training.stesp", "--training.steps"),
        ("--monitoring.prot=1", "--monitoring.port"),
        ("--trainng.global-batch", "--training.global_batch"),
        ("--checkpoint.evry", "--checkpoint.every"),
        ("--steps", "--training.steps"),
        ("--training.learning_rate", "--method.optimiser.learning_rate"),
        ("--data.sources.a.shrads", "--data.sources.a.shards"),
    ],
)
def test_an_unknown_argument_ends_with_the_one_that_is_spelt_most_alike(argument: str, right: str) -> None:
    with pytest.raises(ConfigError) as refused:
        parse(METHODS, [argument, "1"])
    assert str(refused.value) == f"{argument.partition('=')[0]}: no such setting. Did you mean {right}?"


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("--qqq", "--qqq: no such setting. --help lists them"),
        ("s3://b/k?X-Amz-Signature=abc", "s3://b/k: is no setting. Settings are given as"),
    ],
)
def test_an_argument_that_is_like_no_setting_leads_to_the_help(argument: str, message: str) -> None:
    with pytest.raises(ConfigError) as refused:
        parse(METHODS, ["--data.shards", "x", argument])
    assert str(refused.value).startswith(message)
    assert "abc" not in str(refused.value)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "data.shards: give the URL"),
        (["--data.shards", "x", "--training.steps", "0"], "training.steps: 0 is not at least 1"),
        (["--data.shards", "x", "--training.micro_batch", "-1"], "training.micro_batch"),
        (["--data.shards", "x", "--data.max_bad_fraction", "nan"], "data.max_bad_fraction"),
        (["--data.shards", "x", "--data.stall_seconds", "0"], "data.stall_seconds: 0.0 is not above 0"),
        (["--data.shards", "x", "--run", ""], "run: give the folder"),
    ],
)
def test_values_that_no_run_could_use_are_refused(arguments: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse(METHODS, arguments)


def test_help_tells_meaning_and_default_of_every_setting(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        parse(METHODS, ["--help"])
    assert stopped.value.code == 0
    text = capsys.readouterr().out
    for expected in ("--training.global_batch", "default: 256", "never changes with the number", "--method.layout", "--config FILE.yaml"):
        assert expected in " ".join(text.split())


@given(st.integers(1, 10**6), st.floats(0, 10), st.sampled_from(["random", "random_resized", "center"]))
@pytest.mark.slow
def test_what_is_written_is_what_is_read(steps: int, norm: float, crop: str) -> None:
    config = parse(
        METHODS, ["--data.shards", "x", "--training.steps", str(steps), "--training.max_gradient_norm", repr(norm), "--data.crop", crop]
    )
    again = from_mapping(Config, yaml.safe_load(yaml.safe_dump(to_mapping(config))), method=Method)
    assert again == config


def test_secrets_are_not_written() -> None:
    config = parse(
        METHODS, ["--data.shards", "x", "--data.storage_options", "endpoint_url", "http://x", "secret", "hidden", "key", "hidden"]
    )
    assert config.data.storage_options["secret"] == "hidden"
    shown = parse(METHODS, ["--data.shards", "https://user:hidden@host/set", "--checkpoint.url", "s3://bucket/x?sig=hidden"])
    assert "hidden" not in str(to_mapping(shown))
    written = to_mapping(config)
    assert "hidden" not in str(written)
    assert written["data"]["storage_options"]["endpoint_url"] == "http://x"


def test_storage_options_may_be_written_as_yaml_truth_values(tmp_path: Path) -> None:
    config = parse(METHODS, ["--config", write(tmp_path, "data: {shards: x, storage_options: {anon: true}}")])
    assert config.data.storage_options == {"anon": "true"}


@pytest.mark.parametrize("line", ["--data.cache_gb=inf", "--data.stall_seconds=inf", "--data.cache="])
def test_what_is_not_finite_or_empty_is_refused(line: str) -> None:
    with pytest.raises(ConfigError, match=line.strip("-").partition("=")[0]):
        parse(METHODS, ["--data.shards", "x", line])


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["--data.storage_options", "secret=abc", "key=xyz"], r"data\.storage_options: .*secret VALUE"),
        (["--recipe", "inpainting", "--method.mask.overlap", "40"], r"method\.mask\.overlap: 40 pixels"),
        (["--recipe", "inpainting", "--method.batch_norm_group", "8", "--training.micro_batch", "4"], r"training\.micro_batch: 4 is less"),
        (["--recipe", "inpainting", "--method.batch_norm_group", "48"], r"training\.global_batch: .* not a multiple of .* 48"),
        (["--training.timeout_minutes", "1e300"], r"training\.timeout_minutes: 1e\+300 is not above 0 and at most"),
        (["--data.ready_batches", "1000000000"], r"data\.ready_batches: 1000000000 is not"),
    ],
)
def test_a_run_that_would_fail_on_every_rank_is_refused_before_one_starts(arguments: list[str], text: str) -> None:
    with pytest.raises(ConfigError, match=text) as refused:
        parse(recipes.SETTINGS, ["--data.shards", "x", *arguments])
    assert "abc" not in str(refused.value)
