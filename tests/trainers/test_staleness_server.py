"""Rollouts ahead of the weights, and LoRA adapters, through a real vLLM server."""

import importlib.util
import os
import shutil
import signal
import threading
from pathlib import Path

import pytest
import torch
from launch_rewards import many_digits
from peft import LoraConfig
from transformers import TrainerCallback

from trl_r1zero import R1ZeroGRPOConfig, R1ZeroGRPOTrainer
from trl_r1zero.common.stopping import RunStopped
from trl_r1zero.generation import SamplingConfig
from trl_r1zero.generation.vllm_server import VLLMServer, VLLMServerConfig
from trl_r1zero.recipe.task_arguments import TaskArguments
from trl_r1zero.trainers import read_metrics
from trl_r1zero.trainers.rollouts_ahead import AHEAD_FILE
from trl_r1zero.trainers.server_setup import ServerRequest

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

TASK = TaskArguments(
    task="chain_arithmetic", task_args={"num_train": 32, "num_validation": 16}
).load()
LORA = LoraConfig(r=8, lora_alpha=16, target_modules="all-linear", lora_dropout=0.0)
AHEAD = {"old_log_probs": "sampler", "loss_type": "grpo_clip"}


@pytest.fixture(scope="module")
def server(served_model_folder, tmp_path_factory):
    """Takes adapters, and whole weights too."""
    if importlib.util.find_spec("vllm") is None:
        pytest.skip("vLLM is not installed: make vllm")
    config = VLLMServerConfig(dtype="float32", max_model_len=2048, max_lora_rank=8, max_loras=3)
    log_path = tmp_path_factory.mktemp("adapters") / "server.log"
    with VLLMServer(str(served_model_folder), config, log_path=log_path) as server:
        yield server


def make_trainer(server, model: Path, folder: Path, lora=None, **settings) -> R1ZeroGRPOTrainer:
    values = {
        "n_grpo_steps": 4,
        "rollout_batch_size": 32,
        "group_size": 8,
        "train_batch_size": 32,
        "max_completion_length": 16,
        "min_tokens": 0,  # else vLLM's log-probabilities are without the end token at first
        "learning_rate": 1e-2,
        "eval_every": None,
        "save_every": None,
        "seed": 3,
        "report_to": "none",
        "use_vllm": True,
        "vllm_server_base_url": server.base_url,
        "disable_tqdm": True,
        "output_dir": str(folder),
        **settings,
    }
    return R1ZeroGRPOTrainer(
        model=str(model),
        reward_funcs=many_digits,
        args=R1ZeroGRPOConfig(**values),
        train_dataset=TASK.train_dataset,
        eval_dataset=TASK.eval_dataset,
        stop=TASK.prompt.stop,
        peft_config=lora,
    )


def change_weights(model, scale: float) -> None:
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(scale * torch.randn_like(parameter))


def log_probs(trainer, prompt_ids: list[int], ids: list[int]) -> torch.Tensor:
    model = trainer.model.eval()
    with torch.no_grad():
        logits = model(torch.tensor([prompt_ids + ids])).logits[0, len(prompt_ids) - 1 : -1]
    return logits.log_softmax(-1).gather(1, torch.tensor(ids)[:, None])[:, 0]


# LoRA


def test_what_a_server_cannot_load_is_merged_or_an_error(server, served_model_folder, tmp_path):
    wide = LoraConfig(r=16, target_modules="all-linear")
    trainer = make_trainer(server, served_model_folder, tmp_path, wide)
    assert not trainer.server.weights.adapters
    with pytest.raises(RuntimeError, match="takes ranks up to 8, and theirs is 16; set auto or"):
        make_trainer(server, served_model_folder, tmp_path, wide, vllm_lora="adapters")
    with pytest.raises(RuntimeError, match=r"the policy has no adapters \(use_peft\)"):
        make_trainer(server, served_model_folder, tmp_path, vllm_lora="adapters")


def test_adapters_alone_and_merged_weights_say_the_same(server, served_model_folder, tmp_path):
    """In float32, the server's log-probabilities and the trainer's, after each of two updates."""
    found = {}
    for way in ("auto", "adapters", "merged"):
        torch.manual_seed(1)
        folder = tmp_path / way
        trainer = make_trainer(server, served_model_folder, folder, LORA, vllm_lora=way)
        assert trainer.server.weights.adapters == (way != "merged")
        torch.manual_seed(2)
        for _ in range(2):
            change_weights(trainer.model, 0.3)
            trainer.server.sync_weights()
            assert trainer.check_server() < 1e-5
        ids = trainer.sampler.prompt_ids([TASK.train_dataset[0]["prompt"]])[0]
        engine = trainer.server._engine
        num_bytes = sum(info.num_bytes for info in trainer.server._ways._infos)
        found[way] = engine.log_probs(ids), num_bytes
        trainer.server.close()
    assert found["adapters"][0] == pytest.approx(found["merged"][0], abs=1e-5)
    assert found["auto"] == found["adapters"]
    assert found["adapters"][1] < found["merged"][1] / 2
    # The server's own weights again, for others that come with adapters.
    make_trainer(server, served_model_folder, tmp_path).server.sync_weights()


# Staleness


@pytest.mark.parametrize("lora", [LORA, None], ids=["adapters", "weights"])
def test_rows_are_of_the_weights_that_their_age_says(lora, server, served_model_folder, tmp_path):
    """The stored log-probabilities of the first token are those of the weights of that age."""
    trainer = make_trainer(
        server, served_model_folder, tmp_path, lora, max_staleness=2, n_grpo_steps=5, **AHEAD
    )
    collect, weights, firsts = trainer.collect_rollouts, [], []

    def spy(examples):
        batch = collect(examples)
        weights.append({n: p.clone() for n, p in trainer.model.state_dict().items()})
        firsts.append(batch.rollouts)
        return batch

    trainer.collect_rollouts = spy
    trainer.train()
    ages = [[row.completion.staleness for row in rows] for rows in firsts]
    assert [max(of_step) for of_step in ages] <= [0, 1, 2, 2, 2]
    assert ages[0] == [0] * 32
    assert max(ages[2] + ages[3] + ages[4]) == 2
    for step, rows in enumerate(firsts):
        for row in rows[::8]:
            trainer.model.load_state_dict(weights[step - row.completion.staleness])
            expected = log_probs(trainer, row.prompt_ids, row.completion.token_ids[:1])
            assert row.completion.log_probs[0] == pytest.approx(expected.item(), abs=1e-4)
            assert row.old_log_probs.tolist() == pytest.approx(row.completion.log_probs)
    lines = [line for line in read_metrics(tmp_path) if "staleness/mean" in line]
    assert [line["staleness/max"] for line in lines] == [max(of_step) for of_step in ages]
    for line in lines:
        assert 0 <= line["server_idle_share"] <= 1
        assert 0 <= line["trainer_idle_share"] <= 1
    table = (tmp_path / "rollouts" / "grpo_step_00001.jsonl").read_text()
    assert '"staleness": 0' in table


def test_rows_go_on_with_new_weights_from_one_token_on(server, served_model_folder, tmp_path):
    trainer = make_trainer(
        server, served_model_folder, tmp_path, max_staleness=2, vllm_check_syncs=0, **AHEAD
    )
    updates = 0
    trainer.server.num_updates = lambda: updates
    trainer.server.sync_weights()
    ids = trainer.sampler.prompt_ids(["1 + 2 ="])
    sampling = SamplingConfig(max_tokens=80, min_tokens=0)
    request = ServerRequest(ids * 300, sampling, list(range(300)))
    stream, first_token = trainer.server._engine.stream, threading.Event()

    def spy(prompt_ids, sampling, seeds, on_first_token):
        yield from stream(
            prompt_ids, sampling, seeds, lambda row: (first_token.set(), on_first_token(row))
        )

    trainer.server._engine.stream = spy
    trainer.server.begin(request)
    assert first_token.wait(300)
    old = {name: p.clone() for name, p in trainer.model.state_dict().items()}
    torch.manual_seed(0)
    change_weights(trainer.model, 0.02)
    updates = 1
    trainer.server.sync_weights()
    trainer.server.finish(request)
    new = {name: p.clone() for name, p in trainer.model.state_dict().items()}
    assert {0, 1} == set(request.versions)  # some waited until the new weights were there
    by_length = sorted(range(300), key=lambda row: -len(request.completions[row].token_ids))
    for version in (0, 1):  # the longest of each
        number = next(row for row in by_length if request.versions[row] == version)
        completion = request.completions[number]
        sampled = torch.tensor(completion.log_probs)
        agrees = []
        for weights in (old, new):
            trainer.model.load_state_dict(weights)
            expected = log_probs(trainer, ids[0], completion.token_ids)
            agrees.append((sampled - expected).abs() < 1e-3)
        num_old = int(agrees[0].float().cumprod(0).sum())
        assert agrees[1][num_old:].all()
        assert num_old < len(sampled)
        assert (num_old > 0) == (request.versions[number] == 0)


@pytest.fixture(scope="module")
def whole_run(server, served_model_folder, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("whole") / "run"
    settings = {"max_staleness": 1, "save_every": 2, "save_total_limit": None, **AHEAD}
    make_trainer(server, served_model_folder, folder, **settings).train()
    return folder


def numbers(folder: Path) -> list[tuple]:
    names = ("step", "loss", "grad_norm", "reward", "ratio", "staleness/max")
    lines = [line for line in read_metrics(folder) if "loss" in line]
    return [tuple(line[name] for name in names) for line in lines]


def test_a_killed_run_goes_on_with_the_rows_it_had_asked_for(
    whole_run, server, served_model_folder, tmp_path
):
    """kill -9 leaves what is on the disk: checkpoint 2 here."""
    assert (whole_run / "checkpoint-2" / AHEAD_FILE).is_file()
    folder = tmp_path / "killed"
    shutil.copytree(whole_run, folder, ignore=shutil.ignore_patterns("checkpoint-4", "final"))
    settings = {"max_staleness": 1, "save_every": 2, "save_total_limit": None, **AHEAD}
    make_trainer(server, served_model_folder, folder, **settings).train("last")
    assert numbers(folder) == numbers(whole_run)


def test_a_signal_saves_the_rows_that_were_asked_for(
    whole_run, server, served_model_folder, tmp_path
):
    class Terminate(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            if state.global_step == 3:
                os.kill(os.getpid(), signal.SIGTERM)

    settings = {"max_staleness": 1, "save_every": 2, "save_total_limit": None, **AHEAD}
    trainer = make_trainer(server, served_model_folder, tmp_path, **settings)
    trainer.add_callback(Terminate())
    with pytest.raises(RunStopped):
        trainer.train()
    assert (tmp_path / "checkpoint-3" / AHEAD_FILE).is_file()
    make_trainer(server, served_model_folder, tmp_path, **settings).train("last")
    assert numbers(tmp_path) == numbers(whole_run)
