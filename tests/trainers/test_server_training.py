"""GRPO through a real vLLM server: the launched command, several processes, LoRA, and faults."""

import copy
import importlib.util
import json
import os
from pathlib import Path

import psutil
import pytest
import torch
import yaml
from launch_rewards import many_digits
from launching import launch
from tiny_models import REPOSITORY

from trl_r1zero import R1ZeroGRPOConfig, R1ZeroGRPOTrainer
from trl_r1zero.generation.vllm_server import VLLMServerError
from trl_r1zero.recipe.task_arguments import TaskArguments
from trl_r1zero.trainers import read_metrics
from trl_r1zero.trainers.grpo_loss import keep_log_probs

# Servers that start, and DeepSpeed's first start, which compiles, take minutes on a busy machine.
pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

RECIPE = {
    "task": "chain_arithmetic",
    "task_args": {"num_train": 32, "num_validation": 64},
    "reward": "launch_rewards.many_digits",
    "n_grpo_steps": 13,
    "rollout_batch_size": 128,
    "group_size": 8,
    "train_batch_size": 128,
    "gradient_accumulation_steps": 2,
    "max_completion_length": 16,
    "learning_rate": 1.0e-2,
    "eval_every": 13,
    "save_every": None,
    "seed": 3,
    "report_to": "none",
}


def through(server) -> dict:
    return {**RECIPE, "use_vllm": True, "vllm_server_base_url": server.base_url}


def column(folder: Path, name: str) -> list[float]:
    return [line[name] for line in read_metrics(folder) if name in line]


@pytest.fixture(scope="module")
def transformers_run(served_model_folder, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("server_training") / "transformers"
    done = launch(RECIPE, folder, served_model_folder)
    assert done.returncode == 0, done.stderr[-4000:]
    return folder


def test_a_launched_run_learns_through_the_server_as_with_transformers(
    vllm_server, served_model_folder, transformers_run, tmp_path
):
    folder = tmp_path / "run"
    done = launch(through(vllm_server), folder, served_model_folder, processes=2)
    assert done.returncode == 0, done.stderr[-4000:]
    accuracy, expected = (column(run, "eval_accuracy") for run in (folder, transformers_run))
    assert accuracy[0] == pytest.approx(expected[0], abs=0.1)
    assert accuracy[-1] > 0.7
    assert expected[-1] > 0.7
    # float32 on both sides: the server has the trainer's weights at every step. The end-of-sequence
    # token, ruled out in the first tokens, is the one difference.
    assert max(column(folder, "sampler_log_prob_diff/mean")) < 5e-3
    rollout = json.loads((folder / "rollouts" / "grpo_step_00001.jsonl").read_text().split("\n")[0])
    assert rollout["length"] >= 4


@pytest.fixture(scope="module")
def four_steps(vllm_server, served_model_folder, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("four_steps") / "run"
    done = launch({**through(vllm_server), "n_grpo_steps": 4}, folder, served_model_folder)
    assert done.returncode == 0, done.stderr[-4000:]
    return folder


@pytest.mark.parametrize("sharding", ["zero2", "zero3"])
def test_sharded_over_two_processes_the_numbers_are_those_of_one(
    sharding, vllm_server, served_model_folder, four_steps, tmp_path
):
    # No FSDP2: on CPUs accelerate ignores its settings, and the run would be a plain DDP.
    if importlib.util.find_spec("deepspeed") is None:
        pytest.skip("DeepSpeed is not installed: make vllm")
    config = yaml.safe_load((REPOSITORY / "accelerate_configs" / f"{sharding}.yaml").read_text())
    path = tmp_path / "accelerate.yaml"
    path.write_text(yaml.safe_dump({**config, "use_cpu": True}))
    folder = tmp_path / "run"
    done = launch(
        {**through(vllm_server), "n_grpo_steps": 4},
        folder,
        served_model_folder,
        processes=2,
        accelerate_config=path,
        timeout_seconds=840,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    for name in ("loss", "grad_norm"):
        assert column(folder, name) == pytest.approx(column(four_steps, name), abs=1e-5), name
    # What the server samples with are the whole weights, gathered.
    assert max(column(folder, "sampler_log_prob_diff/mean")) < 5e-3


def test_lora_through_the_server(vllm_server, served_model_folder, tmp_path):
    lora = {"use_peft": True, "lora_r": 8, "lora_dropout": 0.0}  # dropout: another policy
    recipe = {**through(vllm_server), **lora, "n_grpo_steps": 5}
    done = launch(recipe, tmp_path / "lora", served_model_folder)
    assert done.returncode == 0, done.stderr[-4000:]
    assert (tmp_path / "lora" / "final" / "adapter_model.safetensors").is_file()
    # The adapter is part of what the server samples with, from the second step on too.
    assert column(tmp_path / "lora", "sampler_log_prob_diff/mean")[-1] < 5e-3
    rewards = column(tmp_path / "lora", "reward")
    assert rewards[-1] > rewards[0]


def make_trainer(model: Path, output_dir: Path, **settings) -> R1ZeroGRPOTrainer:
    task = TaskArguments(task="chain_arithmetic", task_args=RECIPE["task_args"]).load()
    keys = set(RECIPE) - {"task", "task_args", "reward"}
    values = {**{key: RECIPE[key] for key in keys}, "use_vllm": True, "save_every": 1, **settings}
    config = R1ZeroGRPOConfig(output_dir=str(output_dir), disable_tqdm=True, **values)
    return R1ZeroGRPOTrainer(
        model=str(model),
        reward_funcs=many_digits,
        args=config,
        train_dataset=task.train_dataset,
        eval_dataset=task.eval_dataset,
        stop=task.prompt.stop,
    )


def collected(trainer: R1ZeroGRPOTrainer) -> list[list]:
    """Trains; the rollouts of each GRPO step, and the weights before its updates."""
    collect, steps = trainer.collect_rollouts, []

    def spy(examples):
        batch = collect(examples)
        steps.append((batch.rollouts, copy.deepcopy(trainer.model.state_dict())))
        return batch

    trainer.collect_rollouts = spy
    trainer.train()
    return steps


ONE_STEP_OFF = {
    "one_step_off": True,
    "old_log_probs": "sampler",
    "loss_type": "grpo_clip",
    "n_grpo_steps": 4,
    "eval_every": 2,
}


def test_one_step_off_is_the_synchronous_run_but_for_one_step(
    vllm_server, served_model_folder, tmp_path
):
    """With a policy that never moves, a step makes no difference at all."""
    url = {"vllm_server_base_url": vllm_server.base_url, "learning_rate": 0.0}
    settings = {name: ONE_STEP_OFF[name] for name in ("loss_type", "n_grpo_steps", "eval_every")}
    runs = [
        collected(make_trainer(served_model_folder, tmp_path / "synchronous", **settings, **url)),
        collected(make_trainer(served_model_folder, tmp_path / "ahead", **ONE_STEP_OFF, **url)),
    ]
    for (synchronous, _), (ahead, _) in zip(*runs, strict=True):
        assert [row.prompt for row in ahead] == [row.prompt for row in synchronous]
        texts = [[row.completion.text for row in rows] for rows in (ahead, synchronous)]
        assert texts[0] == texts[1]
    for name in ("reward", "eval_accuracy"):
        assert column(tmp_path / "ahead", name) == column(tmp_path / "synchronous", name)


def test_one_step_off_samples_with_the_weights_before_the_last_step(
    vllm_server, served_model_folder, tmp_path
):
    url = {"vllm_server_base_url": vllm_server.base_url}
    trainer = make_trainer(served_model_folder, tmp_path, **ONE_STEP_OFF, **url)
    steps = collected(trainer)

    def mean_difference(rows, weights) -> float:
        """Between the sampler's log-probabilities and those of some weights."""
        trainer.model.load_state_dict(weights)
        keep_log_probs(trainer.policy, trainer.model, trainer.cut(rows), "ref_log_probs")
        sampled = torch.cat([torch.tensor(row.completion.log_probs) for row in rows])
        return (sampled - torch.cat([row.ref_log_probs for row in rows])).abs().nanmean().item()

    trainer.args.skip_zero_advantages = False
    weights = [state for _, state in steps]
    assert mean_difference(steps[0][0], weights[0]) < 5e-3  # nothing came before it
    for step in (1, 2, 3):
        rows = steps[step][0]
        assert mean_difference(rows, weights[step - 1]) < 5e-3
        assert mean_difference(rows, weights[step]) > 0.05
        # The ratio is to the policy that sampled.
        assert all(row.old_log_probs.tolist() == row.completion.log_probs for row in rows)
    assert all(abs(ratio - 1) > 1e-3 for ratio in column(tmp_path, "ratio")[1:])
    assert len(column(tmp_path, "seconds/rollout_wait")) == 4
    assert all(seconds > 0 for seconds in column(tmp_path, "server_idle_seconds"))


def kill_server(trainer: R1ZeroGRPOTrainer) -> None:
    """kill -9 for every process of the server."""
    server = psutil.Process(trainer.server._engine.server.pid)
    for process in (server, *server.children(recursive=True)):
        os.kill(process.pid, 9)


@pytest.fixture(scope="module")
def killed_twice(served_model_folder, tmp_path_factory) -> tuple[R1ZeroGRPOTrainer, Path]:
    """A run whose own server is killed during step 2's generation and during step 4's sync."""
    folder = tmp_path_factory.mktemp("killed") / "run"
    trainer = make_trainer(
        served_model_folder, folder, vllm_server={"dtype": "float32", "max_model_len": 256}
    )
    sample, tensors = trainer.server.sample, trainer.server.weights.tensors
    killed = set()

    def sample_and_kill(*args, **kwargs):
        if trainer.grpo_step == 2 and "generation" not in killed:
            killed.add("generation")
            stream = trainer.server._engine.stream

            def stream_and_kill(*args):
                for row in stream(*args):
                    yield row
                    if "generation has begun" not in killed:
                        killed.add("generation has begun")
                        kill_server(trainer)

            trainer.server._engine.stream = stream_and_kill
        return sample(*args, **kwargs)

    def tensors_and_kill():
        for number, named in enumerate(tensors()):
            if trainer.grpo_step == 4 and number == 1 and "sync" not in killed:
                killed.add("sync")
                kill_server(trainer)
            yield named

    trainer.server.sample, trainer.server.weights.tensors = sample_and_kill, tensors_and_kill
    trainer.train()
    assert killed == {"generation", "generation has begun", "sync"}
    yield trainer, folder
    trainer.server.close()


def test_a_killed_server_is_started_again_and_nothing_is_lost(killed_twice):
    trainer, folder = killed_twice
    assert trainer.state.global_step == RECIPE["n_grpo_steps"]
    steps = [line["grpo_step"] for line in read_metrics(folder) if "loss" in line]
    assert steps == list(range(1, RECIPE["n_grpo_steps"] + 1))
    assert column(folder, "eval_accuracy")[-1] > 0.7
    assert trainer.check_server() < 1e-5


def test_a_server_of_somebody_else_that_dies_leaves_a_checkpoint(
    killed_twice, served_model_folder, tmp_path
):
    owner, _ = killed_twice
    trainer = make_trainer(
        served_model_folder, tmp_path / "run", vllm_server_base_url=owner.server._engine.base_url
    )
    sample = trainer.server.sample

    def kill_and_sample(*args, **kwargs):
        if trainer.grpo_step == 2:
            kill_server(owner)
        return sample(*args, **kwargs)

    trainer.server.sample = kill_and_sample
    with pytest.raises(VLLMServerError) as error:
        trainer.train()
    assert "stopped after 2 of 13 GRPO steps" in str(error.value)
    assert "--resume_from_checkpoint last" in str(error.value)
    assert (tmp_path / "run" / "checkpoint-2" / "optimizer.pt").is_file()


def test_the_probe_finds_a_server_with_other_weights(vllm_server, served_model_folder, tmp_path):
    trainer = make_trainer(
        served_model_folder, tmp_path / "run", vllm_server_base_url=vllm_server.base_url
    )
    trainer.server.sync_weights()
    assert trainer.check_server() < 1e-5
    trainer.model.model.norm.weight.data *= 1.5  # what the server does not know of
    with pytest.raises(VLLMServerError, match=r"does not have the trainer's weights: .* differ by"):
        trainer.check_server()
    # A name that the server does not know: its own error, at once.
    trainer.server._ways._infos = None
    tensors = trainer.server.weights._weights._iter_named_params
    trainer.server.weights._weights._iter_named_params = lambda: (
        (f"unknown.{name}", tensor) for name, tensor in tensors()
    )
    with pytest.raises(VLLMServerError, match=r"refused /update_weights .*'unknown'"):
        trainer.server.sync_weights()
    # Its weights are undefined then, until a whole update arrives.
    trainer.server._ways._infos = None
    trainer.server.weights._weights._iter_named_params = tensors
    trainer.server.sync_weights()
    assert trainer.check_server() < 1e-5
    trainer.server.close()  # or no other process could train with it
