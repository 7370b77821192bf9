"""What to evaluate, how to sample, and where to write, as recipes say it."""

import typing
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import MISSING, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from trl_r1zero.common.arguments import Count, arg
from trl_r1zero.common.naming import unknown_name_message
from trl_r1zero.data.prompts import load_prompt
from trl_r1zero.data.tasks import TASKS

from .evaluation_backends import (
    BACKENDS,
    DEFAULT_BATCH_SIZE,
    KEYS_OF_BACKENDS,
    DeferredEngine,
    prompt_room,
    tokenizer_of,
)
from .requirements import check_model_path
from .task_arguments import TaskSelection, named_tasks

# torch and transformers are imported when there is something to evaluate: --help needs neither.
if TYPE_CHECKING:
    from datasets import Dataset

    from trl_r1zero.data.prompts import Prompt
    from trl_r1zero.data.tasks import Example, Task
    from trl_r1zero.generation import SamplingConfig
    from trl_r1zero.grading import Grader

# What the tasks of a list cannot have for their own: one engine answers all of them.
_OF_ALL_TASKS = {*("model", "backend", "dtype", "server", "server_url", "batch_size", "output_dir")}


@dataclass
class EvaluationArguments(TaskSelection):
    """Keys of an evaluation. A ValueError for an unknown backend, a key that the backend has no use
    for, or a value outside its range."""

    task: str | list[str | dict[str, Any]] = arg(  # type: ignore[assignment]
        "math",
        f"One of {', '.join(TASKS)}, or the dotted path of a Task. Or a list of them, for a suite: "
        "names, or mappings {name: AIME24, task: aime, n: 16, ...} with any keys of their own but "
        "those of model, backend and output_dir.",
    )
    model: str = arg(MISSING, "Path of a model's folder, or a hub id.", kw_only=True)
    data: str | None = arg(
        None, "JSON-lines file or hub id (id, id:split) of the problems. Unset: the task's own."
    )
    split: str | None = arg(
        None,
        "Which of its splits; a file of problems has only one. Unset: the task's own, validation "
        "or test.",
    )
    num_examples: Count | None = arg(None, "The first so many usable problems. Unset: all.")
    backend: str = arg(
        "vllm",
        "What samples. transformers: this process; vllm: a vLLM server of its own; vllm_offline: "
        "vLLM in this process; vllm_server: the server at server_url.",
    )
    dtype: Literal["auto", "bfloat16", "float16", "float32"] = arg(
        "auto", "Of weights and activations. auto: the model's own."
    )
    server: dict[str, Any] | None = arg(
        None,
        "More settings of vLLM for the backends vllm (the keys of `trl-r1zero serve`) and "
        "vllm_offline, such as {max_model_len: 2048}.",
    )
    server_url: str | None = arg(
        None, "Of a running server, for vllm_server, such as http://127.0.0.1:8000."
    )
    batch_size: Count | None = arg(
        None, f"Answers at a time, for transformers. Unset: {DEFAULT_BATCH_SIZE}."
    )
    temperature: float = arg(1.0, "0 is greedy.")
    top_p: float = arg(1.0, "Nucleus sampling; 1 is all tokens.")
    top_k: int = arg(0, "The likeliest tokens only; 0 is all.")
    min_p: float = arg(0.0, "Tokens of at least this share of the likeliest one's probability.")
    max_tokens: int = arg(1024, "An answer ends here at the latest.")
    min_tokens: int = arg(
        4,
        "An answer may end after so many tokens only. The default is max_tokens at most.",
    )
    n: Count = arg(1, "Answers to each problem; above 1, for avg@k, pass@k and maj@k.")
    seed: int = arg(0, "Seed of the sampling.")
    output_dir: str | None = arg(
        None,
        "Folder of the results. Unset: runs/eval/MODEL/TASK-PROMPT, runs/eval/MODEL/suite for a "
        "list of tasks.",
    )

    def __post_init__(self) -> None:
        if isinstance(self.task, list):
            self.parts()  # each checks itself
            return
        super().__post_init__()
        if self.backend not in BACKENDS:
            raise ValueError(unknown_name_message("backend", self.backend, BACKENDS))
        for name, backends in KEYS_OF_BACKENDS.items():
            if getattr(self, name) is not None and self.backend not in backends:
                raise ValueError(
                    f"{name}: got {getattr(self, name)!r}, but only the backend "
                    f"{' or '.join(backends)} uses it, and backend is {self.backend}; remove it"
                )
        task, _ = self.load_task()
        if task.output_file is not None and self.n > 1:
            raise ValueError(
                f"n: got {self.n}, but {task.output_file} of the task {task.name!r} has one answer "
                "to each question; leave n at 1"
            )
        if self.n > 1 and self.temperature == 0:
            raise ValueError(
                f"n: got {self.n}, but at temperature 0 all answers to a problem are the same; set "
                "temperature above 0, or n to 1"
            )
        if self.backend == "vllm_server" and not self.server_url:
            raise ValueError(
                "server_url is not set; give the address of the server, or use the backend vllm, "
                "which starts one of its own"
            )
        if self.backend == "vllm_server" and self.dtype != "auto":
            raise ValueError(
                f"dtype: got {self.dtype!r}, but the server at server_url has a dtype already; "
                "remove it"
            )

    @property
    def folder(self) -> Path:
        """Where the results go; of a suite, the folder of its tasks' folders."""
        if self.output_dir:
            return Path(self.output_dir)
        path = Path(self.model)
        # Models of runs are called alike (final, checkpoint-100), so their run's name goes first.
        parts = path.resolve().parts[-2:] if path.is_dir() else path.parts[-1:]
        if isinstance(self.task, str):
            name = f"{self.task}-{self.load_task()[1].name}"
        else:
            name = "-".join(filter(None, ("suite", self.prompt and load_prompt(self.prompt).name)))
        return Path("runs", "eval", "-".join(parts), name)

    def parts(self) -> dict[str, "EvaluationArguments"]:
        """The evaluation of each task of a suite, by name; a ValueError as of
        `EvaluationArguments`, whose text begins with the task's name."""
        assert isinstance(self.task, list)
        types = typing.get_type_hints(type(self))
        own_types = {name: types[name] for name in types if name not in _OF_ALL_TASKS}
        parts = {}
        for name, own in named_tasks("task", self.task, {**own_types, "task": str}).items():
            try:
                parts[name] = replace(self, **own, output_dir=str(self.folder / name))
            except ValueError as error:
                raise ValueError(f"task {name}: {error}") from error
        return parts

    def load(self) -> "LoadedEvaluation":
        """Read prompt, data and reward of one task; the model is not loaded yet. A ValueError if
        something that the arguments name does not exist, or rows cannot be used; an OSError if the
        data cannot be read."""
        return self._load(_EvaluatedModel(self))

    def load_suite(self) -> dict[str, "LoadedEvaluation"]:
        """`load` for each task of a suite, all on one engine."""
        model = _EvaluatedModel(self)
        loaded: dict[str, LoadedEvaluation] = {}
        with ExitStack() as on_error:
            for name, part in self.parts().items():
                loaded[name] = part._load(model)
                on_error.callback(loaded[name].grader.close)
            on_error.pop_all()
        return loaded

    def _load(self, model: "_EvaluatedModel") -> "LoadedEvaluation":
        from trl_r1zero.data.rows import build_dataset

        task, prompt = self._load_task_for(model)
        sampling = self.sampling_for(prompt)
        split = self.split or task.eval_split
        with self.reading("data", self.data) as bad_rows, ExitStack() as on_error:
            examples = task.load(self.data, split, self.num_examples, bad_rows)
            # Before the tokenizer is used, whose threads do not survive a fork.
            grader = on_error.enter_context(self._load_grader(task, prompt, examples))
            if (room := prompt_room(self, model.engine)) is not None:
                prompts = [prompt.format(example.question) for example in examples]
                examples = room.keep(examples, prompts, bad_rows)
            bad_rows.check()
            dataset = build_dataset(examples, prompt)
            on_error.pop_all()
        return LoadedEvaluation(
            arguments=self,
            task=task,
            prompt=prompt,
            examples=dataset,
            sampling=sampling,
            engine=model.engine,
            folder=self.folder,
            settings=self._settings(split, prompt, model),
            environment=model.environment,
            grader=grader,
        )

    @contextmanager
    def open_model(self) -> "Iterator[tuple[DeferredEngine, Prompt, Grader]]":
        """What answers, formats and grades any question, without data; errors as of `load`."""
        model = _EvaluatedModel(self)
        task, prompt = self._load_task_for(model)
        with closing(model.engine), self._load_grader(task, prompt, ()) as grader:
            yield model.engine, prompt, grader

    def sampling_for(self, prompt: "Prompt") -> "SamplingConfig":
        """How answers to this prompt are sampled."""
        from trl_r1zero.generation import SamplingConfig

        names = ("temperature", "top_p", "top_k", "min_p", "max_tokens", "min_tokens")
        return SamplingConfig(**{name: getattr(self, name) for name in names}, stop=prompt.stop)

    def _load_task_for(self, model: "_EvaluatedModel") -> "tuple[Task, Prompt]":
        task, prompt = self.load_task()
        if prompt.needs_tokenizer:
            prompt = prompt.for_tokenizer(tokenizer_of(self, model.engine))
        return task, prompt

    def _settings(self, split: str, prompt: "Prompt", model: "_EvaluatedModel") -> dict[str, Any]:
        """What identifies the evaluation, as far as it is known."""
        elsewhere, here = model.elsewhere, model.environment
        settings = {
            "model": self.model,
            **model.version,
            "task": self.task,
            "task_args": self.task_args,
            "data": self.data,
            "split": split,
            "prompt": prompt.name,
            "backend": self.backend,
            "dtype": None if elsewhere else self.dtype,
            "server": self.server,
            "device": None if elsewhere else here["device"],
            "versions": {"python": here["python"], **here["packages"]},
            "skipped_rows": self.skipped_rows.get("data"),
        }
        return {name: value for name, value in settings.items() if value is not None}

    def _load_grader(
        self, task: "Task", prompt: "Prompt", examples: "Sequence[Example]"
    ) -> "Grader":
        from trl_r1zero.grading import Grader, keep_replies

        # Nothing grades answers to some tasks, unless the recipe has a reward for them.
        if self.reward is None and task.reward_fn(prompt) is None:
            return Grader(keep_replies(prompt.reply))
        reward_fn, workers = self.load_reward(task, prompt)
        grader = Grader(reward_fn, workers=workers, deadline_seconds=self.reward_deadline_seconds)
        with ExitStack() as on_error:
            on_error.callback(grader.close)
            if examples:
                grader.check(examples[0].ground_truth)
            on_error.pop_all()
        return grader


class _EvaluatedModel:
    """What the tasks of a suite share: what answers, which version it is of, and the environment. A
    ValueError if there is no such model, or the backend cannot be used."""

    def __init__(self, arguments: EvaluationArguments) -> None:
        # A running server may be on another machine, and has loaded its model already.
        self.elsewhere = arguments.backend == "vllm_server"
        self.name = arguments.model
        if not self.elsewhere:
            check_model_path(self.name, key="model")
        self.engine = BACKENDS[arguments.backend](arguments)

    @cached_property
    def version(self) -> dict[str, Any]:
        """See `model_version`; it takes its time."""
        from trl_r1zero.evaluation.environment import folder_version, model_version

        return folder_version(self.name) if self.elsewhere else model_version(self.name)

    @cached_property
    def environment(self) -> dict[str, Any]:
        from trl_r1zero.evaluation.environment import environment

        return environment()


@dataclass
class LoadedEvaluation:
    """All that an evaluation needs; the engine opens when it is asked for the first answer."""

    arguments: EvaluationArguments
    task: "Task"
    prompt: "Prompt"
    examples: "Dataset"
    grader: "Grader"
    sampling: "SamplingConfig"
    engine: DeferredEngine
    folder: Path
    settings: dict[str, Any]
    environment: dict[str, Any]

    def evaluate_arguments(self) -> dict[str, Any]:
        """What `evaluation.evaluate` takes."""
        return {
            "engine": self.engine,
            "examples": self.examples,
            "grader": self.grader,
            "sampling": self.sampling,
            "num_completions": self.arguments.n,
            "seed": self.arguments.seed,
            "folder": self.folder,
            "settings": self.settings,
        }
