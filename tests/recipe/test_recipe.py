"""Recipes are read strictly, and what was resolved is written so that it can be read again."""

import dataclasses
import re
import subprocess
import sys
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any, Literal

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from trl import GRPOConfig

from trl_r1zero.common.types import MISFIT, fit, type_name
from trl_r1zero.recipe import RecipeError, parse_recipe
from trl_r1zero.recipe.yaml_files import dump_yaml


class Schedule(StrEnum):
    LINEAR = "linear"
    CONSTANT = "constant"


@dataclass
class TrainConfig:
    """Training.

    Args:
        learning_rate (float): Step size of the optimizer. Ignored where frozen.
        steps: Number of
            optimizer steps.
    """

    learning_rate: float = 1e-4
    steps: int = 10
    name: str = "run"
    shuffle: bool = True
    warmup: float | None = None
    schedule: Schedule = Schedule.LINEAR
    loss: Literal["clip", "no_clip"] = "clip"
    layers: list[str] = field(default_factory=list)
    betas: tuple[float, float] = (0.9, 0.95)
    extra: dict[str, Any] | str | None = None
    report_to: str | list[str] | None = None
    output: Path | None = None
    limit: int = None  # type: ignore[assignment]  # a hint that does not admit its own default
    hub_token: str | None = field(default=None, metadata={"help": "A secret."})
    doubled: int = field(init=False, default=0)

    def __post_init__(self):
        if self.steps < 1:
            raise ValueError(f"steps is {self.steps}, but at least one is needed")
        self.doubled = 2 * self.steps
        if isinstance(self.extra, dict):
            self.extra["derived"] = True


@dataclass
class DataConfig:
    dataset: str
    num_rows: int = 100


def parse(*argv, types=(TrainConfig,)):
    return parse_recipe(types, list(argv))


def recipe(tmp_path, text, name="recipe.yaml"):
    path = tmp_path / name
    path.write_text(text, encoding="utf-8")
    return str(path)


def config_of(tmp_path, text, *argv):
    return parse("--config", recipe(tmp_path, text), *argv).instances[0]


def error_of(tmp_path, text, *argv):
    with pytest.raises(RecipeError) as caught:
        parse("--config", recipe(tmp_path, text), *argv)
    return str(caught.value)


# Values.


def test_defaults_without_a_recipe():
    assert parse().instances == (TrainConfig(),)


def test_yaml_values_and_override(tmp_path):
    text = "learning_rate: 3.0e-4\nsteps: 7\nname: abc\nlayers: [q, v]\n"
    config = config_of(tmp_path, text, "--steps", "9", "--shuffle=false")
    assert config == TrainConfig(
        learning_rate=3e-4, steps=9, name="abc", layers=["q", "v"], shuffle=False
    )


def test_two_dataclasses_share_one_namespace(tmp_path):
    path = recipe(tmp_path, "dataset: gsm8k\nsteps: 3\n")
    train, data = parse("--config", path, types=(TrainConfig, DataConfig)).instances
    assert (train.steps, data.dataset, data.num_rows) == (3, "gsm8k", 100)


@pytest.mark.parametrize(
    ("key", "written", "expected"),
    [
        ("learning_rate", "1e-5", 1e-5),  # a string in YAML 1.1
        ("learning_rate", "'1e-5'", 1e-5),
        ("learning_rate", "1.E-5", 1e-5),
        ("learning_rate", "1", 1.0),
        ("learning_rate", ".inf", float("inf")),
        ("steps", "1_000", 1000),
        ("steps", "0x10", 16),
        ("warmup", "null", None),
        ("warmup", "0.5", 0.5),
        ("name", "'no'", "no"),
        ("name", "1:30", "1:30"),  # the number 90 in YAML 1.1
        ("name", "010", "010"),  # the number 8 in YAML 1.1
        ("name", "2026-01-31", "2026-01-31"),  # a date in YAML 1.1
        ("shuffle", "off", False),
        ("schedule", "constant", Schedule.CONSTANT),
        ("loss", "no_clip", "no_clip"),
        ("betas", "[0, 0.5]", (0.0, 0.5)),
        ("report_to", "wandb", "wandb"),
        ("report_to", "[wandb]", ["wandb"]),
        ("extra", "{lr: 1e-5}", {"lr": 1e-5, "derived": True}),
        ("extra", "a.json", "a.json"),
        ("output", "runs/a", Path("runs/a")),
        ("limit", "null", None),
    ],
)
def test_yaml_value(tmp_path, key, written, expected):
    value = getattr(config_of(tmp_path, f"{key}: {written}\n"), key)
    assert value == expected
    assert type(value) is type(expected)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--learning_rate", "1e-5"], 1e-5),
        (["--learning_rate=-2"], -2.0),
        (["--steps", "4"], 4),
        (["--shuffle"], True),
        (["--shuffle", "false"], False),
        (["--warmup", "null"], None),
        (["--name", "no"], "no"),  # text for a string is literal
        (["--name", "12"], "12"),
        (["--name", "a # b"], "a # b"),
        (["--name="], ""),
        (["--name=--x"], "--x"),
        (["--schedule", "constant"], Schedule.CONSTANT),
        (["--layers", "a"], ["a"]),
        (["--layers", "a", "b", "no"], ["a", "b", "no"]),
        (["--layers", "[a, b]"], ["a", "b"]),
        (["--layers", "[]"], []),
        (["--betas", "0.5", "1"], (0.5, 1.0)),
        (["--report_to", "a"], "a"),
        (["--report_to", "a", "b"], ["a", "b"]),
        (["--extra", "{a: 1}"], {"a": 1, "derived": True}),
        (["--extra", "{broken"], "{broken"),
    ],
)
def test_command_line_value(arguments, expected):
    key = arguments[0].removeprefix("--").partition("=")[0]
    value = getattr(parse(*arguments).instances[0], key)
    assert value == expected
    assert type(value) is type(expected)


# Errors.


def test_unknown_yaml_key_names_file_line_and_neighbour(tmp_path):
    message = error_of(tmp_path, "steps: 3\n\nlerning_rate: 1.0\n")
    assert message == (
        f"{tmp_path}/recipe.yaml:3: unknown key 'lerning_rate'; did you mean 'learning_rate'? "
        "(--help lists all keys)"
    )


def test_unknown_command_line_key(tmp_path):
    message = error_of(tmp_path, "steps: 3\n", "--learning-rate", "1")
    assert message.startswith(
        "command line: unknown key 'learning-rate'; did you mean 'learning_rate'?"
    )


def test_unknown_key_without_a_neighbour_points_to_help(tmp_path):
    assert error_of(tmp_path, "zzz: 3\n").endswith("unknown key 'zzz' (--help lists all keys)")


def test_field_without_init_is_no_key(tmp_path):
    assert "unknown key 'doubled'" in error_of(tmp_path, "doubled: 3\n")


def test_all_problems_are_told_at_once(tmp_path):
    lines = error_of(tmp_path, "step: 3\nname: no\nlimit: a\n").splitlines()
    assert [line.split(": ")[0] for line in lines] == [
        f"{tmp_path}/recipe.yaml:{number}" for number in (1, 2, 3)
    ]


@pytest.mark.parametrize(
    ("written", "message"),
    [
        ("steps: 2.0", "steps: got 2.0 (float), expected int; write 2"),
        ("steps: true", "steps: got true (bool), expected int"),
        ("steps: 1e3", "steps: got 1e3 (float), expected int; write 1000"),
        ("steps: null", "steps: got null, expected int"),
        ("steps: many", "steps: got many (str), expected int"),
        ("learning_rate: true", "learning_rate: got true (bool), expected float"),
        ("learning_rate: fast", "learning_rate: got fast (str), expected float"),
        ("name: no", 'got no (bool), expected str; YAML reads it as bool, so quote it: "no"'),
        ("name: off", 'got off (bool), expected str; YAML reads it as bool, so quote it: "off"'),
        ("name: 12", 'got 12 (int), expected str; YAML reads it as int, so quote it: "12"'),
        ("shuffle: 1", "shuffle: got 1 (int), expected bool"),
        ("shuffle: 'true'", "got true (str), expected bool; write true or false, without quotes"),
        ("schedule: cosine", "got cosine (str), expected one of linear, constant"),
        ("loss: dapo", "got dapo (str), expected one of clip, no_clip"),
        ("layers: q", "layers: got q (str), expected list of str"),
        ("layers: [q, no]", "expected list of str; quote each string"),
        ("betas: [0.9]", "betas: got [0.9] (list), expected list of float, float"),
        ("extra: 3", "got 3 (int), expected mapping from str to anything or str or null"),
    ],
)
def test_wrong_type(tmp_path, written, message):
    error = error_of(tmp_path, f"# a comment\n{written}\n")
    assert error.startswith(f"{tmp_path}/recipe.yaml:2: {written.split(':')[0]}: ")
    assert message in error


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--steps", "1", "--steps=2.0"], "command line: steps: got 2.0, expected int"),
        (["--steps", "2.0"], "command line: steps: got 2.0, expected int"),
        (["--steps"], "command line: steps: got no value, expected int"),
        (["--steps", "1", "2"], "got 1 2, expected int; write a value with blanks in quotes"),
        (["--shuffle", "maybe"], "got maybe, expected bool"),
        (["a.yaml"], "unexpected argument 'a.yaml'; give a recipe as --config a.yaml"),
        (["--config", "a.yaml", "b.yaml"], "--config takes one file, got 2"),
        (["--config", "/no/such.yaml"], "/no/such.yaml: cannot read the recipe: No such file"),
        (["--base", "a.yaml"], "'base' is not a key here"),
    ],
)
def test_wrong_command_line(arguments, message):
    with pytest.raises(RecipeError, match=re.escape(message)):
        parse(*arguments)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("steps: 1\nname: a\nsteps: 2\n", ":3: the key 'steps' is already on line 1"),
        ("extra:\n  a: 1\n  a: 2\n", ":3: the key 'a' is already on line 2"),
        ("- steps\n", ":1: a recipe is a mapping"),
        ("steps: [1\n", "expected ',' or ']'"),
        ("[a, b]: 1\n", ":1: a key is a word"),
        ("config: a.yaml\n", ":1: 'config' is not a key here"),
    ],
)
def test_wrong_yaml(tmp_path, text, message):
    assert message in error_of(tmp_path, text)


def test_missing_required_key():
    with pytest.raises(RecipeError, match="dataset: no value given, and it has no default"):
        parse(types=(DataConfig,))


def test_errors_of_the_dataclass_are_shown_as_they_are():
    with pytest.raises(ValueError, match=r"^steps is 0, but at least one is needed$") as caught:
        parse("--steps", "0")
    assert type(caught.value) is ValueError


def test_field_in_two_dataclasses_is_a_programming_error():
    with pytest.raises(TypeError, match="both DataConfig and DataConfig have a field 'dataset'"):
        parse(types=(DataConfig, DataConfig))


def test_reserved_field_name_is_a_programming_error():
    with pytest.raises(TypeError, match="rename the field"):
        parse(types=(dataclasses.make_dataclass("Other", [("base", str)]),))


# Bases.


def test_base_is_read_first(tmp_path):
    recipe(tmp_path, "steps: 3\nname: a\nextra: {a: 1, b: 2}\n", "default.yaml")
    recipe(tmp_path, "base: default.yaml\nname: b\nlearning_rate: 1.0\n", "middle.yaml")
    (tmp_path / "variants").mkdir()
    path = recipe(tmp_path, "name: c\nextra: {a: 3}\nbase: ../middle.yaml\n", "variants/c.yaml")
    parsed = parse("--config", path)
    config = parsed.instances[0]
    assert (config.steps, config.name, config.learning_rate) == (3, "c", 1.0)
    assert parsed.values["extra"] == {"a": 3}  # replaced as a whole
    assert parsed.places["name"] == f"{tmp_path}/variants/c.yaml:1"
    assert parsed.places["steps"] == f"{tmp_path}/variants/../default.yaml:1"


def test_errors_in_a_base_name_its_file_even_where_overridden(tmp_path):
    recipe(tmp_path, "steps: 3.5\n", "default.yaml")
    message = error_of(tmp_path, "base: default.yaml\nsteps: 4\n")
    assert message.startswith(f"{tmp_path}/default.yaml:1: steps: got 3.5 (float), expected int")


def test_cycle_of_bases(tmp_path):
    recipe(tmp_path, "base: recipe.yaml\n", "other.yaml")
    message = error_of(tmp_path, "base: other.yaml\n")
    assert "its own base" in message
    assert "other.yaml -> " in message


def test_base_that_is_no_path(tmp_path):
    assert ":1: base: got 3, expected the path" in error_of(tmp_path, "base: 3\n")


# As a script.

SCRIPT = """
from dataclasses import dataclass
from trl_r1zero.recipe import parse_recipe

@dataclass
class Config:
    steps: int = 3
    def __post_init__(self):
        if self.steps < 1:
            raise ValueError("steps has to be positive")

print(parse_recipe((Config,)).instances[0].steps)
"""


@pytest.mark.parametrize(
    ("arguments", "status", "out", "err"),
    [
        (["--steps", "5"], 0, "5\n", ""),
        (["--stebs", "5"], 2, "", "script.py: error: command line: unknown key 'stebs'"),
        (["--steps", "0"], 2, "", "script.py: error: steps has to be positive\n"),
    ],
)
def test_script(tmp_path, arguments, status, out, err):
    script = tmp_path / "script.py"
    script.write_text(SCRIPT, encoding="utf-8")
    root = Path(__file__).parents[2]
    command = [sys.executable, str(script), *arguments]
    done = subprocess.run(
        command, env={"PYTHONPATH": str(root)}, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (status, out)
    assert done.stderr.startswith(err)
    assert "Traceback" not in done.stderr


def test_a_program_of_several_words(capsys):
    """A subcommand: its arguments are given, and it ends with a message all the same."""
    with pytest.raises(SystemExit) as caught:
        parse_recipe((TrainConfig,), ["--step", "3"], program="tool train")
    assert caught.value.code == 2
    assert capsys.readouterr().err.startswith("tool train: error: command line: unknown key 'step'")
    with pytest.raises(SystemExit) as caught:
        parse_recipe((TrainConfig,), ["--steps", "0"], program="tool train")  # its __post_init__
    assert caught.value.code == 2
    assert capsys.readouterr().err == (
        "tool train: error: steps is 0, but at least one is needed\n"
    )
    with pytest.raises(SystemExit):
        parse_recipe((TrainConfig,), ["--help"], program="tool train")
    assert capsys.readouterr().out.startswith("usage: tool train [--config RECIPE.yaml]")


def test_help_lists_every_key_of_every_dataclass(capsys):
    with pytest.raises(SystemExit) as caught:
        parse_recipe((TrainConfig, DataConfig), ["--steps", "3", "--help"], "Trains something.")
    assert caught.value.code == 0
    shown = capsys.readouterr().out
    assert "Trains something." in shown
    assert "--steps: int, default 10\n    Number of optimizer steps." in shown
    assert "--learning_rate: float, default 0.0001\n    Step size of the optimizer.\n" in shown
    assert "--schedule: one of linear, constant, default linear" in shown
    assert "--hub_token: str or null, default null\n    A secret." in shown
    assert "DataConfig:\n\n--dataset: str, required" in shown
    assert "--doubled" not in shown


# What was resolved.


def test_written_recipe_holds_inputs_not_what_was_derived(tmp_path):
    path = recipe(tmp_path, "steps: 4\nextra: {a: 1}\n")
    parsed = parse("--config", path, "--name", "no", "--hub_token", "secret")
    assert parsed.instances[0].extra == {"a": 1, "derived": True}
    target = tmp_path / "run" / "resolved.yaml"
    parsed.write(target)
    written = target.read_text(encoding="utf-8")
    assert f"steps: 4  # {path}:1\n" in written
    assert "name: 'no'  # command line\n" in written
    assert "secret" not in written
    content = yaml.safe_load(written)
    assert content["extra"] == {"a": 1}
    assert content["shuffle"] is True
    settable = {one.name for one in dataclasses.fields(TrainConfig) if one.init}
    assert set(content) == settable - {"hub_token"}


@settings(deadline=None, max_examples=50)
@given(
    text=st.text(max_size=20) | st.sampled_from(["1e5", "no", "1:30", "null", "~", "a: b", "0x1"]),
    learning_rate=st.floats(allow_nan=False),
    extra=st.none() | st.dictionaries(st.text(max_size=5), st.integers() | st.text(max_size=5)),
)
def test_written_recipe_parses_to_equal_instances(tmp_path_factory, text, learning_rate, extra):
    directory = tmp_path_factory.mktemp("written")
    source = recipe(directory, dump_yaml({"extra": extra}))
    parsed = parse("--config", source, f"--name={text}", f"--learning_rate={learning_rate!r}")
    assert parsed.instances[0].name == text
    assert parsed.instances[0].learning_rate == learning_rate
    assert parsed.values["extra"] == extra
    parsed.write(directory / "resolved.yaml")
    again = parse("--config", str(directory / "resolved.yaml"))
    assert again.instances == parsed.instances
    assert again.values == parsed.values


def test_grpo_config_round_trip(tmp_path):
    text = """
output_dir: OUTPUT
learning_rate: 1e-5
use_cpu: true
bf16: false
logging_steps: 1
report_to: none
eval_strategy: "no"
lr_scheduler_type: constant
optim: adamw_torch
gradient_checkpointing_kwargs: {use_reentrant: false}
per_device_train_batch_size: 8
num_generations: 4
debug: []
"""
    path = recipe(tmp_path, text.replace("OUTPUT", str(tmp_path)))
    parsed = parse("--config", path, "--beta", "0.04", types=(GRPOConfig,))
    config = parsed.instances[0]
    expected = GRPOConfig(
        output_dir=str(tmp_path),
        learning_rate=1e-5,
        use_cpu=True,
        bf16=False,
        logging_steps=1,
        report_to="none",
        eval_strategy="no",
        lr_scheduler_type="constant",
        optim="adamw_torch",
        gradient_checkpointing_kwargs={"use_reentrant": False},
        per_device_train_batch_size=8,
        num_generations=4,
        debug=[],
        beta=0.04,
    )
    assert config == expected
    parsed.write(tmp_path / "resolved.yaml")
    again = parse("--config", str(tmp_path / "resolved.yaml"), types=(GRPOConfig,))
    assert again.instances[0] == config


def test_grpo_config_traps(tmp_path):
    path = recipe(tmp_path, "eval_strategy: no\nmax_completion_lenght: 5\ntop_k: 1.0\n")
    with pytest.raises(RecipeError) as caught:
        parse("--config", path, types=(GRPOConfig,))
    first, second, third = str(caught.value).splitlines()
    assert 'quote it: "no"' in first
    assert "did you mean 'max_completion_length'?" in second
    assert "top_k: got 1.0 (float), expected int; write 1" in third


def test_grpo_config_help(capsys):
    with pytest.raises(SystemExit):
        parse("--help", types=(GRPOConfig,))
    shown = capsys.readouterr().out
    for one in dataclasses.fields(GRPOConfig):
        assert f"--{one.name}: " in shown


# Types.


@pytest.mark.parametrize(
    ("value", "hint", "expected"),
    [
        (1, int | float, 1),
        (1, float, 1.0),
        (True, int | str, MISFIT),
        (1, Literal[True], MISFIT),
        (False, str | None | Literal[False], False),
        ("linear", Schedule | str, "linear"),
        ("linear", Schedule | None, Schedule.LINEAR),
        ({"a": 1}, dict[str, float], {"a": 1.0}),
        ({"a": "x"}, dict[str, bool], MISFIT),
        ([1, 2], tuple[int, ...], (1, 2)),
        ([1, 2], tuple[int, int, int], MISFIT),
        ([[1], []], list[list[int]], [[1], []]),
        ("a", GRPOConfig | None, MISFIT),
    ],
)
def test_fit(value, hint, expected):
    fitted = fit(value, hint)
    assert fitted == expected
    assert type(fitted) is type(expected)


def test_type_name():
    assert type_name(dict[str, Any] | str | None) == "mapping from str to anything or str or null"
    assert type_name(list[float] | None) == "list of float or null"
    assert type_name(str | Literal[False] | None) == "str or false or null"
