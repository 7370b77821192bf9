"""What the embedded task's recipes start from: a model that loads, and traces of the kinds told."""

import importlib.util
import json
import re
from pathlib import Path
from types import ModuleType

import pytest
from tiny_models import REPOSITORY
from transformers import AutoModelForCausalLM, AutoTokenizer

from trl_r1zero import question_only_reward_fn, r1_zero_reward_fn
from trl_r1zero.data.prompts import load_prompt
from trl_r1zero.data.tasks.chain_arithmetic import ChainArithmeticTask, solve_trace
from trl_r1zero.data.traces import fix_whitespace, has_wrong_whitespace, load_traces

SCRIPT = REPOSITORY / "recipes" / "quickstart" / "make_inputs.py"
SIZES = {"num_base_traces": 500, "honest_share": 0.6, "num_questions": 300, "hidden_size": 32}
NUM_HONEST = 300  # 0.6 of 500
PROMPT = load_prompt("chain_arithmetic")


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("make_inputs", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def inputs(script, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("quickstart") / "inputs"
    script.main(script.InputArguments(output_dir=str(folder), **SIZES))
    return folder


def rows_of(path: Path) -> list[dict[str, str]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def accepted(rows: list[dict[str, str]]) -> list[bool]:
    return [r1_zero_reward_fn(row["response"], row["ground_truth"])["reward"] == 1 for row in rows]


@pytest.fixture(scope="module")
def base_traces(inputs) -> list[dict[str, str]]:
    return rows_of(inputs / "base_policy.jsonl")


@pytest.fixture(scope="module")
def traces(inputs) -> list[dict[str, str]]:
    return rows_of(inputs / "traces.jsonl")


# The model


def test_the_model_loads_and_agrees_with_its_tokenizer(inputs):
    model = AutoModelForCausalLM.from_pretrained(inputs / "model")
    tokenizer = AutoTokenizer.from_pretrained(inputs / "model")
    assert tokenizer.eos_token_id is not None
    assert model.config.eos_token_id == tokenizer.eos_token_id
    assert model.generation_config.eos_token_id == tokenizer.eos_token_id
    assert model.config.pad_token_id == tokenizer.pad_token_id
    assert model.config.vocab_size == len(tokenizer)
    assert model.config.hidden_size == 32


def test_its_tokenizer_knows_all_that_the_traces_are_made_of(inputs, base_traces, traces):
    tokenizer = AutoTokenizer.from_pretrained(inputs / "model")
    for row in [*base_traces, *traces]:
        for text in (row["prompt"], row["response"]):
            assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


# The base policy's traces


def test_the_base_policy_s_traces_are_of_training_questions(script, base_traces):
    examples = ChainArithmeticTask(num_train=SIZES["num_questions"]).load(split="train")
    truths = {PROMPT.format(example.question): example.ground_truth for example in examples}
    assert len(base_traces) == SIZES["num_base_traces"]
    assert all(truths[row["prompt"]] == row["ground_truth"] for row in base_traces)


def test_the_base_policy_learns_from_honest_traces_first(base_traces):
    """The order of the file is the order in which they are trained on."""
    honest = base_traces[:NUM_HONEST]
    assert all(accepted(honest))
    questions = {
        PROMPT.format(example.question): example.question
        for example in ChainArithmeticTask(num_train=SIZES["num_questions"]).load(split="train")
    }
    assert all(row["response"] == solve_trace(questions[row["prompt"]]) for row in honest)


def test_and_then_from_poor_ones(base_traces):
    """Almost half guess without working; some are right all the same: something to find."""
    poor = base_traces[NUM_HONEST:]
    share = sum(accepted(poor)) / len(poor)
    assert 0.25 < share < 0.6
    guessed = sum("=" not in row["response"] for row in poor) / len(poor)
    assert 0.35 < guessed < 0.55
    broken = sum("</think> <answer>" not in row["response"] for row in poor) / len(poor)
    assert broken > 0.02


def test_the_share_of_honest_traces_is_a_setting(script, tmp_path):
    settings = {**SIZES, "num_base_traces": 40, "honest_share": 0.25}
    script.main(script.InputArguments(output_dir=str(tmp_path), **settings))
    rows = rows_of(tmp_path / "base_policy.jsonl")
    assert all(accepted(rows[:10]))
    assert not all(accepted(rows[10:]))


def test_two_prompts_take_turns_on_the_same_questions(inputs, base_traces):
    """The reward of either prompt says of a trace what that of the tags says of the original."""
    both = rows_of(inputs / "base_policy-two_prompts.jsonl")
    assert both[::2] == base_traces[::2]
    question_only = load_prompt("question_only")
    for boxed, tagged in zip(both[1::2], base_traces[1::2], strict=True):
        question = tagged["prompt"].removeprefix("Q: ").removesuffix("\nA: <think>")
        assert boxed["prompt"] == question_only.format(question)
        assert boxed["ground_truth"] == tagged["ground_truth"]
        assert not re.search("</?(?:think|answer)>", boxed["response"])
        working = tagged["response"].partition(" </think>")[0].partition(" <answer>")[0]
        assert boxed["response"].startswith(working)
        rewards = question_only_reward_fn(boxed["response"], boxed["ground_truth"])
        assert rewards == r1_zero_reward_fn(tagged["response"], tagged["ground_truth"])


# The traces of sft.yaml


def test_there_is_one_trace_for_each_training_question(traces):
    examples = ChainArithmeticTask(num_train=SIZES["num_questions"]).load(split="train")
    assert [row["prompt"] for row in traces] == [PROMPT.format(e.question) for e in examples]
    assert [row["ground_truth"] for row in traces] == [e.ground_truth for e in examples]


def test_a_fifth_has_its_tags_on_two_lines_and_counts_only_when_that_is_repaired(inputs, traces):
    task = ChainArithmeticTask(num_train=SIZES["num_questions"])
    read = load_traces(task, PROMPT, str(inputs / "traces.jsonl"))
    assert [trace.response for trace in read] == [row["response"] for row in traces]
    on_two_lines = [has_wrong_whitespace(row["response"]) for row in traces]
    assert 0.13 < sum(on_two_lines) / len(traces) < 0.27
    assert all(
        ("</think>\n<answer>" in row["response"]) == split
        for row, split in zip(traces, on_two_lines, strict=True)
    )
    fixed, changed = fix_whitespace(read)
    assert changed == sum(on_two_lines)
    before = accepted(traces)
    after = accepted([vars(trace) for trace in fixed])
    # As it is, the reward takes none of them; repaired, as many of them as of the others.
    assert not any(ok for ok, split in zip(before, on_two_lines, strict=True) if split)
    assert [ok for ok, split in zip(after, on_two_lines, strict=True) if not split] == [
        ok for ok, split in zip(before, on_two_lines, strict=True) if not split
    ]
    repaired = [ok for ok, split in zip(after, on_two_lines, strict=True) if split]
    assert sum(repaired) / len(repaired) > 0.5
    # Most are right, and not all: filter_correct has something to do.
    assert 0.6 < sum(after) / len(after) < 0.9


# The script


def test_its_settings_are_written_down(inputs):
    facts = json.loads((inputs / "inputs.json").read_text())
    assert {name: facts[name] for name in SIZES} == SIZES
    assert facts["seed"] == 0


def test_a_second_call_leaves_all_files_alone(script, inputs, capsys):
    files = [path for path in sorted(inputs.rglob("*")) if path.is_file()]
    assert {"model.safetensors", "base_policy.jsonl", "traces.jsonl"} <= {f.name for f in files}
    before = [(path, path.stat().st_mtime_ns, path.read_bytes()) for path in files]
    script.main(script.InputArguments(output_dir=str(inputs), seed=1))
    assert "is there already" in capsys.readouterr().out
    assert [path for path in sorted(inputs.rglob("*")) if path.is_file()] == files
    assert [(path, path.stat().st_mtime_ns, path.read_bytes()) for path in files] == before


def test_a_folder_without_the_facts_is_made_again(script, tmp_path):
    """A call that was cut off left no `inputs.json`."""
    args = script.InputArguments(output_dir=str(tmp_path), **{**SIZES, "num_base_traces": 10})
    script.main(args)
    (tmp_path / "inputs.json").unlink()
    (tmp_path / "traces.jsonl").write_text("cut off")
    script.main(args)
    assert len(rows_of(tmp_path / "traces.jsonl")) == SIZES["num_questions"]


def test_a_seed_decides_everything(script, inputs, tmp_path):
    again, other = tmp_path / "again", tmp_path / "other"
    script.main(script.InputArguments(output_dir=str(again), **SIZES))
    script.main(script.InputArguments(output_dir=str(other), **SIZES, seed=1))
    for name in ("model/model.safetensors", "base_policy.jsonl", "traces.jsonl"):
        first = (inputs / name).read_bytes()
        assert (again / name).read_bytes() == first
        assert (other / name).read_bytes() != first
