"""The page to watch runs on: what it says, who writes it, who serves it."""

import gzip
import json
import random
import threading
import urllib.error
import urllib.request
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from report_runs import write_metrics

from trl_r1zero.commands import watch
from trl_r1zero.common.folder_lock import holding
from trl_r1zero.watch import RunPage, write_page
from trl_r1zero.watch.page import page_html
from trl_r1zero.watch.run_data import answer_tables, answers, compact_json, run_data
from trl_r1zero.watch.server import PageServer


def make_run(folder: Path, num_steps: int = 4, **settings: Any) -> Path:
    """A GRPO run with validations at 0 and at the end, rollouts of step 2 and tokens of them."""
    lines: list[dict] = [validation(0, 0.25)]
    for step in range(1, num_steps + 1):
        lines.append(
            {"step": step, "grpo_step": step, "elapsed_seconds": 10.0 * step, "reward": 0.1 * step,
             "entropy": 0.5, "grad_norm": 1.0, "length/mean": 20.0, "zero_advantage_groups": 0.5,
             "seconds/step": 9.0, "seconds/generation": 4.0}
        )  # fmt: skip
    lines.append(validation(num_steps, 0.5))
    write_metrics(folder, lines)
    (folder / "config.json").write_text(json.dumps({"n_grpo_steps": 2 * num_steps, **settings}))
    (folder / "rollouts").mkdir()
    rows = [
        {"prompt": f"Q{n // 2}?", "response": f"</script><b>{n}</b>", "ground_truth": "1",
         "reward": float(n % 2), "answer_reward": float(n % 2), "format_reward": 1.0, "length": n,
         "truncated": False, "advantage": n - 0.5, "rule": "string_equal"}
        for n in range(4)
    ]  # fmt: skip
    write_lines(folder / "rollouts" / "grpo_step_00002.jsonl", rows)
    tokens = [{"tokens": [["a", -0.5, 0.1], ["b", None, None]]} for _ in rows]
    (folder / "rollouts" / "tokens").mkdir()
    write_lines(folder / "rollouts" / "tokens" / "grpo_step_00002.jsonl", tokens)
    return folder


def validation(step: int, accuracy: float) -> dict:
    return {"step": step, "grpo_step": step, "elapsed_seconds": 10.0 * step + 1,
            "eval_accuracy": accuracy, "eval_accuracy_stderr": 0.02}  # fmt: skip


def write_lines(path: Path, rows: list[dict]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def data_of(page: str) -> dict:
    return json.loads(page.split('id="data">')[1].partition("</script>")[0])


@pytest.fixture
def run(tmp_path) -> Path:
    return make_run(tmp_path / "run_a")


# What the page shows


def test_a_run_s_curves_are_those_of_its_kind_and_what_a_watcher_wants(run):
    panels = {panel["title"]: panel for panel in run_data(run)["panels"]}
    accuracy = panels["Validation accuracy, ± 1 standard error"]
    (curve,) = (c for c in accuracy["series"])
    assert (curve["x"], curve["y"], curve["error"]) == ([0, 4], [0.25, 0.5], [0.02, 0.02])
    assert accuracy["x_label"] == "GRPO step"
    assert panels["Training reward"]["series"][0]["y"] == pytest.approx([0.1, 0.2, 0.3, 0.4])
    assert [s["label"] for s in panels["Shares of rollouts"]["series"]] == [
        "groups without advantage"
    ]
    parts = panels["Seconds of an update, by part"]["series"]
    assert [part["label"] for part in parts] == ["all", "generation"]
    assert "Clipped tokens" not in panels  # nothing was logged


@pytest.mark.parametrize("status", ["running", "stopped"])
def test_the_state_says_how_far_a_run_is_and_what_is_left(run, status):
    with holding(run) if status == "running" else nullcontext():
        state = run_data(run)["state"]
    assert (state["status"], state["step"], state["planned"]) == (status, 4, 8)
    assert (state["metric"], state["last"], state["best"]) == ("accuracy", 0.5, 0.5)
    # Four more steps of 41 / 4 seconds.
    assert state["eta"] == (pytest.approx(41) if status == "running" else None)


def test_a_diverged_run_is_no_running_one(run):
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"step": 5, "grpo_step": 5, "elapsed_seconds": 50.0, "loss": NaN}\n')
    data = run_data(run)
    assert data["state"]["status"] == "diverged" and "update 5" in data["state"]["reason"]
    compact_json(data)  # and its page has no NaN


def test_answers_come_with_their_tokens(run):
    (table,) = answer_tables(run)
    assert (table.name, table.kind, table.step) == (
        "rollouts/grpo_step_00002.jsonl", "rollouts", 2
    )  # fmt: skip
    rows = answers(run, table)
    assert [row["reward"] for row in rows] == [0, 1, 0, 1]
    assert rows[0]["tokens"] == [["a", -0.5, 0.1], ["b", None, None]]


def test_a_page_is_one_file_that_answers_cannot_end(run):
    page = write_page(run).read_text()
    assert page.count("<script") == page.count("</script>") == 4  # data, table, uPlot, ours
    assert "<b>" not in page and "https://" not in page.split("<script>")[0]
    assert data_of(page)["served"] is False


def test_what_is_said_stands_in_the_page_as_text(run):
    settings = {"prompt": "</script><script>alert(1)</script>"}
    data = run_data(run) | {"name": "<i>&", "settings": settings}
    page = page_html([data])
    assert "<i>" not in page and "alert(1)</script>" not in page
    assert data_of(page)["runs"][0]["settings"] == settings


def test_the_newest_tables_are_in_the_page_as_far_as_there_is_room(run, monkeypatch):
    row = {"prompt": "?", "ground_truth": "1"}
    rows = [row | {"response": str(random.Random(n).random())} for n in range(99)]
    write_lines(run / "rollouts" / "grpo_step_00001.jsonl", rows)
    monkeypatch.setattr("trl_r1zero.watch.page.MAX_TABLE_BYTES", 500)
    page = write_page(run).read_text()
    assert 'data-name="rollouts/grpo_step_00002.jsonl"' in page
    assert 'data-name="rollouts/grpo_step_00001.jsonl"' not in page
    assert len(data_of(page)["runs"][0]["tables"]) == 2


# Who writes it


def test_a_run_writes_its_page_at_validations_and_now_and_then_at_logs(run, monkeypatch):
    clock = SimpleNamespace(now=0.0)
    monkeypatch.setattr("trl_r1zero.watch.page.time.perf_counter", lambda: clock.now)
    written = []

    def write(folder: Path) -> None:
        written.append(clock.now)
        clock.now += 1.0  # what it takes

    monkeypatch.setattr("trl_r1zero.watch.page.write_page", write)
    callback, args = RunPage(), SimpleNamespace(output_dir=str(run))
    main, other = (SimpleNamespace(is_world_process_zero=zero) for zero in (True, False))
    callback.on_evaluate(args, other, None)
    for now in (0.0, 5.0, 20.0, 21.0, 30.0):
        clock.now = now
        callback.on_log(args, main, None)
    assert written == [0.0, 21.0]
    callback.on_evaluate(args, main, None)
    assert written == [0.0, 21.0, 30.0]


def test_a_page_that_cannot_be_written_does_not_stop_the_run(run, caplog):
    (run / "rollouts" / "grpo_step_00002.jsonl").write_text('{"prompt": ')
    args, state = SimpleNamespace(output_dir=str(run)), SimpleNamespace(is_world_process_zero=True)
    RunPage().on_log(args, state, None)
    assert "index.html was not written" in caplog.text and "grpo_step_00002.jsonl:1" in caplog.text


# Who serves it


@pytest.fixture
def server(run, tmp_path):
    with PageServer([run, make_run(tmp_path / "run_b", num_steps=6)]) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def get(server: PageServer, path: str, **headers: str) -> str:
    request = urllib.request.Request(server.url + path, headers=headers)
    with urllib.request.urlopen(request, timeout=60) as response:
        return gzip.decompress(response.read()).decode()


def test_the_server_shows_all_runs_and_follows_them(server, run):
    assert server.url.startswith("http://127.0.0.1:")
    data = data_of(get(server, ""))
    assert [r["name"] for r in data["runs"]] == ["run_a", "run_b"] and data["served"]
    with (run / "metrics.jsonl").open("a") as file:
        file.write(json.dumps(validation(7, 0.75)) + "\n")
    assert json.loads(get(server, "runs"))[0]["state"]["last"] == 0.75
    rows = json.loads(get(server, "table?run=1&name=rollouts%2Fgrpo_step_00002.jsonl"))
    assert len(rows) == 4


@pytest.mark.parametrize(
    "path",
    [
        "table?run=0&name=../secret.jsonl",
        "table?run=0&name=config.json",
        "table?run=2&name=rollouts/grpo_step_00002.jsonl",
        "table?run=-1&name=rollouts/grpo_step_00002.jsonl",
        "table",
        "etc/passwd",
    ],
)
def test_the_server_gives_nothing_but_the_page_s_own(server, run, path):
    (run.parent / "secret.jsonl").write_text("{}\n")
    with pytest.raises(urllib.error.HTTPError, match="404"):
        get(server, path)


def test_a_name_that_somebody_else_gave_this_machine_is_refused(server):
    with pytest.raises(urllib.error.HTTPError, match="403"):
        get(server, "runs", Host=f"evil.example:{server.server_address[1]}")


# The command


def test_the_command_writes_pages(run, capsys):
    assert watch.main(["--write", str(run)]) == 0
    assert capsys.readouterr().out == f"{run / 'index.html'}\n"


def test_a_folder_without_metrics_and_a_port_in_use_are_one_line(run, tmp_path, capsys):
    assert watch.main([str(tmp_path)]) == 2
    assert "metrics.jsonl does not exist" in capsys.readouterr().err
    with PageServer([run]) as server:
        assert watch.main([str(run), "--port", str(server.server_address[1])]) == 2
    assert "choose another --port" in capsys.readouterr().err
    assert watch.main([str(run), "--port", "70000"]) == 2
    assert "70000" in capsys.readouterr().err
