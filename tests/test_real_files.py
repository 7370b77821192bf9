"""The public files of MATH train and evaluate as they are."""

import json
import runpy
import sys
from pathlib import Path

import pytest
from tiny_models import REPOSITORY, make_tiny_model

from trl_r1zero.commands.eval import main as evaluate_command
from trl_r1zero.common.run_files import read_metrics
from trl_r1zero.data.prompts import load_prompt
from trl_r1zero.data.tasks import get_task
from trl_r1zero.data.traces import load_traces

MATH = REPOSITORY.parent / "shared" / "data" / "MATH"
pytestmark = pytest.mark.skipif(
    not MATH.is_dir(), reason="the public files of MATH are not beside the repository"
)
TRAIN, VALIDATION, TRACES = (str(MATH / f"{n}.jsonl") for n in ("train", "validation", "sft"))
SHORT = ["--learning_rate=1e-4", "--disable_tqdm", "--report_to=none", "--use_cpu"]
SHORT += ["--save_every=null", "--eval_every=1", "--num_eval_examples=4"]


@pytest.fixture
def model(tokenizer, tmp_path) -> str:
    """A model whose context is too short for a few problems."""
    model = make_tiny_model(tokenizer)
    model.config.max_position_embeddings = 1200
    for saved in (model, tokenizer):
        saved.save_pretrained(tmp_path / "model")
    return str(tmp_path / "model")


def rows_of(path: str) -> list[dict]:
    return [json.loads(line) for line in Path(path).read_text(encoding="utf-8").splitlines()]


def run(script: str, monkeypatch, folder: Path, *arguments: str) -> Path:
    """Run a recipe's script in this process, with --output_dir."""
    command = [script, f"--output_dir={folder}", *arguments]
    monkeypatch.setattr(sys, "argv", command)
    runpy.run_path(str(REPOSITORY / "recipes" / script), run_name="__main__")
    return folder


def skipped_of(folder: Path) -> dict:
    return json.loads((folder / "skipped_rows.json").read_text())


@pytest.mark.parametrize(("path", "bad"), [(TRAIN, [7037, 7437]), (VALIDATION, [])])
def test_exactly_the_problems_without_an_answer_are_bad(path, bad):
    task, rows = get_task("math"), rows_of(path)
    assert [n for n, row in enumerate(rows, start=1) if not row["answer"].strip()] == bad
    assert len(task.load(path, on_bad_row="skip")) == len(rows) - len(bad)
    if bad:
        with pytest.raises(ValueError, match="2 of 7,500 rows cannot be used") as caught:
            task.load(path)
        assert all(f"{path}:{line}: field 'answer': got ''" in str(caught.value) for line in bad)


def test_all_traces_can_be_used_and_graded():
    prompt = load_prompt("r1_zero")
    assert len(load_traces(get_task("math"), prompt, TRACES, graded=True)) == 1767


def test_training_on_problems_says_why_it_does_not_start(model, monkeypatch, tmp_path, capsys):
    data = [f"--train_data={TRAIN}", f"--eval_data={VALIDATION}", f"--model_name_or_path={model}"]
    with pytest.raises(SystemExit):
        run("grpo.py", monkeypatch, tmp_path / "run", *data, "--max_completion_length=600", *SHORT)
    message = capsys.readouterr().err
    assert "grpo.py: error: train_data" in message
    assert f"{TRAIN}:7037: field 'answer': got ''" in message
    assert "max_completion_length 600 are more than the model's max_position_emb" in message
    assert "on_bad_row: skip leaves them out" in message
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("method", ["grpo", "expert_iteration"])
def test_training_on_problems(method, model, monkeypatch, tmp_path):
    batches = {
        "grpo": ["--n_grpo_steps=1", "--rollout_batch_size=8", "--train_batch_size=8"],
        "expert_iteration": ["--n_ei_steps=1", "--ei_batch_size=4", "--train_batch_size=4"],
    }[method]
    folder = run(
        *(f"{method}.py", monkeypatch, tmp_path / "run", *batches, "--group_size=4"),
        *(f"--train_data={TRAIN}", f"--eval_data={VALIDATION}", f"--model_name_or_path={model}"),
        *("--max_completion_length=12", "--on_bad_row=skip", *SHORT),
    )
    train = skipped_of(folder)["train_data"]
    assert train["of"] == 7500
    assert train["reasons"]["answer: expected a non-empty string"] == 2
    long = train["reasons"].get("no room in the context for 12 new tokens", 0)
    assert train["skipped"] == 2 + long > 2
    assert [line["eval_num_examples"] for line in read_metrics(folder) if "eval_accuracy" in line]
    assert "Of train_data: left out" in (folder / "report.md").read_text()
    assert "on_bad_row: skip" in (folder / "recipe.yaml").read_text()


def test_training_on_traces(model, monkeypatch, tmp_path, capsys):
    folder = run(
        *("sft.py", monkeypatch, tmp_path / "run", f"--train_data={TRACES}", *SHORT),
        *(f"--eval_data={VALIDATION}", f"--model_name_or_path={model}", "--num_examples=2"),
        *("--prompt=r1_zero", "--max_length=3000", "--eval_max_completion_length=12"),
    )
    report = json.loads((folder / "data_report.json").read_text())
    assert report["sizes"]["read"] == {"rows": 1767, "questions": 128}
    finding = report["findings"]["prompt_white_space"]
    assert finding["rows"] == report["rows"]
    assert r"\n\nUser: ', not" in finding["places"][0]["excerpt"]
    assert "in white space alone" in capsys.readouterr().out
    assert not (folder / "skipped_rows.json").exists()


def test_what_the_data_doctor_says_of_the_traces():
    from trl_r1zero.data.trace_doctor import examine_traces

    prompt = load_prompt("r1_zero")
    traces = load_traces(get_task("math"), prompt, TRACES)
    lengths = [(len(trace.prompt), len(trace.response)) for trace in traces]
    report = examine_traces(traces, lengths, answer_format="tags", max_length=None, prompt=prompt)
    rows = rows_of(TRACES)
    pairs = [(row["prompt"], row["response"]) for row in rows]
    assert report.findings["duplicates"].rows == len(pairs) - len(set(pairs)) == 57
    # The prompt ends in <think>, so one in the response is a second one.
    twice = [n for n, row in enumerate(rows, start=1) if "<think>" in row["response"]]
    assert twice == [686]
    repeated = report.findings["repeated_tag"]
    assert repeated.places[0].where == f"{TRACES}:686"
    assert rows[1669]["response"].count("<answer>") == 2
    assert [place.where for place in repeated.places] == [f"{TRACES}:686", f"{TRACES}:1670"]
    assert report.findings["prompt_white_space"].rows == len(rows)


@pytest.fixture
def long_problems(tmp_path) -> Path:
    """Problems of the validation file with the longest among them, and the empty ones of train."""
    rows = rows_of(VALIDATION)
    longest = sorted(rows, key=lambda row: -len(row["problem"]))[:3]
    chosen = rows[:4] + longest + [rows_of(TRAIN)[7036]]
    path = tmp_path / "slice.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in chosen), encoding="utf-8")
    return path


def evaluate(model: str, data: Path, folder: Path, *more: str) -> None:
    evaluate_command(
        [
            *("--model", model, "--task", "math", "--data", str(data), "--output_dir", str(folder)),
            *("--backend", "transformers", "--max_tokens", "12", *more),
        ]
    )


def test_an_evaluation_says_why_it_does_not_start(model, long_problems, tmp_path, capsys):
    with pytest.raises(SystemExit) as caught:
        evaluate(model, long_problems, tmp_path / "eval")
    assert caught.value.code == 2
    shown = capsys.readouterr().err
    assert "4 of 8 rows cannot be used" in shown
    assert f"{long_problems}:5: a prompt of" in shown
    assert "on_bad_row: skip leaves them out" in shown
    assert not (tmp_path / "eval").exists()


def test_an_evaluation_of_what_can_be_used(model, long_problems, tmp_path, capsys):
    folder = tmp_path / "eval"
    for _ in range(2):  # the second time nothing is left to do
        evaluate(model, long_problems, folder, "--on_bad_row", "skip")
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["num_examples"] == 4
    skipped = summary["skipped_rows"]
    assert (skipped["skipped"], skipped["of"]) == (4, 8)
    assert skipped["reasons"] == {
        "answer: expected a non-empty string": 1,
        "no room in the context for 12 new tokens": 3,
    }
    assert "left out" in capsys.readouterr().out
    for name in ("report.md", "report.html"):
        text = " ".join((folder / name).read_text(encoding="utf-8").split())
        assert "4 of 8" in text
        assert "The data set was not evaluated as a whole: left out 4 of 8 rows" in text
