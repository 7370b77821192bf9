"""GRPO trainers, ours and TRL's, of the tiny model; rollouts made by hand, and their gradient."""

import torch
from launch_rewards import odd_digits
from tiny_models import make_tiny_model
from transformers import Qwen2ForCausalLM
from trl import GRPOConfig, GRPOTrainer

from trl_r1zero.functional import compute_group_advantages
from trl_r1zero.generation import Completion
from trl_r1zero.recipe.task_arguments import TaskArguments
from trl_r1zero.trainers import R1ZeroGRPOConfig, R1ZeroGRPOTrainer, read_metrics
from trl_r1zero.trainers.results import remove_results
from trl_r1zero.trainers.rollouts import Rollout, RolloutBatch

TASK = TaskArguments(
    task="chain_arithmetic", task_args={"num_train": 32, "num_validation": 10}
).load()

# Of eight rollouts in two groups.
LENGTHS = [3, 9, 1, 7, 4, 4, 12, 2]
REWARDS = [1.0, 0.0, 0.0, 1.0, 0.0, 1.0, 1.0, 1.0]


def make_trainer(
    tokenizer,
    output_dir,
    *,
    reward=odd_digits,
    model=None,
    peft_config=None,
    stop=TASK.prompt.stop,
    results=False,
    **settings,
):
    settings = {
        "n_grpo_steps": 2,
        "rollout_batch_size": 16,
        "group_size": 4,
        "train_batch_size": 16,
        "gradient_accumulation_steps": 2,
        "max_completion_length": 10,
        "learning_rate": 1e-3,
        "eval_every": None,
        "save_every": None,
        "log_rollouts_every": None,
        "disable_tqdm": True,
        "seed": 0,
        **settings,
    }
    trainer = R1ZeroGRPOTrainer(
        model=make_tiny_model(tokenizer) if model is None else model,
        reward_funcs=reward,
        args=R1ZeroGRPOConfig(output_dir=str(output_dir), **settings),
        train_dataset=TASK.train_dataset,
        eval_dataset=TASK.eval_dataset,
        processing_class=tokenizer,
        stop=stop,
        peft_config=peft_config,
    )
    if not results:
        remove_results(trainer)  # seconds for each run
    return trainer


def train_lines(folder) -> list[dict]:
    return [line for line in read_metrics(folder) if "reward" in line]


def make_rollouts(
    tokenizer, lengths: list[int], rewards: list[float], group_size: int, advantage="group_mean"
) -> list[Rollout]:
    """Random completions of the given lengths after different prompts."""
    generator = torch.Generator().manual_seed(1)
    advantages = compute_group_advantages(torch.tensor(rewards), group_size, advantage, 1e-4)
    rollouts = []
    for row, (length, reward) in enumerate(zip(lengths, rewards, strict=True)):
        prompt = TASK.train_dataset[row // group_size]["prompt"]
        ids = torch.randint(0, 250, (length,), generator=generator).tolist()
        rollouts.append(
            Rollout(
                prompt=prompt,
                ground_truth="1",
                prompt_ids=tokenizer(prompt)["input_ids"],
                completion=Completion(ids, "", "stop"),
                rewards={"reward": reward},
                advantage=advantages[row].item(),
            )
        )
    return rollouts


def gradient_of_update(trainer: R1ZeroGRPOTrainer, rollouts: list[Rollout]) -> torch.Tensor:
    """The flat gradient that `training_step` leaves for one update on these rollouts."""
    trainer.create_optimizer_and_scheduler(num_training_steps=1)
    trainer._rollout_batch = RolloutBatch(rollouts, trainer.args.group_size)
    # `training_step` collects rollouts at a GRPO step's first update; they are here already.
    trainer.collect_rollouts = lambda inputs: trainer._rollout_batch
    trainer.model.zero_grad()
    trainer.training_step(trainer.model, [])
    return torch.cat([p.grad.flatten() for p in trainer.model.parameters() if p.grad is not None])


def load_tiny(tokenizer, tmp_path):
    """The tiny model from a folder, as TRL loads its reference model from there again."""
    folder = tmp_path / "model"
    if not folder.exists():
        make_tiny_model(tokenizer).save_pretrained(folder)
    return Qwen2ForCausalLM.from_pretrained(folder)


def make_trl_trainer(tokenizer, tmp_path, rollout_func=None, **settings) -> GRPOTrainer:
    """TRL's own trainer of `load_tiny`, in the middle of training; it gives out REWARDS."""
    trainer = GRPOTrainer(
        model=load_tiny(tokenizer, tmp_path),
        reward_funcs=lambda completions, **_: REWARDS,
        args=GRPOConfig(
            output_dir=str(tmp_path / "stock"),
            per_device_train_batch_size=8,
            gradient_accumulation_steps=1,
            num_generations=4,
            max_completion_length=16,
            epsilon=0.2,
            bf16=False,
            report_to="none",
            **settings,
        ),
        train_dataset=TASK.train_dataset,
        processing_class=tokenizer,
        rollout_func=rollout_func,
    )
    trainer.current_gradient_accumulation_steps = 1
    trainer.model.train()
    return trainer


def assert_same_gradients(model, other) -> None:
    for (name, a), b in zip(model.named_parameters(), other.parameters(), strict=True):
        assert torch.allclose(a.grad, b.grad, atol=1e-6, rtol=1e-4), name
