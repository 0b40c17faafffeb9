"""Settings come from a file and the command line, and what is wrong with them is said before anything starts."""

from __future__ import annotations

import contextlib
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline import recipes
from pipeline.config import Config, OptimiserConfig, check, parse, to_mapping
from pipeline.mapping import ConfigError, expanded, from_mapping


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


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("training: {steps: 7}\nseed: 3\ntraining: {threads: 1}\n", "training is given twice, in lines 1 and 3"),
        ("seed: 3\n'seed': 4\n", "seed is given twice, in lines 1 and 2"),
        ("method:\n  optimiser:\n    momentum: 0.5\n    momentum: 0.6\n", "method.optimiser.momentum is given twice, in lines 3 and 4"),
        ("data: {sources: {a: {shards: x}, a: {shards: y}}}\n", "data.sources.a is given twice, in lines 1 and 1"),
    ],
)
def test_a_key_that_a_file_has_twice_is_refused_by_its_name(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=f"--config {tmp_path}/settings.yaml: {re.escape(message)}"):
        parse(METHODS, ["--config", write(tmp_path, text), "--data.shards", "x"])


def test_anchors_and_merged_keys_of_yaml_are_no_keys_given_twice(tmp_path: Path) -> None:
    text = "data: {shards: x}\ntraining: &some {steps: 7, threads: 2}\nmethod: {optimiser: &rule {momentum: 0.5}}\n"
    assert parse(METHODS, ["--config", write(tmp_path, text)]).training.threads == 2
    bomb = "\n".join(f"a{level}: &a{level} [{', '.join(['*a' + str(level - 1)] * 9) if level else 1}]" for level in range(12))
    with pytest.raises(ConfigError, match="a0: no such setting"):
        parse(METHODS, ["--config", write(tmp_path, bomb)])


def test_several_files_are_joined_in_their_order(tmp_path: Path) -> None:
    texts = (
        "data: {shards: x, storage_options: {profile: mine}}\nmethod: {std: 1, optimiser: {momentum: 0.5}}\nseed: 1\n",
        "",
        "data: {storage_options: {anon: true}}\nmethod: {optimiser: {epsilon: 1.0e-6}}\nseed: 2\n",
    )
    files = [f"--config={name}.yaml" for name in "abc"]
    for name, text in zip("abc", texts, strict=True):
        (tmp_path / f"{name}.yaml").write_text(text)
    with contextlib.chdir(tmp_path):
        config, other = parse(METHODS, files), parse(METHODS, [*reversed(files), "--method.std", "3"])
    assert config.method == Method(std=1.0, optimiser=OptimiserConfig(momentum=0.5, epsilon=1e-6))
    assert (config.data.shards, config.data.storage_options, config.seed) == ("x", {"profile": "mine", "anon": "true"}, 2)
    assert (other.seed, other.method.std) == (1, 3.0), "the later file, then the command line"


def test_home_and_variables_are_expanded_wherever_a_setting_names_a_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    monkeypatch.setenv("SCRATCH", "/scratch/us")
    monkeypatch.setenv("STORE_HOST", "host")
    tree = {
        "run": "$SCRATCH/run",
        "data": {"sources": {"a": {"shards": "~/a"}, "b": {"shards": "s3://${STORE_HOST}_b/x"}}},
        "evaluation": {"shards": "~"},
        "checkpoint": {"url": "s3://$STORE_HOST/x", "resume": "~/other/step_000000001"},
        "monitoring": {"token_file": "${SCRATCH}/token", "pushgateway": "http://$STORE_HOST:9091", "run_name": "$SCRATCH"},
    }
    config = parse(METHODS, ["--config", write(tmp_path, yaml.safe_dump(tree))])
    assert config.run == "/scratch/us/run"
    assert [source.shards for source in config.data.sources.values()] == ["/home/me/a", "s3://host_b/x"]
    assert config.evaluation.shards == "/home/me"
    assert (config.checkpoint.url, config.checkpoint.resume) == ("s3://host/x", "/home/me/other/step_000000001")
    monitoring = config.monitoring
    assert (monitoring.token_file, monitoring.pushgateway) == ("/scratch/us/token", "http://host:9091")
    assert monitoring.run_name == "$SCRATCH", "a label, no place"
    assert parse(METHODS, ["--data.shards", "~/set"]).data.shards == "/home/me/set"


@pytest.mark.parametrize("place", ["run", "--config", "data.sources.a.shards"])
def test_a_place_that_can_not_be_expanded_is_refused_by_its_name(place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NOT_SET", raising=False)
    for plain in ("costs$5/~x", "plain", "s3://b//x", "100%$"):
        assert expanded(plain, place) == plain
    with pytest.raises(ConfigError, match=rf"{place}: s3://b/\$NOT_SET needs the variable NOT_SET, which is not set here"):
        expanded("s3://key:secret@b/$NOT_SET?signature=1", place)
    with pytest.raises(ConfigError, match=r"\$\$ is a literal dollar, as in \$\$NOT_SET"):
        expanded("$NOT_SET", place)
    for wrong in ("${NOT_SET:-y}", "a${", "${}", "${5}/x"):
        with pytest.raises(ConfigError, match=rf"{place}: .*\$\{{ is not followed by a plain name"):
            expanded(wrong, place)
    with pytest.raises(ConfigError, match=rf"{place}: ~nobody-of-this-name/x: there is no user 'nobody-of-this-name' here"):
        expanded("~nobody-of-this-name/x", place)


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("/b/a$$b", "/b/a$b"),
        ("$ODD/x", "/data/a$b/x"),
        ("$$ODD", "$ODD"),
        ("$$$ODD", "$/data/a$b"),
        ("$${ODD}", "${ODD}"),
        ("a$$$$b", "a$$b"),
        ("$$$$$5$", "$$$5$"),
        ("costs$5", "costs$5"),
        ("a$$", "a$"),
    ],
)
def test_a_literal_dollar_is_read_from_the_settings_that_a_run_writes(
    typed: str, meant: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ODD", "/data/a$b")
    places = ("run", "data.sources.a.shards", "evaluation.shards", "checkpoint.url", "checkpoint.resume", "monitoring.token_file")
    config = parse(METHODS, [*(f"--{place}={typed}" for place in places), "--data.cache", "$ODD", "--monitoring.run_name", "a$$b"])
    assert (config.run, config.data.sources["a"].shards, config.checkpoint.url, config.monitoring.token_file) == (meant,) * 4
    monkeypatch.delenv("ODD")
    written = yaml.safe_dump(to_mapping(config))
    again = parse(METHODS, ["--config", write(tmp_path, written)])
    assert again == config
    assert (again.data.cache, again.monitoring.run_name) == ("$ODD", "a$$b"), "those of each node, and a label"
    assert yaml.safe_dump(to_mapping(again)) == written


@pytest.mark.parametrize("place", ["run", "data.cache"])
@pytest.mark.parametrize("url", ["s3://bucket/x", "gs://bucket/x", "https://key:hunter2@host/x", "file:///scratch/x", "s3:/bucket/x"])
def test_a_url_where_a_folder_is_needed_is_refused_with_what_to_use_instead(place: str, url: str) -> None:
    tree = {"data": {"shards": "x", "cache": url}} if place == "data.cache" else {"data": {"shards": "x"}, "run": url}
    with pytest.raises(ConfigError, match=rf"{place}: .* is a URL, not a path of this machine. Give a folder") as refused:
        check(from_mapping(Config, tree, method=Method))
    assert "hunter2" not in str(refused.value)
    assert (place == "run") == ("--checkpoint.url URL" in str(refused.value))


def test_a_folder_whose_name_ends_with_a_colon_is_no_url() -> None:
    assert parse(METHODS, ["--data.shards", "x", "--run", "lr1e-3:/x", "--data.cache", "lr:/x"]).run == "lr1e-3:/x"


def test_the_run_folder_of_a_file_and_of_the_command_line_may_be_no_url(tmp_path: Path) -> None:
    for words in (["--run", "s3://bucket/x"], ["--config", write(tmp_path, "run: s3://bucket/x")]):
        with pytest.raises(ConfigError, match="run: s3://bucket/x is a URL"):
            parse(METHODS, ["--data.shards", "x", *words])


@pytest.mark.parametrize(("rate", "decay"), [(2e-3, 500.0), (1.0, 1.0), (1e-3, 1e9)])
def test_a_weight_decay_that_takes_off_whole_weights_is_refused(rate: float, decay: float) -> None:
    config = lambda decay: from_mapping(  # noqa: E731
        Config, {"data": {"shards": "x"}, "method": {"optimiser": {"learning_rate": rate, "weight_decay": decay}}}, method=Method
    )
    check(config(0.99 / rate))
    with pytest.raises(ConfigError, match=r"method\.optimiser\.weight_decay: times the learning rate it is [\d.e+]+, so a step"):
        check(config(decay))


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"none.yaml: No such file"):
        parse(METHODS, ["--config", str(tmp_path / "none.yaml")])
    with pytest.raises(ConfigError, match="--config: a value is missing"):
        parse(METHODS, ["--config"])
    for empty in (["--config", ""], ["--config="]):
        with pytest.raises(ConfigError, match="--config: the name of the file is empty"):
            parse(METHODS, empty)


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


@settings(max_examples=15)
@given(st.integers(1, 10**6), st.floats(0, 10), st.sampled_from(["random", "random_resized", "center"]))
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
