"""`trl-r1zero doctor` from its command line, on folders without weights, for machines not here."""

import json
import os
import re
import subprocess
import sys
import time

import pytest
from doctor_runs import math_rows, qwen_math_folder, write_rows
from tiny_models import REPOSITORY

from trl_r1zero.commands import doctor as command
from trl_r1zero.doctor import examine, memory
from trl_r1zero.doctor.run import read_run_recipe

RECIPES = sorted(
    path
    for folder in ("quickstart", "qwen2.5-math-1.5b", "llama-3.1-8b")
    for path in (REPOSITORY / "recipes" / folder).glob("*.yaml")
    if not path.stem.startswith("eval")
)
METHODS = ("grpo", "sft", "expert_iteration", "instruction_tuning", "dpo")
DOCUMENT = REPOSITORY / "docs" / "doctor.md"


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Where a recipe, its data and its model are; the working directory."""
    qwen_math_folder(tmp_path / "model")
    write_rows(tmp_path / "train.jsonl", math_rows(40))
    write_rows(tmp_path / "validation.jsonl", math_rows(10, start=100))
    (tmp_path / "grpo.yaml").write_text(
        "model_name_or_path: model\n"
        "output_dir: runs/first\n"
        "train_data: train.jsonl\n"
        "eval_data: validation.jsonl\n"
        "use_vllm: true\n"
        "vllm_server: {}\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(memory, "free_bytes", lambda folder: 100 * 10**9)
    return tmp_path


def doctor(capsys, *arguments):
    status = command.main(["--config", "grpo.yaml", *arguments])
    return status, capsys.readouterr()


def test_a_run_that_would_work(folder, capsys):
    status, shown = doctor(capsys, "--assume", "80GB")
    assert status == 0
    assert shown.out.splitlines()[0] == "grpo.yaml (grpo) on 1 x GPU (74.5 GiB)"
    assert shown.out.splitlines()[-1].startswith("Nothing was found that would fail (1 warning)")
    assert "model has no weights" in shown.out


def test_one_24_gb_card(folder, capsys):
    """What the default recipe lacks there, and with what it fits."""
    status, shown = doctor(capsys, "--assume", "24GB")
    assert status == 1
    assert (
        "memory/trainer" in shown.out.splitlines()[-1]
        or "server/placement" in (shown.out.splitlines()[-1])
    )
    status, shown = doctor(
        capsys, "--assume", "24GB", "--dtype", "bfloat16", "--gradient_checkpointing"
    )
    assert status == 0
    assert "a change below 6.1e-05 rounds to nothing" in " ".join(shown.out.split())


def test_adapters_fit_where_all_weights_do_not(folder, capsys):
    status, shown = doctor(capsys, "--assume", "24GB", "--dtype", "bfloat16", "--use_peft")
    assert status == 0
    # Rank 16 on queries and values of 28 layers: 2,179,072 parameters, in float32.
    assert "gradients 0.0, optimizer 0.0" in " ".join(shown.out.split())
    assert "rounds to nothing" not in shown.out


def test_the_keys_of_json(folder, capsys):
    status, shown = doctor(capsys, "--assume", "2x80GB", "--json")
    report = json.loads(shown.out)
    assert status == 0
    assert set(report) == {"recipe", "method", "machine", "would_fail", "findings"}
    assert (report["method"], report["would_fail"]) == ("grpo", False)
    by_check = {f"{one['section']}/{one['check']}": one["level"] for one in report["findings"]}
    assert by_check["server/placement"] == by_check["memory/server"] == "ok"
    assert by_check["model/weights"] == "warning"
    assert set(report["findings"][0]) == {"section", "check", "level", "found", "needed", "do"}


def test_a_row_that_cannot_be_used(folder, capsys):
    rows = math_rows(40)
    rows[6]["answer"] = ""
    write_rows(folder / "train.jsonl", rows)
    status, shown = doctor(capsys, "--assume", "80GB")
    assert status == 1
    assert "row 7: field 'answer': got ''" in shown.out
    assert shown.out.splitlines()[-1].endswith(": data/train_data_rows.")


OTHER_RECIPES = {
    "sft": ("train_data: traces.jsonl\neval_data: validation.jsonl\n", "server/placement"),
    "expert_iteration": ("train_data: train.jsonl\neval_data: validation.jsonl\n", "reward/gold"),
    "dpo": ("train_data: pairs.jsonl\nnum_eval_pairs: 1\n", "data/train_data"),
    "instruction_tuning": ("train_data: rows.jsonl\neval_data: rows.jsonl\n", "data/eval_data"),
}


@pytest.mark.parametrize("method", OTHER_RECIPES)
def test_every_method_is_looked_at(folder, capsys, method):
    settings, expected = OTHER_RECIPES[method]
    write_rows(folder / "traces.jsonl", [{"prompt": "p", "response": "r", "ground_truth": "1"}])
    write_rows(folder / "rows.jsonl", [{"prompt": "p", "response": "r"}])
    pair = {"chosen": "\n\nHuman: Hi\n\nAssistant: a", "rejected": "\n\nHuman: Hi\n\nAssistant: b"}
    write_rows(folder / "pairs.jsonl", [pair])
    if method in ("sft", "expert_iteration"):
        settings += "use_vllm: true\nvllm_server: {}\n"
    name = f"{method}.yaml"
    (folder / name).write_text(f"model_name_or_path: model\noutput_dir: runs/x\n{settings}")
    status = command.main(["--config", name, "--assume", "2x80GB", "--json"])
    report = json.loads(capsys.readouterr().out)
    levels = {f"{one['section']}/{one['check']}": one["level"] for one in report["findings"]}
    assert (status, report["method"]) == (0, method)
    assert levels[expected] == levels["memory/trainer"] == levels["disk/checkpoints"] == "ok"


def test_a_hub_that_cannot_be_reached_is_a_problem_and_not_a_wait(folder, capsys):
    start = time.monotonic()
    status, shown = doctor(capsys, "--assume", "80GB", "--model_name_or_path", "nobody/nothing")
    assert status == 1
    assert time.monotonic() - start < 60
    text = " ".join(shown.out.split())
    assert "nobody/nothing is not in the hub's cache, and the hub does not give it" in text
    assert "hf download nobody/nothing --local-dir FOLDER" in text
    assert "memory is not known without the model's config" in text
    assert "Traceback" not in shown.out + shown.err


def test_the_launchers_file_is_read(folder, capsys):
    (folder / "launch.yaml").write_text(
        "distributed_type: FSDP\nnum_processes: 8\nnum_machines: 1\nuse_cpu: false\n"
    )
    arguments = ("--accelerate_config", "launch.yaml", "--assume", "2x80GB")
    status, shown = doctor(capsys, *arguments)
    assert status == 1
    assert "8 trainer processes want a GPU each" in shown.out
    status, shown = doctor(capsys, *arguments, "--num_processes", "1")
    assert status == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--learning_rat", "1"], "unknown key 'learning_rat'; did you mean 'learning_rate'"),
        (["--assume", "two"], "a machine is cpu, 24GB or 2x80GB"),
        (["--accelerate_config", "none.yaml"], "--accelerate_config none.yaml"),
        (["--train_batch_size", "250"], "train_batch_size"),
    ],
)
def test_what_cannot_be_read_is_status_2(folder, capsys, arguments, message):
    status, shown = doctor(capsys, *arguments)
    assert status == 2
    assert shown.err.startswith("trl-r1zero doctor: error: ")
    assert message in shown.err
    assert shown.out == ""


def test_an_unknown_method_is_status_2(folder, capsys):
    with pytest.raises(SystemExit) as caught:
        doctor(capsys, "--method", "ppo")
    assert caught.value.code == 2
    assert "expected one of grpo, sft, expert_iteration" in capsys.readouterr().err


# Which script a recipe is for


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_the_method_of_every_recipe_is_found(path):
    method, _ = read_run_recipe(["--config", str(path)], None)
    assert method == next(name for name in METHODS if path.stem.split("-")[0] == name)


def test_keys_that_fit_several_methods_are_asked_about(folder):
    shared = folder / "mine.yaml"
    shared.write_text("model_name_or_path: model\noutput_dir: runs/x\nlearning_rate: 1.0e-5\n")
    with pytest.raises(ValueError, match=r"its keys fit grpo, sft, .*say which script.*--method"):
        read_run_recipe(["--config", str(shared)], None)
    assert read_run_recipe(["--config", str(shared)], "dpo")[0] == "dpo"


def test_a_recipe_named_by_a_method_is_that_ones(folder):
    (folder / "grpo-new.yaml").write_text("output_dir: runs/x\nfilter_correct: true\n")
    with pytest.raises(ValueError, match="unknown key 'filter_correct'"):
        read_run_recipe(["--config", "grpo-new.yaml"], None)


def test_keys_that_fit_one_method_say_it(folder):
    mine = folder / "mine.yaml"
    mine.write_text("model_name_or_path: model\noutput_dir: runs/x\nn_grpo_steps: 5\n")
    assert read_run_recipe(["--config", str(mine)], None)[0] == "grpo"


# The command itself


@pytest.mark.slow
def test_the_command_needs_no_gpu_and_ends_with_its_status(folder):
    done = subprocess.run(
        [sys.executable, "-m", "trl_r1zero.cli", "doctor", "--config", "grpo.yaml", "--json"],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "http_proxy": "http://127.0.0.1:9"},
    )
    report = json.loads(done.stdout)
    assert done.returncode == int(report["would_fail"])
    checks = {one["check"]: one for one in report["findings"]}
    assert "http_proxy" in checks["proxies"]["found"]
    assert "Traceback" not in done.stderr


def documented_example():
    """The command and the output in docs/doctor.md."""
    text = DOCUMENT.read_text(encoding="utf-8")
    match = re.search(r"```\n\$ trl-r1zero doctor (.*?)\n(.*?)\n```", text, re.DOTALL)
    assert match is not None
    return match[1].split(), match[2]


def test_the_documents_example_is_what_is_said(folder, capsys, monkeypatch):
    versions = {
        "torch": "2.13.0",
        "trl": "1.16.0",
        "transformers": "5.17.0",
        "accelerate": "1.15.0",
        "vllm": "0.31.0",
    }
    monkeypatch.setattr(command, "_installed", lambda names: {n: versions[n] for n in names})
    clock = iter(range(10_000))
    monkeypatch.setattr(examine.time, "perf_counter", lambda: next(clock) / 1000)
    rows = math_rows(40)
    rows[6]["answer"] = ""
    write_rows(folder / "train.jsonl", rows)
    arguments, output = documented_example()
    command.main(arguments)
    assert capsys.readouterr().out.strip() == output.strip()
