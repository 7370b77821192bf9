"""What to train, validate and evaluate on, as recipes say it."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from trl_r1zero.common.arguments import AT_LEAST_0, Positive, arg, check_ranges
from trl_r1zero.common.naming import unknown_name_message
from trl_r1zero.common.plugins import PlugIns, Role, is_dotted
from trl_r1zero.common.types import MISFIT, fit, type_name
from trl_r1zero.data.prompt_room import PromptRoom
from trl_r1zero.data.prompts import PROMPT_ROLE, Prompt, load_prompt
from trl_r1zero.data.tasks import TASKS, Task, get_task
from trl_r1zero.data.tasks.base import Example
from trl_r1zero.rewards.registry import REWARDS, RewardFn, resolve_reward

from .data_arguments import RowArguments

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase

    from trl_r1zero.trainers.rewards import TRLReward

LoadExamples = Callable[..., list[Example]]  # takes a source, and on_bad_row
# Settings of one of several validation sets.
_OF_A_SET = {
    **{name: str for name in ("task", "data", "split")},
    "task_args": dict[str, Any],
    "num_examples": int,
}
EVAL_DATA_HELP = (
    "Or several sets, a list of tasks' names and of mappings {name: AIME24, task: aime, data: ..., "
    "split: ..., num_examples: ...}, by default of the run's own task: the first picks the best "
    "model, and each has metrics validation/NAME/..."
)


@dataclass
class TaskSelection(PlugIns, RowArguments):
    """A task, its prompt and its reward. Keys of every recipe that has a task.

    Raises:
        ValueError: An unknown task, setting of a task, prompt or reward, or a value outside its
            range. All is looked up here, so that a recipe with a mistake ends with a message.
    """

    roles: ClassVar = {
        "task": Role("task", (), (), TASKS),
        "prompt": PROMPT_ROLE,
        # Called with the first problem's ground truth, before a model is loaded.
        "reward": Role("reward", ("response", "ground_truth"), (), REWARDS, counts_inputs=False),
    }

    task: str = arg("math", f"One of {', '.join(TASKS)}, or the dotted path of a Task.")
    task_args: dict[str, Any] | None = arg(None, "Settings of the task, such as {seed: 1}.")
    prompt: str | None = arg(
        None,
        "A built-in prompt, the path of a .txt file, or the dotted path of a Prompt, or of a "
        "function that returns one. Unset: the task's own.",
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
            self._reward_fn(self.reward)
        self.check_options()
        check_ranges(self)

    def load_task(self) -> tuple[Task, Prompt]:
        """The task with its settings, and the prompt."""
        task = get_task(self.task, **self._task_args())
        return task, load_prompt(self.prompt or task.default_prompt, self.plugin_options)

    def _task_args(self) -> dict[str, Any]:
        """`task_args`, and the options of a task at a dotted path."""
        options = self.roles["task"].options(self.task) if is_dotted(self.task) else {}
        task_args, given = dict(self.task_args or {}), self.plugin_options or {}
        for key, option in options.items():
            name = key.rpartition(".")[2]
            if given.get(key, option.default) != option.default:
                if name in task_args:
                    raise ValueError(f"{key} and task_args say {name!r}; leave out one")
                task_args[name] = given[key]
        return task_args

    def _reward_fn(self, name: str) -> RewardFn:
        function = resolve_reward(name)
        bound = self.bound("reward")
        return function if bound == name else bound

    def load_reward(self, task: Task, prompt: Prompt) -> tuple[RewardFn, int]:
        """The reward function, and the number of processes that grade with it (0: none); a
        ValueError if nothing grades the answers to this task, and `reward` is not set."""
        reward_fn = self._reward_fn(self.reward) if self.reward else task.reward_fn(prompt)
        if reward_fn is None:
            raise ValueError(
                f"task {task.name!r} has no reward, for its answers are free text that a judge or "
                "a person reads; set reward, or use a task that grades"
            )
        is_own = self.reward is None or self.reward in REWARDS
        unset = 0 if is_own else 2
        return reward_fn, unset if self.reward_workers is None else self.reward_workers


@dataclass
class TaskArguments(TaskSelection):
    """A task to train on: with its two sets of data. Errors are those of `TaskSelection`, and on
    `load` rows that cannot be used."""

    train_data: str | None = arg(
        None, "JSON-lines file or hub id (id, id:split) of the training problems."
    )
    eval_data: str | list[str | dict[str, Any]] | None = arg(
        None, f"The same for the validation problems. {EVAL_DATA_HELP}"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        self.validation_sets(*self.load_task())

    def load(
        self,
        tokenizer: "PreTrainedTokenizerBase | None" = None,
        rooms: Mapping[str, PromptRoom] | None = None,
    ) -> "LoadedTask":
        """Read prompt, data and reward; a prompt with a chat template needs the tokenizer, and
        `rooms` are as in `load_problems`."""
        task, prompt = self.load_task()
        prompt = prompt.for_tokenizer(tokenizer)
        reward, load = self.load_trl_reward(task, prompt), partial(task.load, split="train")
        train = self.load_problems("train_data", self.train_data, load, prompt, rooms)
        loaded = LoadedTask(prompt, reward, train, self.load_validation(task, prompt, rooms))
        if is_dotted(self.reward) and len(train):
            reward.grader.check(train[0]["ground_truth"])
        return loaded

    def load_trl_reward(self, task: Task, prompt: Prompt) -> "TRLReward":
        """The reward as trainers take it; its workers, if any, start now."""
        from trl_r1zero.trainers.rewards import TRLReward

        reward_fn, workers = self.load_reward(task, prompt)
        return TRLReward(reward_fn, workers=workers, deadline_seconds=self.reward_deadline_seconds)

    def validation_sets(
        self, task: Task, prompt: Prompt
    ) -> dict[str, tuple[str | None, LoadExamples]]:
        """Source and loader of each validation set, by name; the name of a single one is "". A
        ValueError for settings that are not right, or a set whose answers the run's reward does not
        grade."""
        if not isinstance(self.eval_data, list):
            return {"": (self.eval_data, partial(task.load, split="validation"))}
        sets: dict[str, tuple[str | None, LoadExamples]] = {}
        for name, own in named_tasks("eval_data", self.eval_data, _OF_A_SET, self.task).items():
            of_set = task
            if "task" in own or "task_args" in own:
                of_set = get_task(own.get("task", self.task), **own.get("task_args", {}))
            if not self.reward and of_set.reward_fn(prompt) is not task.reward_fn(prompt):
                raise ValueError(
                    f"eval_data {name}: the answers to the task {of_set.name!r} are graded "
                    f"otherwise than those to {task.name!r}; set reward to what grades both, or "
                    "evaluate it after training (trl-r1zero eval)"
                )
            split, limit = own.get("split", of_set.eval_split), own.get("num_examples")
            sets[name] = (own.get("data"), partial(of_set.load, split=split, limit=limit))
        return sets

    def load_validation(
        self, task: Task, prompt: Prompt, rooms: Mapping[str, PromptRoom] | None = None
    ) -> "Dataset | dict[str, Dataset]":
        """The validation problems; of several sets by name. Columns and `rooms` as in
        `load_problems`."""
        sets = {}
        for name, (source, load) in self.validation_sets(task, prompt).items():
            key = f"eval_data.{name}" if name else "eval_data"
            sets[name] = self.load_problems(key, source, load, prompt, rooms)
        return sets.get("", sets)

    def load_problems(
        self,
        name: str,
        source: str | None,
        load: LoadExamples,
        prompt: Prompt,
        rooms: Mapping[str, PromptRoom] | None,
    ) -> "Dataset":
        """The problems of a data set, with columns `prompt` and `ground_truth` among others. Its
        `name` is the recipe's key and that of one of several sets, `source` and `load` are as in
        `validation_sets`; `rooms` are what the context leaves, by the recipe's key: prompts beyond
        it are bad rows."""
        from trl_r1zero.data.rows import build_dataset

        room = (rooms or {}).get(name.partition(".")[0])
        with self.reading(name, source) as bad_rows:
            examples = load(source, on_bad_row=bad_rows)
            if room is not None:
                prompts = [prompt.format(example.question) for example in examples]
                examples = room.keep(examples, prompts, bad_rows)
        return build_dataset(examples, prompt)


@dataclass
class LoadedTask:
    """Prompt, reward, and the data sets with columns `prompt` and `ground_truth`."""

    prompt: Prompt
    reward: "TRLReward"
    train_dataset: "Dataset"
    eval_dataset: "Dataset | dict[str, Dataset]"


# Lists of tasks

# What a task of a list is called; it names a folder, and metrics.
NAME = re.compile(r"\w[\w.@+-]*", re.ASCII)


def named_tasks(
    key: str, entries: Sequence[Any], types: Mapping[str, Any], default_task: str = ""
) -> dict[str, dict[str, Any]]:
    """The settings of each task of a list, which is the value of a recipe's `key`, by name.

    Each entry is a task's name, or a mapping of settings (`types` has those that it may have, and
    their types), of which `name` says what the task is called here; by default as it is called
    everywhere. `default_task` is what an entry without `task` is. A ValueError for an empty list,
    an unknown setting, a value of another type, no task, or a name that is none or is there twice.
    """
    if not entries:
        raise ValueError(f"{key}: got an empty list, expected at least one task")
    found: dict[str, dict[str, Any]] = {}
    for number, entry in enumerate(entries):
        own = {"task": entry} if isinstance(entry, str) else dict(entry)
        place = f"{key}[{number}]"
        name = own.pop("name", str(own.get("task") or default_task).rpartition(".")[2])
        for setting, value in own.items():
            if setting not in types:
                allowed = {"name", *types}
                raise ValueError(f"{place}: {unknown_name_message('setting', setting, allowed)}")
            own[setting] = fit(value, types[setting])
            if own[setting] is MISFIT:
                expected = type_name(types[setting])
                raise ValueError(f"{place}: {setting}: got {value!r}, expected {expected}")
        if not own.get("task", default_task):
            raise ValueError(f"{place}: got {entry!r}, expected a task, such as {{task: aime}}")
        if not isinstance(name, str) or not NAME.fullmatch(name):
            raise ValueError(
                f"{place}: name: got {name!r}, expected letters, digits and any of _.@+-, such as "
                "{name: AIME24, task: aime}"
            )
        if name in found:
            raise ValueError(
                f"{place}: {name!r} is there twice; give one of them another name, such as "
                f"{{name: {name}-2, ...}}"
            )
        found[name] = own
    return found
