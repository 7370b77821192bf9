"""SFT trainers on the untrained model and honest traces of the embedded task."""

from datasets import Dataset
from launch_rewards import odd_digits
from tiny_models import make_tiny_model

from trl_r1zero.data.tasks.chain_arithmetic import solve_trace
from trl_r1zero.recipe.task_arguments import TaskArguments
from trl_r1zero.trainers import R1ZeroSFTConfig, R1ZeroSFTTrainer
from trl_r1zero.trainers.results import remove_results

TASK = TaskArguments(
    task="chain_arithmetic", task_args={"num_train": 40, "num_validation": 10}
).load()
TRACES = Dataset.from_dict(
    {
        "prompt": TASK.train_dataset["prompt"],
        "response": [solve_trace(question) for question in TASK.train_dataset["question"]],
    }
)


def make_sft_trainer(
    tokenizer, output_dir, *, traces=TRACES, model=None, reward=odd_digits, **settings
) -> R1ZeroSFTTrainer:
    peft_config, callbacks = settings.pop("peft_config", None), settings.pop("callbacks", None)
    settings = {
        "train_batch_size": 8,
        "gradient_accumulation_steps": 2,
        "learning_rate": 1e-3,
        "eval_every": None,
        "eval_max_completion_length": 10,
        "save_every": None,
        "disable_tqdm": True,
        "seed": 0,
        **settings,
    }
    trainer = R1ZeroSFTTrainer(
        model=make_tiny_model(tokenizer) if model is None else model,
        args=R1ZeroSFTConfig(output_dir=str(output_dir), **settings),
        train_dataset=traces,
        eval_dataset=TASK.eval_dataset,
        reward_fn=reward,
        processing_class=tokenizer,
        stop=TASK.prompt.stop,
        peft_config=peft_config,
        callbacks=callbacks,
    )
    remove_results(trainer)  # seconds for each run
    return trainer
