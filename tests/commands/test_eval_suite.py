"""A list of tasks of `trl-r1zero eval`: one engine, a folder for each task, one table."""

import json
import math
from pathlib import Path

import pytest
from test_eval_command import FILES, facts_of, rows_of

from trl_r1zero.commands.eval import main
from trl_r1zero.evaluation.compare import compare_folders
from trl_r1zero.recipe.evaluation_arguments import EvaluationArguments

REAL_DATA = Path(__file__).parents[3] / "shared" / "data"
TASKS = [
    {"name": "Chains", "task": "chain_arithmetic", "n": 3},
    {"task": "aime", "num_examples": 2},
    "amc",
]


@pytest.fixture
def data(tmp_path):
    """One folder with a file for each task."""
    folder = tmp_path / "data"
    folder.mkdir()
    rows = [{"problem": f"{n} + {n}", "answer": [str(2 * n), f"{2 * n}.0"]} for n in range(3)]
    for name in ("aime", "amc"):
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        (folder / f"{name}.jsonl").write_text(lines)
    return folder


def command(model: Path, folder: Path, data: Path, tasks: object = TASKS, **changes) -> list[str]:
    chains, *others = tasks if isinstance(tasks, list) else [tasks]
    own = [{"task": t, "data": str(data)} if isinstance(t, str) else {**t, "data": str(data)} for t
           in others]  # fmt: skip
    keys = {
        "model": model,
        "task": json.dumps([chains, *own]),
        "prompt": "chain_arithmetic",
        "backend": "transformers",
        "num_examples": 4,
        "max_tokens": 8,
        "output_dir": folder,
        **changes,
    }
    return [f"--{key}={value}" for key, value in keys.items() if value is not None]


def suite_of(folder: Path) -> dict:
    return json.loads((folder / "suite.json").read_text())


def test_a_suite_end_to_end(tiny_model_folder, tmp_path, data, capfd):
    folder = tmp_path / "suite"
    main(command(tiny_model_folder, folder, data))
    names = {"Chains", "aime", "amc"}
    assert {path.name for path in folder.iterdir()} == {
        *names, "recipe.yaml", "suite.json", "suite.md",
    }  # fmt: skip
    for name in names:
        assert {path.name for path in (folder / name).iterdir()} == FILES
    # Their own settings, and those of all.
    assert [len(rows_of(folder / name)) for name in ("Chains", "aime", "amc")] == [12, 2, 3]
    assert rows_of(folder / "amc")[1]["ground_truth"] == ["2", "2.0"]
    suite = suite_of(folder)
    assert list(suite["tasks"]) == ["Chains", "aime", "amc"]
    assert [task["metric"] for task in suite["tasks"].values()] == ["avg@3", "acc", "acc"]
    accuracies = [task["accuracy"] for task in suite["tasks"].values()]
    assert suite["average"] == pytest.approx(sum(accuracies) / 3)
    errors = [task["accuracy_stderr"] for task in suite["tasks"].values()]
    assert suite["average_stderr"] == pytest.approx(math.hypot(*errors) / 3)
    low, high = suite["average_interval"]
    assert 0 <= low <= suite["average"] <= high <= 1
    shown = capfd.readouterr().out
    assert "Evaluating" in shown and f"results in {folder / 'amc'}" in shown
    table = next(line for line in shown.splitlines() if line.startswith("| model"))
    assert [cell.strip() for cell in table.split("|")[1:-1]] == [
        *("model", "Chains", "aime", "amc", "average"),
    ]
    assert table in (folder / "suite.md").read_text()


def test_what_is_done_is_not_sampled_again(tiny_model_folder, tmp_path, data, monkeypatch):
    folder, whole = tmp_path / "suite", tmp_path / "whole"
    main(command(tiny_model_folder, folder, data))
    main(command(tiny_model_folder, whole, data))
    before = suite_of(folder)
    # A suite that was killed in its second task.
    (folder / "suite.json").unlink()
    for file in (folder / "amc").iterdir():
        file.unlink()
    (folder / "aime" / "summary.json").unlink()
    results = folder / "aime" / "results.jsonl"
    results.write_text(results.read_text().splitlines(keepends=True)[0])
    started = facts_of(folder / "Chains")["started"]
    main(command(tiny_model_folder, folder, data))
    assert facts_of(folder / "Chains")["started"] == started
    for name in ("Chains", "aime", "amc"):
        responses = [[row["response"] for row in rows_of(f / name)] for f in (folder, whole)]
        assert responses[0] == responses[1]
    assert suite_of(folder) == before
    # All is there: no model is loaded.
    monkeypatch.setattr("transformers.AutoModelForCausalLM.from_pretrained", None)
    main(command(tiny_model_folder, folder, data))


def test_a_task_of_a_suite_is_an_evaluation(tiny_model_folder, tmp_path, data):
    """The recipe in its folder goes on with it, and it is what the task alone would be."""
    main(command(tiny_model_folder, tmp_path / "suite", data))
    chains = tmp_path / "suite" / "Chains"
    (chains / "results.jsonl").write_text("")
    rows = rows_of(tmp_path / "suite" / "Chains")
    main(["--config", str(chains / "recipe.yaml")])
    rows = rows_of(chains)
    assert len(rows) == 12
    alone = {"task": "chain_arithmetic", "n": 3}
    main(command(tiny_model_folder, tmp_path / "alone", data, **alone))
    assert rows_of(tmp_path / "alone") == rows
    assert facts_of(tmp_path / "alone")["settings"] == facts_of(chains)["settings"]


def test_another_evaluation_in_the_way_is_found_before_the_first_answer(
    tiny_model_folder, tmp_path, data, capsys
):
    folder = tmp_path / "suite"
    main(command(tiny_model_folder, folder, data))
    for file in (folder / "Chains").iterdir():
        file.unlink()
    with pytest.raises(SystemExit):
        tasks = [TASKS[0], TASKS[1], {"task": "amc", "seed": 5}]
        main(command(tiny_model_folder, folder, data, tasks))
    shown = capsys.readouterr().err
    assert f"{folder / 'amc'} holds another evaluation, which differs in\n  seed: 0 there" in shown
    assert not list((folder / "Chains").iterdir())


def test_what_is_not_graded_is_in_no_average(tiny_model_folder, tmp_path):
    (tmp_path / "requests.jsonl").write_text(
        json.dumps({"id": "1", "harm_area": "h", "category": "c", "prompt": "1 + 1"}) + "\n"
    )
    safety = {"task": "simple_safety_tests", "data": str(tmp_path / "requests.jsonl")}
    tasks = [{"task": "chain_arithmetic"}, {**safety, "prompt": "zero_shot"}]
    keys = {"task": json.dumps(tasks), "prompt": None}
    folder = tmp_path / "suite"
    main(command(tiny_model_folder, folder, tmp_path, **keys))
    suite = suite_of(folder)
    assert suite["average"] == suite["tasks"]["chain_arithmetic"]["accuracy"]
    assert "accuracy" not in suite["tasks"]["simple_safety_tests"]
    assert "not graded" in (folder / "suite.md").read_text()
    assert (folder / "simple_safety_tests" / "simple_safety_tests.jsonl").is_file()


@pytest.mark.parametrize(
    ("tasks", "message"),
    [
        ([], "task: got an empty list, expected at least one task"),
        (["amie"], "task amie: unknown task 'amie'; did you mean 'aime'?"),
        (["aime", "aime"], r"task\[1\]: 'aime' is there twice; give one of them another name"),
        ([{"n": 2}], r"task\[0\]: got {'n': 2}, expected a task"),
        ([{"task": "aime", "m": 2}], r"task\[0\]: unknown setting 'm'"),
        ([{"task": "aime", "model": "m"}], r"task\[0\]: unknown setting 'model'"),
        ([{"task": "aime", "n": "2"}], r"task\[0\]: n: got '2', expected int"),
        ([{"task": "aime", "n": 0}], "task aime: n must be at least 1, got 0"),
        ([{"task": "aime", "n": 4, "temperature": 0}], "task aime: n: got 4, but at temperature 0"),
        ([{"task": ["aime"]}], r"task\[0\]: task: got \['aime'\], expected str"),
        ([{"task": "aime", "name": "../up"}], r"task\[0\]: name: got '../up', expected letters"),
        ([{"task": "aime", "prompt": "r1zero"}], "task aime: .*r1zero"),
        ([{"task": "countdown", "task_args": {"a": 1}}], "task countdown: .*unknown task_arg 'a'"),
    ],
)
def test_lists_that_are_not_right(tasks, message):
    with pytest.raises(ValueError, match=message):
        EvaluationArguments(model="some/model", task=tasks)


def test_a_suite_has_a_folder_of_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    suite = EvaluationArguments(model="Qwen/Qwen2.5-Math-1.5B", task=["aime", "amc"])
    assert str(suite.folder) == "runs/eval/Qwen2.5-Math-1.5B/suite"
    assert [str(part.folder) for part in suite.parts().values()] == [
        "runs/eval/Qwen2.5-Math-1.5B/suite/aime",
        "runs/eval/Qwen2.5-Math-1.5B/suite/amc",
    ]
    prompted = EvaluationArguments(model="m", task=["aime"], prompt="question_only")
    assert str(prompted.folder) == "runs/eval/m/suite-question_only"


@pytest.mark.skipif(not REAL_DATA.is_dir(), reason="the published data sets are not beside here")
def test_the_published_sets(tiny_model_folder, tmp_path):
    """Two problems of each, by two answers."""
    tasks = [{"task": "math500", "data": str(REAL_DATA / "math500_test.jsonl")}]
    tasks += ["aime", "amc", "minerva", "olympiad_bench"]
    keys = {"n": 2, "num_examples": 2, "prompt": "r1_zero", "reward": "math"}
    main(command(tiny_model_folder, tmp_path, REAL_DATA / "evaluation_suite", tasks, **keys))
    suite = suite_of(tmp_path)
    assert [task["num_examples"] for task in suite["tasks"].values()] == [2] * 5
    assert {task["metric"] for task in suite["tasks"].values()} == {"avg@2"}
    assert suite["average"] == 0 and suite["average_interval"][0] == 0
    assert (tmp_path / "suite.md").read_text().count("[0.0, ") == 6


def test_suites_side_by_side(tiny_model_folder, tmp_path, data):
    for name, seed in (("a", 0), ("b", 1)):
        main(command(tiny_model_folder, tmp_path / name, data, seed=seed))
    text = compare_folders([tmp_path / "a", tmp_path / "b"])
    headings = [line for line in text.splitlines() if line.startswith("## ")]
    assert headings == ["## Suites", "## chain_arithmetic", "## aime", "## amc"]
    table = text.partition("## chain")[0]
    assert table.count(tiny_model_folder.name) == 2
    assert text.count("baseline") == 3
    assert compare_folders([tmp_path / "b"], [tmp_path / "a"]).count("| baseline") == 3
