"""`trl-r1zero eval` through its own command line, on the tiny model."""

import json
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from offline_vllm import needs_vllm
from tiny_models import REPOSITORY, hub_cache, make_tiny_model

from trl_r1zero import cli
from trl_r1zero.commands.eval import main
from trl_r1zero.devices import MachineFacts, visible_devices
from trl_r1zero.evaluation.environment import model_files
from trl_r1zero.generation import TransformersEngine
from trl_r1zero.generation.vllm_client import VLLMServerEngine
from trl_r1zero.generation.vllm_offline import OfflineVLLMEngine
from trl_r1zero.generation.vllm_server import VLLMServer
from trl_r1zero.recipe import parse_recipe
from trl_r1zero.recipe.evaluation_arguments import EvaluationArguments
from trl_r1zero.recipe.evaluation_backends import BACKENDS

FILES = {
    "results.jsonl",
    "summary.json",
    "report.md",
    "report.html",
    "evaluation.json",
    "recipe.yaml",
    "environment.json",
}


def arguments_for(model: Path, folder: Path, /, **changes: object) -> list[str]:
    """The command line of a small evaluation."""
    keys = {
        "model": model,
        "task": "chain_arithmetic",
        "backend": "transformers",
        "num_examples": 6,
        "max_tokens": 12,
        "output_dir": folder,
        **changes,
    }
    return [f"--{key}={value}" for key, value in keys.items() if value is not None]


def rows_of(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "results.jsonl").read_text().splitlines()]


def facts_of(folder: Path) -> dict:
    return json.loads((folder / "evaluation.json").read_text())


def arguments(**changes: object) -> EvaluationArguments:
    return EvaluationArguments(**{"model": "some/model", **changes})


# The command


def test_the_command_line_end_to_end(tiny_model_folder, tmp_path, capfd):
    folder = tmp_path / "results"
    status = cli.main(["eval", *arguments_for(tiny_model_folder, folder)])
    assert status == 0
    assert {path.name for path in folder.iterdir()} == FILES
    rows = rows_of(folder)
    assert [row["example"] for row in rows] == [0, 1, 2, 3, 4, 5]
    assert all(row["length"] <= 12 and row["prompt"].endswith("<think>") for row in rows)
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["num_examples"] == 6
    shown = capfd.readouterr().out
    assert f"Evaluating {tiny_model_folder} on 6 examples of chain_arithmetic" in shown
    assert f"| accuracy                         | {summary['accuracy']:.4f}" in shown
    assert f"{folder}: report.html" in shown


def test_what_was_evaluated_is_written_down(tiny_model_folder, tmp_path):
    main(arguments_for(tiny_model_folder, tmp_path / "a", n=2, temperature=0.5))
    facts = facts_of(tmp_path / "a")
    assert facts["num_completions"] == 2
    assert facts["engine"] == "transformers"
    assert facts["reward"] == "trl_r1zero.rewards.reward_functions.r1_zero_reward_fn"
    assert facts["sampling"] == {
        "temperature": 0.5,
        "top_p": 1.0,
        "top_k": 0,
        "min_p": 0.0,
        "max_tokens": 12,
        "min_tokens": 4,
        "stop": ["</answer>"],  # the prompt's
    }
    settings = facts["settings"]
    assert settings.pop("versions")["transformers"]
    assert settings.pop("device")
    assert settings.pop("model_files") == model_files(tiny_model_folder)
    assert settings == {
        "model": str(tiny_model_folder),
        "task": "chain_arithmetic",
        "split": "validation",
        "prompt": "chain_arithmetic",
        "backend": "transformers",
        "dtype": "auto",
    }
    assert json.loads((tmp_path / "a" / "environment.json").read_text())["command"] == sys.argv
    # The recipe that lies beside the results gives the same results.
    recipe = ["--config", str(tmp_path / "a" / "recipe.yaml")]
    main([*recipe, "--output_dir", str(tmp_path / "b")])
    assert rows_of(tmp_path / "b") == rows_of(tmp_path / "a")


def test_it_goes_on_where_it_was(tiny_model_folder, tmp_path):
    command = arguments_for(tiny_model_folder, tmp_path / "whole")
    main(command)
    cut = tmp_path / "cut"
    main([*arguments_for(tiny_model_folder, cut)])
    lines = (cut / "results.jsonl").read_text().splitlines(keepends=True)
    kept = [lines[4], lines[1], lines[5][:30]]  # in the order in which they ended, one cut off
    (cut / "results.jsonl").write_text("".join(kept))
    environment = (cut / "environment.json").read_text()
    main(arguments_for(tiny_model_folder, cut))
    assert rows_of(cut) == rows_of(tmp_path / "whole")
    assert (cut / "environment.json").read_text() == environment  # that of the first start


def test_a_complete_evaluation_loads_no_model(tiny_model_folder, tmp_path, monkeypatch):
    main(arguments_for(tiny_model_folder, tmp_path / "results"))
    monkeypatch.setattr("transformers.AutoModelForCausalLM.from_pretrained", None)
    (tmp_path / "results" / "report.md").unlink()
    main(arguments_for(tiny_model_folder, tmp_path / "results"))
    assert (tmp_path / "results" / "report.md").is_file()


def test_data_from_a_file(tiny_model_folder, tmp_path, tokenizer):
    problems = [
        {"problem": "1 + 1", "answer": "2", "level": "Level 1", "subject": "Algebra"},
        {"problem": "2 + 2", "answer": "4", "level": "Level 2", "subject": "Algebra"},
    ]
    file = tmp_path / "math.jsonl"
    file.write_text("".join(json.dumps(problem) + "\n" for problem in problems))
    changes = {"task": "math", "data": file, "prompt": "question_only", "num_examples": None}
    main(arguments_for(tiny_model_folder, tmp_path / "results", **changes))
    rows = rows_of(tmp_path / "results")
    assert [row["prompt"] for row in rows] == ["1 + 1", "2 + 2"]
    assert rows[1]["metadata"] == {"level": "Level 2", "subject": "Algebra"}
    reward = "trl_r1zero.rewards.reward_functions.question_only_reward_fn"
    assert facts_of(tmp_path / "results")["reward"] == reward
    assert facts_of(tmp_path / "results")["sampling"]["stop"] == []


def test_a_reward_that_hangs_costs_its_completions(tiny_model_folder, tmp_path):
    reward = "evaluate_rewards.hangs_on_long_responses"
    changes = {"reward": reward, "reward_deadline_seconds": 0.5, "max_tokens": 24}
    main(arguments_for(tiny_model_folder, tmp_path / "results", **changes))
    rows = rows_of(tmp_path / "results")
    long = [row for row in rows if len(row["response"]) > 20]
    assert len(long) > 0
    assert all(row["rule"] == "reward_timeout" and row["reward"] == 0 for row in long)
    assert all(row["format_reward"] == 1 for row in rows if row not in long)
    assert facts_of(tmp_path / "results")["reward"] == reward


def test_the_script_of_the_recipes(tiny_model_folder, tmp_path):
    script = str(REPOSITORY / "recipes" / "evaluate.py")
    recipe = str(REPOSITORY / "recipes" / "quickstart" / "eval.yaml")
    changes = ["--model", str(tiny_model_folder), "--num_examples", "2", "--max_tokens", "8"]
    done = subprocess.run(
        [sys.executable, script, "--config", recipe, *changes, "--output_dir", str(tmp_path / "r")],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
    )
    assert done.returncode == 0, done.stderr
    assert {path.name for path in (tmp_path / "r").iterdir()} == FILES


# vLLM


@pytest.mark.slow
def test_with_a_server_that_runs(vllm_server, tmp_path, capsys):
    folder = tmp_path / "results"
    served = {"backend": "vllm_server", "server_url": vllm_server.base_url}
    main(arguments_for(vllm_server.model, folder, n=2, **served))
    assert {path.name for path in folder.iterdir()} == FILES
    assert [(row["example"], row["completion"]) for row in rows_of(folder)] == [
        (example, completion) for example in range(6) for completion in range(2)
    ]
    facts = facts_of(folder)
    assert facts["engine"] == "vllm-server"
    assert facts["settings"]["model"] == vllm_server.model
    assert not {"dtype", "device"} & set(facts["settings"])  # the server's, not known here
    assert vllm_server.is_alive()
    # Results are filed under the model's name, so it must be the one that is served.
    with pytest.raises(SystemExit):
        main(arguments_for("some/other-model", tmp_path / "other", **served))
    shown = capsys.readouterr().err
    assert f"serves '{vllm_server.model}', but model is 'some/other-model'" in shown
    # What it serves leaves less room than the model's own config, which may not be here.
    with pytest.raises(SystemExit):
        main(arguments_for(vllm_server.model, tmp_path / "long", **served, max_tokens=4090))
    shown = capsys.readouterr().err
    assert "none of 6 rows can be used" in shown
    assert "max_tokens 4,090 are more than max_model_len 4,096" in shown


@pytest.mark.parametrize("backend", ["transformers", "vllm", "vllm_offline"])
def test_prompts_without_room_are_found_before_a_model_is_loaded(
    tiny_model_folder, tmp_path, capsys, monkeypatch, backend
):
    if backend != "transformers":
        pytest.importorskip("vllm")
    for engine in (VLLMServerEngine, OfflineVLLMEngine, TransformersEngine):
        monkeypatch.setattr(engine, "__init__", lambda *_, **__: pytest.fail("too early"))
    monkeypatch.setattr(VLLMServer, "start", lambda self: pytest.fail("too early"))
    with pytest.raises(SystemExit):
        main(arguments_for(tiny_model_folder, tmp_path, backend=backend, max_tokens=4090))
    shown = capsys.readouterr().err
    assert "none of 6 rows can be used" in shown
    assert "max_tokens 4,090 are more than the model's max_position_embeddings 4,096" in shown
    if backend == "transformers":
        return
    server = "{max_model_len: 20}"
    with pytest.raises(SystemExit):
        main(arguments_for(tiny_model_folder, tmp_path, backend=backend, server=server))
    assert "max_tokens 12 are more than max_model_len 20; lower" in capsys.readouterr().err


def test_no_server_at_the_address(tmp_path, capsys):
    with socket.create_server(("127.0.0.1", 0)) as free:
        url = f"http://127.0.0.1:{free.getsockname()[1]}"
    with pytest.raises(SystemExit) as caught:
        changes = {"backend": "vllm_server", "server_url": url}
        main(arguments_for("some/model", tmp_path / "results", **changes))
    assert caught.value.code == 2
    assert f"there is no vLLM server at {url}" in capsys.readouterr().err


@needs_vllm
@pytest.mark.slow
def test_with_a_server_of_its_own(served_model_folder, tmp_path, monkeypatch):
    servers = []
    start = VLLMServer.start
    monkeypatch.setattr(VLLMServer, "start", lambda self: (servers.append(self), start(self)))
    server = "{max_model_len: 128, cpu_kv_cache_gb: 1}"
    changes = {"backend": "vllm", "dtype": "float32", "server": server}
    main(arguments_for(served_model_folder, tmp_path / "results", **changes))
    assert {path.name for path in (tmp_path / "results").iterdir()} == FILES
    assert facts_of(tmp_path / "results")["settings"]["server"]["max_model_len"] == 128
    (own,) = servers
    assert (own.config.max_model_len, own.config.dtype) == (128, "float32")
    assert own.weight_transfer is None  # nobody may replace its weights
    assert not own.is_alive()


# What is refused


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"task": "mat"}, "unknown task 'mat'; did you mean 'math'?"),
        ({"prompt": "r1"}, "unknown prompt 'r1'"),
        ({"backend": "vlm"}, "unknown backend 'vlm'; did you mean 'vllm'?"),
        ({"model": "/no/such/folder"}, "model: there is no folder '/no/such/folder'"),
        ({"split": "valid"}, "unknown split 'valid'"),
        ({"task": "math", "data": "/no/such.jsonl"}, "/no/such.jsonl does not exist"),
        ({"temprature": 1}, "did you mean 'temperature'"),
        ({"model": None}, "model: no value given"),
        ({"top_p": 0}, "top_p must be in (0, 1], got 0"),
        ({"n": 0}, "n must be at least 1, got 0"),
        ({"reward": "no.such.reward"}, "reward: got 'no.such.reward'"),
        ({"reward": "r1_zer0"}, "unknown reward 'r1_zer0'; did you mean 'r1_zero'"),
        ({"reward": "json.loads"}, "reward: json.loads cannot grade a response against"),
        ({"reward": "json.loads", "reward_workers": 0}, "(TypeError: loads() takes 1 pos"),
        ({"model": "run/finale"}, "model: there is no folder 'run/finale', and no such model"),
        ({"task_args": "{seed: one}"}, "seed: got 'one' (str), expected int"),
        ({"reward_workers": -1}, "reward_workers must be at least 0, got -1"),
        ({"reward_deadline_seconds": 0}, "reward_deadline_seconds must be above 0, got 0.0"),
    ],
)
def test_what_is_wrong_is_said_without_a_traceback(
    changes, message, tiny_model_folder, tmp_path, capsys
):
    with pytest.raises(SystemExit) as caught:
        main(arguments_for(tiny_model_folder, tmp_path / "results", **changes))
    assert caught.value.code == 2
    shown = capsys.readouterr().err
    assert shown.startswith("trl-r1zero eval: error: ")
    assert message in shown
    assert not (tmp_path / "results").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"backend": "vllm", "batch_size": 8}, "only the backend transformers uses it"),
        ({"backend": "transformers", "server": {}}, "only the backend vllm or vllm_offline uses"),
        ({"backend": "vllm", "server_url": "http://x"}, "only the backend vllm_server uses it"),
        ({"backend": "vllm_server"}, "server_url is not set"),
        (
            {"backend": "vllm_server", "server_url": "http://x", "dtype": "float32"},
            "has a dtype already",
        ),
    ],
)
def test_a_key_that_the_backend_has_no_use_for(changes, message):
    with pytest.raises(ValueError, match=message):
        arguments(**changes)


@needs_vllm
@pytest.mark.parametrize("backend", ["vllm", "vllm_offline"])
@pytest.mark.parametrize(
    ("server", "message"),
    [
        ({"max_model_length": 8}, "server: .*'max_model_length'.* did you mean 'max_model_len'"),
        ({"max_model_len": "8k"}, "server: max_model_len must be int or n.*, got '8k'"),
        ({"dtype": "float32"}, "server: got dtype, which is a key of its own"),
    ],
)
def test_settings_of_vllm_are_checked_at_once(backend, server, message, tiny_model_folder):
    evaluation = arguments(model=str(tiny_model_folder), backend=backend, server=server)
    with pytest.raises(ValueError, match=message):
        evaluation.load()


def test_the_cpu_is_no_silent_substitute_for_a_gpu(
    tiny_model_folder, tmp_path, capsys, monkeypatch
):
    machine = MachineFacts((), visible_devices({}, 0), "13.0", "570.10", has_nvidia_device=True)
    monkeypatch.setattr("trl_r1zero.devices.machine_facts", lambda: machine)
    with pytest.raises(SystemExit):
        main(arguments_for(tiny_model_folder, tmp_path / "refused"))
    assert "wants 580 or newer" in (said := capsys.readouterr().err)
    assert "To use the CPU on purpose, set ACCELERATE_USE_CPU=true" in said
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    assert not main(arguments_for(tiny_model_folder, tmp_path / "meant"))


def test_the_folder_of_another_evaluation_is_refused(tiny_model_folder, tmp_path, capsys):
    main(arguments_for(tiny_model_folder, tmp_path / "results"))
    before = {path.name: path.read_text() for path in (tmp_path / "results").iterdir()}
    with pytest.raises(SystemExit) as caught:
        main(arguments_for(tiny_model_folder, tmp_path / "results", temperature=0.5))
    assert caught.value.code == 2
    assert "sampling.temperature: 1.0 there, 0.5 here" in capsys.readouterr().err
    assert {path.name: path.read_text() for path in (tmp_path / "results").iterdir()} == before


def test_a_model_that_was_trained_again_is_another_one(
    tokenizer, tiny_model_folder, tmp_path, capsys
):
    model = tmp_path / "model"
    shutil.copytree(tiny_model_folder, model)
    main(arguments_for(model, tmp_path / "results"))
    path = tmp_path / "results" / "results.jsonl"
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:3]))  # killed half-way
    make_tiny_model(tokenizer, seed=1).save_pretrained(model)
    before = {file.name: file.read_bytes() for file in (tmp_path / "results").iterdir()}
    with pytest.raises(SystemExit) as caught:
        main(arguments_for(model, tmp_path / "results"))
    assert caught.value.code == 2
    shown = capsys.readouterr().err
    weights = [model_files(folder)["weights"] for folder in (tiny_model_folder, model)]
    assert f"settings.model_files.weights: '{weights[0]}' there, '{weights[1]}' here" in shown
    assert "Choose another folder, or delete this folder to start anew" in shown
    assert {file.name: file.read_bytes() for file in (tmp_path / "results").iterdir()} == before


def test_a_folder_from_before_fingerprints_is_refused_in_words(tiny_model_folder, tmp_path, capsys):
    main(arguments_for(tiny_model_folder, tmp_path / "results"))
    facts = facts_of(tmp_path / "results")
    del facts["settings"]["model_files"]
    (tmp_path / "results" / "evaluation.json").write_text(json.dumps(facts))
    with pytest.raises(SystemExit) as caught:
        main(arguments_for(tiny_model_folder, tmp_path / "results"))
    assert caught.value.code == 2
    shown = capsys.readouterr().err
    assert "holds another evaluation, which differs in" in shown
    assert "settings.model_files.weights: 'nothing' there, '" in shown


def test_another_reward_of_the_same_name_is_refused(
    tiny_model_folder, tmp_path, capsys, monkeypatch
):
    """The bare name is the same, and only the module tells them apart."""
    (tmp_path / "mine.py").write_text(
        "def length_is_even(response, truth):\n    return {'reward': 1.0}\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    changes = {"reward": "evaluate_rewards.length_is_even", "reward_workers": 0}
    main(arguments_for(tiny_model_folder, tmp_path / "results", **changes))
    with pytest.raises(SystemExit) as caught:
        changes = {"reward": "mine.length_is_even", "reward_workers": 0}
        main(arguments_for(tiny_model_folder, tmp_path / "results", **changes))
    assert caught.value.code == 2
    message = "reward: 'evaluate_rewards.length_is_even' there, 'mine.length_is_even' here"
    assert message in capsys.readouterr().err


def test_how_many_processes_grade_may_change(tiny_model_folder, tmp_path):
    reward = "evaluate_rewards.length_is_even"
    facts = []
    for workers in (0, 1):
        changes = {"reward": reward, "reward_workers": workers}
        main(arguments_for(tiny_model_folder, tmp_path / "results", **changes))
        facts.append(facts_of(tmp_path / "results"))
    assert facts[0]["reward"] == facts[1]["reward"] == reward


# Arguments


def test_defaults_are_the_handouts():
    values = parse_recipe((EvaluationArguments,), ["--model", "some/model"]).values
    assert values["temperature"] == values["top_p"] == 1.0
    assert (values["min_tokens"], values["max_tokens"], values["n"]) == (4, 1024, 1)
    assert (values["seed"], values["split"], values["num_examples"]) == (0, None, None)


def test_help_lists_every_backend():
    (backend,) = (
        f for f in EvaluationArguments.__dataclass_fields__.values() if f.name == "backend"
    )
    assert all(f"{name}:" in backend.metadata["help"] for name in BACKENDS)


def test_the_default_folder_says_what_was_evaluated(tiny_model_folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    task = {"task": "chain_arithmetic", "backend": "transformers"}
    commit = hub_cache(tmp_path, monkeypatch, "Qwen/Qwen2.5-Math-1.5B")
    hub = arguments(model="Qwen/Qwen2.5-Math-1.5B", **task).load()
    assert hub.settings["model_revision"] == commit
    assert str(hub.folder) == "runs/eval/Qwen2.5-Math-1.5B/chain_arithmetic-chain_arithmetic"
    # Models of runs are all called `final`, so the run's name is there too.
    shutil.copytree(tiny_model_folder, "runs/seed_0/final")
    run = arguments(model="runs/seed_0/final", prompt="r1_zero", **task).load()
    assert str(run.folder) == "runs/eval/seed_0-final/chain_arithmetic-r1_zero"
