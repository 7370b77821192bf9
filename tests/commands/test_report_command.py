"""`trl-r1zero report`."""

import json

import pytest
from report_runs import answered_run, seed_run

from trl_r1zero.cli import main as cli
from trl_r1zero.commands.report import main


def test_one_run_is_reported_in_its_folder(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    answered_run(tmp_path / "run", 0, {0: "10", 2: "11"})
    assert cli(["report", "run"]) == 0
    assert capsys.readouterr().out.startswith("# Run run\n")
    assert (tmp_path / "run" / "report.md").is_file() and (tmp_path / "run" / "curve.png").is_file()


def test_several_runs_are_compared(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for rate in (1e-4, 2e-4):
        for seed in (0, 1):
            answered_run(tmp_path / f"{rate}-{seed}", seed, {0: "10", 2: "11"}, learning_rate=rate)
    runs = ["0.0001-0", "0.0001-1", "0.0002-0", "0.0002-1"]
    main([*runs, "--baseline", "learning_rate 2e-4"])
    shown = capsys.readouterr().out
    assert shown.startswith("# 4 runs in 2 groups\n")
    assert "learning_rate 1e-4: no difference seen" in " ".join(shown.split())
    results = json.loads((tmp_path / "report" / "results.json").read_text())
    assert list(results["groups"]) == ["learning_rate 1e-4", "learning_rate 2e-4"]
    assert (tmp_path / "report" / "report.html").is_file()

    main([*runs, "--group_by", "train_batch_size", "learning_rate", "--output_dir", "x/y"])
    results = json.loads((tmp_path / "x" / "y" / "results.json").read_text())
    assert next(iter(results["groups"])) == "train_batch_size 8, learning_rate 1e-4"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nothing"], "give the output folder of a run"),
        (["a", "--output_dir", "x"], "--output_dir: only for several runs"),
        (["a", "b", "--group_by", "sede"], "no run has the setting 'sede'"),
        (["a", "b", "--baseline", "x"], "got 'x', but the groups are ['base']"),
        (["a", "nothing"], "give the output folder of a run"),
        (["a", "same"], "has seed 0 twice"),
        (["a", "broken"], "recipe.yaml:2: "),
    ],
)
def test_errors_have_no_traceback(tmp_path, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(tmp_path)
    for name, seed in (("a", 0), ("b", 1), ("same", 0), ("broken", 2)):
        seed_run(tmp_path / name, seed, [0.2, 0.5], num_examples=5)
    (tmp_path / "broken" / "recipe.yaml").write_text("num_examples: [\n")
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    assert stopped.value.code == 2
    error = capsys.readouterr().err
    assert message in error and error.startswith("trl-r1zero report: error: ")
    assert not (tmp_path / "report").exists()
