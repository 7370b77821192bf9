"""Metrics of an update: sums become means, extremes stay extremes, over one process and two."""

import os
import socket

import pytest
import torch
from accelerate import Accelerator

from trl_r1zero.generation import Completion
from trl_r1zero.trainers.rollouts import Rollout
from trl_r1zero.trainers.update_metrics import UpdateMetrics


def rollout(length: int, reward: float) -> Rollout:
    return Rollout(
        prompt="",
        ground_truth="",
        prompt_ids=[1, 2],
        completion=Completion([3] * length, "", "stop"),
        rewards={"reward": reward, "answer_reward": reward},
        advantage=0.0,
    )


# What each of two processes has seen: rows (length, reward), then the differences and the weights
# of two micro-batches.
ROWS = ([(5, 1.0), (1, 0.0)], [(2, 0.0), (4, 1.0)])
DIFFERENCES = ([[0.5, 0.0], [0.25]], [[], [1.0, 0.25]])
WEIGHTS = ([[1.0, 2.0], [3.0]], [[0.5], []])
EXPECTED = {
    "entropy": 2.0,
    "reward": 0.5,
    "answer_reward": 0.5,
    "truncated": 0.0,
    "length/mean": 3.0,  # (5 + 1 + 2 + 4) / 4
    "length/max": 5.0,
    "length/correct": 4.5,
    "length/incorrect": 1.5,
    "tokens": 20.0,  # 12 and 4 prompts of 2
    "sampler_log_prob_diff/mean": 0.4,  # (0.5 + 0 + 0.25 + 1 + 0.25) / 5
    "sampler_log_prob_diff/max": 1.0,
    "importance_weight/mean": 1.625,  # 6.5 / 4
    "importance_weight/min": 0.5,
    "importance_weight/max": 3.0,
}


def collect(parts, accelerator: Accelerator) -> dict[str, float]:
    """The metrics of an update in which one process saw these parts of what is above."""
    metrics = UpdateMetrics()
    for part in parts:
        tokens = sum(length for length, _ in ROWS[part])
        metrics.add(trained_tokens=torch.tensor(tokens), entropy=torch.tensor(2.0 * tokens))
        for values in DIFFERENCES[part]:
            metrics.add_values("sampler_log_prob_diff", torch.tensor(values))
        for values in WEIGHTS[part]:
            metrics.add_values("importance_weight", torch.tensor(values))
    return metrics.collect([rollout(*row) for part in parts for row in ROWS[part]], accelerator)


def test_one_process():
    assert collect([0, 1], Accelerator(cpu=True)) == pytest.approx(EXPECTED)


def test_an_update_starts_anew():
    accelerator, metrics = Accelerator(cpu=True), UpdateMetrics()
    for value in (3.0, 1.0):
        metrics.add(trained_tokens=torch.tensor(1.0))
        metrics.add_values("importance_weight", torch.tensor([value]))
        collected = metrics.collect([rollout(1, 1.0)], accelerator)
        assert {collected[f"importance_weight/{name}"] for name in ("mean", "min", "max")} == {
            value
        }


def test_no_values_are_no_metrics():
    metrics = UpdateMetrics()
    metrics.add(trained_tokens=torch.tensor(0.0))
    metrics.add_values("importance_weight", torch.tensor([]))
    collected = metrics.collect([rollout(0, 0.0)], Accelerator(cpu=True))
    assert not any(name.startswith(("importance", "sampler")) for name in collected)


def _process(rank: int, port: int, folder: str) -> None:
    os.environ |= {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }
    accelerator = Accelerator(cpu=True)
    assert accelerator.num_processes == 2
    torch.save(collect([rank], accelerator), f"{folder}/{rank}.pt")
    torch.distributed.destroy_process_group()


def test_two_processes(tmp_path):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    torch.multiprocessing.spawn(_process, args=(port, str(tmp_path)), nprocs=2)
    for rank in range(2):
        assert torch.load(tmp_path / f"{rank}.pt") == pytest.approx(EXPECTED)
