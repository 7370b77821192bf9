"""Seconds of GRPO steps through a vLLM server, by how many steps ahead that samples.

    trl-r1zero serve MODEL --dtype float32 --port 8000
    python benchmarks/staleness.py MODEL --url http://127.0.0.1:8000 [--rounds 2]

MODEL has the embedded tokenizer, such as the quickstart's base policy. In each round every setting
of `max_staleness` trains for the same steps, in an order that changes; ratios are within a round,
as other work on the machine changes from one to the next. All rows are trained on.
"""

import argparse
import statistics
import tempfile
import time
from pathlib import Path

from trl_r1zero import R1ZeroGRPOConfig, R1ZeroGRPOTrainer
from trl_r1zero.recipe.task_arguments import TaskArguments
from trl_r1zero.trainers import read_metrics

SETTINGS = (0, 1, 2)
NAMES = ("trainer_idle_share", "server_idle_share", "staleness/mean")


def reward(response: str, ground_truth: str) -> dict[str, float]:
    return {"reward": sum(character.isdigit() for character in response) / 50}


def train(model: str, url: str, max_staleness: int, steps: int) -> tuple[float, list[float]]:
    """Seconds of training, and the means of `NAMES` over all steps but the first two and last."""
    sizes = {"num_train": 64, "num_validation": 16}
    task = TaskArguments(task="chain_arithmetic", task_args=sizes).load()
    with tempfile.TemporaryDirectory() as folder:
        args = R1ZeroGRPOConfig(
            output_dir=folder,
            n_grpo_steps=steps,
            rollout_batch_size=64,
            train_batch_size=64,
            max_completion_length=48,
            min_tokens=24,
            skip_zero_advantages=False,
            eval_every=None,
            save_every=None,
            log_rollouts_every=None,
            report_to="none",
            disable_tqdm=True,
            loss_type="grpo_clip",
            old_log_probs="sampler",
            use_vllm=True,
            vllm_server_base_url=url,
            vllm_check_syncs=0,
            max_staleness=max_staleness,
        )
        trainer = R1ZeroGRPOTrainer(
            model, reward, args, task.train_dataset, task.eval_dataset, stop=task.prompt.stop
        )
        begun = time.perf_counter()
        trainer.train()
        seconds = time.perf_counter() - begun
        lines = [line for line in read_metrics(Path(folder)) if "loss" in line][2:-1]
    return seconds, [statistics.mean(line.get(name, 0.0) for line in lines) for name in NAMES]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("model")
    parser.add_argument("--url", required=True)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--steps", type=int, default=8)
    args = parser.parse_args()
    for number in range(args.rounds):
        seconds = {}
        for k in SETTINGS[:: 1 if number % 2 else -1]:
            seconds[k], means = train(args.model, args.url, k, args.steps)
            found = ", ".join(f"{name} {x:.2f}" for name, x in zip(NAMES, means, strict=True))
            print(f"max_staleness {k}: {seconds[k]:.1f} s, {found}", flush=True)
        ratios = ", ".join(f"{k}: {seconds[k] / seconds[0]:.2f}" for k in SETTINGS)
        print(f"seconds over those of 0: {ratios}", flush=True)


if __name__ == "__main__":
    main()
