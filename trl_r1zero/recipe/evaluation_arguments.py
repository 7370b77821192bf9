"""What to evaluate, how to sample, and where to write, as recipes say it."""

from contextlib import ExitStack
from dataclasses import MISSING, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from trl_r1zero.common.arguments import Count, arg
from trl_r1zero.common.naming import unknown_name_message

from .evaluation_backends import BACKENDS, DEFAULT_BATCH_SIZE, KEYS_OF_BACKENDS, DeferredEngine
from .requirements import check_model_path
from .task_arguments import TaskSelection

# torch and transformers are imported when there is something to evaluate: --help needs neither.
if TYPE_CHECKING:
    from datasets import Dataset

    from trl_r1zero.data.prompts import Prompt
    from trl_r1zero.data.tasks import Task
    from trl_r1zero.generation import SamplingConfig
    from trl_r1zero.grading import Grader


@dataclass
class EvaluationArguments(TaskSelection):
    """Keys of an evaluation.

    Raises:
        ValueError: An unknown backend, a key that the backend has no use for, or a value outside
            its range.
    """

    model: str = arg(MISSING, "Path of a model's folder, or a hub id.", kw_only=True)
    data: str | None = arg(None, "JSON-lines file or hub id (id, id:split) of the problems.")
    split: str | None = arg(
        None,
        "Which of its splits; a file of problems has only one. Unset: the task's own, validation "
        "or test.",
    )
    num_examples: Count | None = arg(None, "The first so many problems. Unset: all.")
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
    min_tokens: int = arg(4, "An answer may end after so many tokens only.")
    n: Count = arg(1, "Answers to each problem; above 1, for pass@k and maj@k.")
    seed: int = arg(0, "Seed of the sampling.")
    output_dir: str | None = arg(None, "Folder of the results. Unset: runs/eval/MODEL/TASK-PROMPT.")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.backend not in BACKENDS:
            raise ValueError(unknown_name_message("backend", self.backend, BACKENDS))
        for name, backends in KEYS_OF_BACKENDS.items():
            if getattr(self, name) is not None and self.backend not in backends:
                raise ValueError(
                    f"{name}: got {getattr(self, name)!r}, but only the backend "
                    f"{' or '.join(backends)} uses it, and backend is {self.backend}; remove it"
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

    def load(self) -> "LoadedEvaluation":
        """Read prompt, data and reward; the model is not loaded yet.

        Raises:
            ValueError: Something that the arguments name does not exist, or a malformed row.
            OSError: The data cannot be read.
        """
        from trl_r1zero.data.rows import build_dataset
        from trl_r1zero.evaluation.environment import environment
        from trl_r1zero.generation import SamplingConfig

        if self.backend != "vllm_server":
            check_model_path(self.model, key="model")
        engine = BACKENDS[self.backend](self)
        task, prompt = self.load_task()
        if prompt.needs_tokenizer:
            prompt = prompt.for_tokenizer(self._tokenizer(engine))
        if task.output_file is not None and self.n > 1:
            raise ValueError(
                f"n: got {self.n}, but {task.output_file} of the task {task.name!r} has one answer "
                "to each question; leave n at 1"
            )
        names = ("temperature", "top_p", "top_k", "min_p", "max_tokens", "min_tokens")
        values = {name: getattr(self, name) for name in names}
        sampling = SamplingConfig(**values, stop=prompt.stop)
        split = self.split or task.eval_split
        examples = build_dataset(task.load(self.data, split, limit=self.num_examples), prompt)
        here = environment()
        return LoadedEvaluation(
            task=task,
            prompt=prompt,
            examples=examples,
            sampling=sampling,
            engine=engine,
            folder=Path(self.output_dir or self._default_folder(prompt)),
            settings=self._settings(split, prompt, here),
            environment=here,
            # Started last, so that an error above leaves no processes behind.
            grader=self._load_grader(task, prompt, examples),
        )

    def _tokenizer(self, engine: DeferredEngine) -> Any:
        if self.backend == "vllm_server":
            return engine.tokenizer  # of a server that runs
        from transformers import AutoTokenizer

        return AutoTokenizer.from_pretrained(self.model)

    def _settings(self, split: str, prompt: "Prompt", here: dict[str, Any]) -> dict[str, Any]:
        """What identifies the evaluation, as far as it is known; `here`: the environment."""
        from trl_r1zero.evaluation.model_files import folder_version, model_version

        # A running server may be on another machine, and has loaded its model already.
        elsewhere = self.backend == "vllm_server"
        settings = {
            "model": self.model,
            **(folder_version(self.model) if elsewhere else model_version(self.model)),
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
        }
        return {name: value for name, value in settings.items() if value is not None}

    def _load_grader(self, task: "Task", prompt: "Prompt", examples: "Dataset") -> "Grader":
        from trl_r1zero.grading import Grader, keep_replies

        # Nothing grades answers to some tasks, unless the recipe has a reward for them.
        if self.reward is None and task.reward_fn(prompt) is None:
            return Grader(keep_replies(prompt.reply))
        reward_fn, workers = self.load_reward(task, prompt)
        grader = Grader(reward_fn, workers=workers, deadline_seconds=self.reward_deadline_seconds)
        with ExitStack() as on_error:
            on_error.callback(grader.close)
            if len(examples) > 0:
                grader.check(examples[0]["ground_truth"])
            on_error.pop_all()
        return grader

    def _default_folder(self, prompt: "Prompt") -> Path:
        path = Path(self.model)
        # Models of runs are called alike (final, checkpoint-100), so their run's name goes first.
        parts = path.resolve().parts[-2:] if path.is_dir() else path.parts[-1:]
        return Path("runs", "eval", "-".join(parts), f"{self.task}-{prompt.name}")


@dataclass
class LoadedEvaluation:
    """All that an evaluation needs; the engine opens when it is asked for the first answer."""

    task: "Task"
    prompt: "Prompt"
    examples: "Dataset"
    grader: "Grader"
    sampling: "SamplingConfig"
    engine: DeferredEngine
    folder: Path
    settings: dict[str, Any]
    environment: dict[str, Any]
