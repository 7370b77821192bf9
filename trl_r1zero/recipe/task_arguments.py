"""What to train, validate and evaluate on, as recipes say it."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

from trl_r1zero.common.arguments import AT_LEAST_0, Positive, arg, check_ranges
from trl_r1zero.data.prompts import Prompt, load_prompt
from trl_r1zero.data.tasks import TASKS, Task, get_task
from trl_r1zero.rewards.registry import REWARDS, RewardFn, resolve_reward

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase

    from trl_r1zero.trainers.rewards import TRLReward


@dataclass
class TaskSelection:
    """A task, its prompt and its reward. Keys of every recipe that has a task.

    Raises:
        ValueError: An unknown task, setting of a task, prompt or reward, or a value outside its
            range. All is looked up here, so that a recipe with a mistake ends with a message.
    """

    task: str = arg("math", f"One of {', '.join(TASKS)}, or the dotted path of a Task.")
    task_args: dict[str, Any] | None = arg(None, "Settings of the task, such as {seed: 1}.")
    prompt: str | None = arg(
        None, "A built-in prompt or the path of a .txt file. Unset: the task's own."
    )
    reward: str | None = arg(
        None,
        "A reward's name, or the dotted path of a function (response, ground_truth) -> "
        "dict. Unset: the task's own for this prompt.",
    )
    reward_workers: Annotated[int, AT_LEAST_0] | None = arg(
        None,
        "Processes that grade under a deadline; 0 grades in the recipe's own, without. "
        "Unset: 0 for the library's own rewards, which are bounded, 2 for a dotted path.",
    )
    reward_deadline_seconds: Positive = arg(
        5.0, "With workers: a completion that takes longer is graded 0 and counted."
    )

    def __post_init__(self) -> None:
        self.load_task()
        if self.reward:
            resolve_reward(self.reward)
        check_ranges(self)

    def load_task(self) -> tuple[Task, Prompt]:
        """The task with its settings, and the prompt."""
        task = get_task(self.task, **(self.task_args or {}))
        return task, load_prompt(self.prompt or task.default_prompt)

    def load_reward(self, task: Task, prompt: Prompt) -> tuple[RewardFn, int]:
        """The reward function, and the number of processes that grade with it (0: none); a
        ValueError if nothing grades the answers to this task, and `reward` is not set."""
        reward_fn = resolve_reward(self.reward) if self.reward else task.reward_fn(prompt)
        if reward_fn is None:
            raise ValueError(
                f"task {task.name!r} has no reward, for its answers are free text that a judge or "
                "a person reads; set reward, or use a task that grades"
            )
        if self.reward_workers is not None:
            return reward_fn, self.reward_workers
        is_own = self.reward is None or self.reward in REWARDS
        return reward_fn, 0 if is_own else 2


@dataclass
class TaskArguments(TaskSelection):
    """A task to train on: with its two sets of data.

    Raises:
        ValueError: See `TaskSelection`; a malformed row (on `load`).
    """

    train_data: str | None = arg(
        None, "JSON-lines file or hub id (id, id:split) of the training problems."
    )
    eval_data: str | None = arg(None, "The same for the validation problems.")

    def load(self, tokenizer: "PreTrainedTokenizerBase | None" = None) -> "LoadedTask":
        """Read prompt, data and reward; a prompt with a chat template needs the tokenizer."""
        from trl_r1zero.data.rows import build_dataset

        task, prompt = self.load_task()
        prompt = prompt.for_tokenizer(tokenizer)
        return LoadedTask(
            prompt=prompt,
            reward=self.load_trl_reward(task, prompt),
            train_dataset=build_dataset(task.load(self.train_data, "train"), prompt),
            eval_dataset=self.load_validation(task, prompt),
        )

    def load_trl_reward(self, task: Task, prompt: Prompt) -> "TRLReward":
        """The reward as trainers take it; its workers, if any, start now."""
        from trl_r1zero.trainers.rewards import TRLReward

        reward_fn, workers = self.load_reward(task, prompt)
        return TRLReward(reward_fn, workers=workers, deadline_seconds=self.reward_deadline_seconds)

    def load_validation(self, task: Task, prompt: Prompt) -> "Dataset":
        """The validation problems, with columns `prompt` and `ground_truth` among others."""
        from trl_r1zero.data.rows import build_dataset

        return build_dataset(task.load(self.eval_data, "validation"), prompt)


@dataclass
class LoadedTask:
    """Prompt, reward, and the data sets with columns `prompt` and `ground_truth`."""

    prompt: Prompt
    reward: "TRLReward"
    train_dataset: "Dataset"
    eval_dataset: "Dataset"
