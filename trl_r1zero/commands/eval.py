"""Zero-shot evaluation from a command line or a recipe: `trl-r1zero eval`.

    trl-r1zero eval --model Qwen/Qwen2.5-Math-1.5B --task math --data data/MATH/validation.jsonl
    trl-r1zero eval --config recipes/qwen2.5-math-1.5b/eval-math-r1_zero.yaml [--key value ...]

Every answer is sampled, graded and written as it comes; the same command after a kill goes on where
it was. The folder has results.jsonl, summary.json, report.md and report.html.
"""

import json
import sys
import typing
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NoReturn

from trl_r1zero.data.naming import unknown_name_message
from trl_r1zero.recipe import ParsedRecipe, parse_recipe
from trl_r1zero.recipe.requirements import check_model_path, check_requirements
from trl_r1zero.recipe.task_arguments import TaskSelection
from trl_r1zero.recipe.types import MISFIT, fit, type_name

# torch and transformers are imported when there is something to evaluate: --help needs neither.
if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase

    from trl_r1zero.data.prompts import Prompt
    from trl_r1zero.data.tasks import Task
    from trl_r1zero.evaluation import Evaluation
    from trl_r1zero.evaluation.evaluate import GradeFn
    from trl_r1zero.generation import Completion, Engine, SamplingConfig

_BATCH_SIZE = 64


@dataclass
class EvaluationArguments(TaskSelection):
    """What to evaluate, how to sample, and where to write.

    Raises:
        ValueError: An unknown backend, a key that the backend has no use for, or a value outside
            its range.
    """

    model: str = field(kw_only=True, metadata={"help": "Path of a model's folder, or a hub id."})
    data: str | None = field(
        default=None,
        metadata={"help": "JSON-lines file or hub id (id, id:split) of the problems."},
    )
    split: str | None = field(
        default=None,
        metadata={
            "help": "Which of its splits; a file of problems has only one. Unset: the task's own, "
            "validation or test."
        },
    )
    num_examples: int | None = field(
        default=None, metadata={"help": "The first so many problems. Unset: all."}
    )
    backend: str = field(
        default="vllm",
        metadata={
            "help": "What samples. transformers: this process; vllm: a vLLM server of its own; "
            "vllm_offline: vLLM in this process; vllm_server: the server at server_url."
        },
    )
    dtype: Literal["auto", "bfloat16", "float16", "float32"] = field(
        default="auto", metadata={"help": "Of weights and activations. auto: the model's own."}
    )
    server: dict[str, Any] | None = field(
        default=None,
        metadata={
            "help": "More settings of vLLM for the backends vllm (the keys of `trl-r1zero serve`) "
            "and vllm_offline, such as {max_model_len: 2048}."
        },
    )
    server_url: str | None = field(
        default=None,
        metadata={"help": "Of a running server, for vllm_server, such as http://127.0.0.1:8000."},
    )
    batch_size: int | None = field(
        default=None,
        metadata={"help": f"Answers at a time, for transformers. Unset: {_BATCH_SIZE}."},
    )
    temperature: float = field(default=1.0, metadata={"help": "0 is greedy."})
    top_p: float = field(default=1.0, metadata={"help": "Nucleus sampling; 1 is all tokens."})
    top_k: int = field(default=0, metadata={"help": "The likeliest tokens only; 0 is all."})
    min_p: float = field(
        default=0.0,
        metadata={"help": "Tokens of at least this share of the likeliest one's probability."},
    )
    max_tokens: int = field(default=1024, metadata={"help": "An answer ends here at the latest."})
    min_tokens: int = field(
        default=4, metadata={"help": "An answer may end after so many tokens only."}
    )
    n: int = field(
        default=1, metadata={"help": "Answers to each problem; above 1, for pass@k and maj@k."}
    )
    seed: int = field(default=0, metadata={"help": "Seed of the sampling."})
    output_dir: str | None = field(
        default=None,
        metadata={"help": "Folder of the results. Unset: runs/eval/MODEL/TASK-PROMPT."},
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.backend not in BACKENDS:
            raise ValueError(unknown_name_message("backend", self.backend, BACKENDS))
        for key, backends in _KEYS_OF_BACKENDS.items():
            if getattr(self, key) is not None and self.backend not in backends:
                raise ValueError(
                    f"{key}: got {getattr(self, key)!r}, but only the backend "
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
        for key in ("n", "num_examples", "batch_size"):
            value = getattr(self, key)
            if value is not None and value < 1:
                raise ValueError(f"{key}: got {value}, expected at least 1")

    def load(self) -> "LoadedEvaluation":
        """Read prompt, data and reward; the model is not loaded yet.

        Raises:
            ValueError: Something that the arguments name does not exist, or a malformed row.
            OSError: The data cannot be read.
        """
        from trl_r1zero.data.rows import build_dataset
        from trl_r1zero.evaluation import keep_replies, make_grader
        from trl_r1zero.evaluation.environment import environment
        from trl_r1zero.evaluation.grading import PooledGrader, check_grader
        from trl_r1zero.evaluation.model_files import folder_version, model_version
        from trl_r1zero.generation import SamplingConfig

        if self.backend != "vllm_server":
            check_model_path(self.model, key="model")
        open_engine = BACKENDS[self.backend].prepare(self)
        task, prompt = self.load_task()
        self._require_one_answer(task)
        # Nothing grades answers to some tasks, unless the recipe has a reward for them.
        is_graded = self.reward is not None or task.reward_fn(prompt) is not None
        graded_by = self.load_reward(task, prompt) if is_graded else None
        split = self.split or task.eval_split
        sampling = SamplingConfig(
            temperature=self.temperature,
            top_p=self.top_p,
            top_k=self.top_k,
            min_p=self.min_p,
            max_tokens=self.max_tokens,
            min_tokens=self.min_tokens,
            stop=prompt.stop,
        )
        examples = build_dataset(task.load(self.data, split, limit=self.num_examples), prompt)
        here, elsewhere = environment(), self.backend == "vllm_server"
        # A server that runs may be on another machine, and has loaded its model already.
        version = folder_version(self.model) if elsewhere else model_version(self.model)
        settings = {
            "model": self.model,
            **version,
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
        # Started last, so that an error above leaves no processes behind.
        grade: GradeFn
        if graded_by is None:
            grade = keep_replies(prompt.reply)
        elif graded_by[1] == 0:
            grade = make_grader(graded_by[0])
        else:
            grade = PooledGrader(
                graded_by[0],
                workers=graded_by[1],
                deadline_seconds=self.reward_deadline_seconds,
            )
        with ExitStack() as stack:
            if isinstance(grade, PooledGrader):
                stack.callback(grade.close)
            if len(examples) > 0:
                check_grader(grade, examples[0]["ground_truth"])
            stack.pop_all()  # whoever runs it closes it
        return LoadedEvaluation(
            task=task,
            prompt=prompt,
            examples=examples,
            grade=grade,
            sampling=sampling,
            engine=DeferredEngine(BACKENDS[self.backend].engine_name, open_engine),
            folder=Path(self.output_dir or self._default_folder(prompt)),
            settings={name: value for name, value in settings.items() if value is not None},
            environment=here,
        )

    def _require_one_answer(self, task: "Task") -> None:
        if task.output_file is not None and self.n > 1:
            raise ValueError(
                f"n: got {self.n}, but {task.output_file} of the task {task.name!r} has one answer "
                "to each question; leave n at 1"
            )

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
    grade: "GradeFn"
    sampling: "SamplingConfig"
    engine: "DeferredEngine"
    folder: Path
    settings: dict[str, Any]
    environment: dict[str, Any]


# Backends


class DeferredEngine:
    """An `Engine` that is opened when it is needed: an evaluation that has all its answers, or
    whose folder is not its own, does not wait for a model."""

    def __init__(self, name: str, open_engine: "Callable[[], Engine]") -> None:
        self.name = name
        self._open = open_engine

    @cached_property
    def engine(self) -> "Engine":
        return self._open()

    @property
    def tokenizer(self) -> "PreTrainedTokenizerBase":
        return self.engine.tokenizer

    def stream(
        self,
        prompt_ids: Sequence[Sequence[int]],
        sampling: "SamplingConfig",
        seeds: Sequence[int],
    ) -> "Iterator[tuple[int, Completion]]":
        return self.engine.stream(prompt_ids, sampling, seeds)

    def close(self) -> None:
        if "engine" in vars(self):
            self.engine.close()


@dataclass(frozen=True)
class Backend:
    """What samples.

    Attributes:
        engine_name: The `name` of its engine.
        prepare: Checks the arguments at once, and returns what opens the engine.
    """

    engine_name: str
    prepare: "Callable[[EvaluationArguments], Callable[[], Engine]]"


def _device() -> str:
    """Where transformers samples; an error, or a warning, if that is the CPU beside a GPU."""
    from accelerate.utils import parse_flag_from_env

    from trl_r1zero.devices import machine_facts
    from trl_r1zero.devices.facts import check_accelerator

    machine, use_cpu = machine_facts(), parse_flag_from_env("ACCELERATE_USE_CPU")
    warning = check_accelerator(machine, use_cpu, setting="ACCELERATE_USE_CPU=true")
    if warning is not None:
        print(f"warning: {warning}", file=sys.stderr)
    return "cuda" if machine.devices and not use_cpu else "cpu"


def _transformers(arguments: EvaluationArguments) -> "Callable[[], Engine]":
    device = _device()

    def open_engine() -> "Engine":
        from transformers import AutoModelForCausalLM, AutoTokenizer

        from trl_r1zero.generation import TransformersEngine

        tokenizer = AutoTokenizer.from_pretrained(arguments.model, padding_side="left")
        if tokenizer.pad_token_id is None:
            tokenizer.pad_token = tokenizer.eos_token
        model: Any = AutoModelForCausalLM.from_pretrained(arguments.model, dtype=arguments.dtype)
        return TransformersEngine(
            model.to(device),
            tokenizer,
            batch_size=arguments.batch_size or _BATCH_SIZE,
        )

    return open_engine


def _vllm(arguments: EvaluationArguments) -> "Callable[[], Engine]":
    from trl_r1zero.generation.vllm_client import VLLMServerEngine
    from trl_r1zero.generation.vllm_server import VLLMServerConfig, is_cpu_build

    is_cpu_build()  # an error if there is no vLLM
    given = _settings_of_vllm(arguments)
    try:
        # Nobody is to replace the weights of this server.
        config = VLLMServerConfig.from_settings({"weight_transfer": "none", **given})
    except ValueError as error:
        raise ValueError(f"server: {error}") from error
    return lambda: VLLMServerEngine.start(arguments.model, config)


def _vllm_offline(arguments: EvaluationArguments) -> "Callable[[], Engine]":
    from trl_r1zero.generation.vllm_offline import OfflineVLLMEngine
    from trl_r1zero.generation.vllm_server import is_cpu_build

    is_cpu_build()
    given = _settings_of_vllm(arguments)
    types = typing.get_type_hints(OfflineVLLMEngine.load)
    types = {name: hint for name, hint in types.items() if name not in ("model", "return")}
    for key, value in given.items():
        if key not in types:
            raise ValueError("server: " + unknown_name_message("setting", key, types))
        if fit(value, types[key]) is MISFIT:
            raise ValueError(f"server: {key} must be {type_name(types[key])}, got {value!r}")
    return lambda: OfflineVLLMEngine.load(arguments.model, **given)


def _vllm_server(arguments: EvaluationArguments) -> "Callable[[], Engine]":
    from trl_r1zero.generation.vllm_client import VLLMServerEngine
    from trl_r1zero.generation.vllm_server import VLLMServerError

    url = arguments.server_url or ""

    def open_engine() -> "Engine":
        engine = VLLMServerEngine(url)
        if not _same_model(engine.model, arguments.model):
            raise VLLMServerError(
                f"the server at {url} serves {engine.model!r}, but model is {arguments.model!r}; "
                "results are filed under the model's name, so give the one that is served"
            )
        return engine

    return open_engine


# To add a backend, add a line.
BACKENDS = {
    "transformers": Backend("transformers", _transformers),
    "vllm": Backend("vllm-server", _vllm),
    "vllm_offline": Backend("vllm", _vllm_offline),
    "vllm_server": Backend("vllm-server", _vllm_server),
}
# Keys that only some backends have a use for.
_KEYS_OF_BACKENDS = {
    "server": ("vllm", "vllm_offline"),
    "server_url": ("vllm_server",),
    "batch_size": ("transformers",),
}


def _settings_of_vllm(arguments: EvaluationArguments) -> dict[str, Any]:
    given = arguments.server or {}
    if "dtype" in given:
        raise ValueError("server: got dtype, which is a key of its own; write it as `dtype: ...`")
    return {"dtype": arguments.dtype, **given}


def _same_model(served: str, named: str) -> bool:
    return served == named or (
        Path(named).is_dir() and Path(served).resolve() == Path(named).resolve()
    )


# The command


def run(loaded: LoadedEvaluation, recipe: ParsedRecipe) -> "Evaluation":
    """Sample, grade and write; see `evaluation.evaluate`."""
    from trl_r1zero.evaluation import evaluate
    from trl_r1zero.evaluation.grading import PooledGrader
    from trl_r1zero.evaluation.results_folder import EVALUATION_FILE

    arguments = recipe.instances[0]
    with ExitStack() as stack:
        stack.callback(loaded.engine.close)
        if isinstance(loaded.grade, PooledGrader):
            stack.callback(loaded.grade.close)
        # Those of the first start stay when the evaluation goes on.
        if not (loaded.folder / EVALUATION_FILE).exists():
            recipe.write(loaded.folder / "recipe.yaml")
            (loaded.folder / "environment.json").write_text(
                json.dumps(loaded.environment, indent=2) + "\n", encoding="utf-8"
            )
        evaluation = evaluate(
            loaded.engine,
            loaded.examples,
            loaded.grade,
            loaded.sampling,
            num_completions=arguments.n,
            seed=arguments.seed,
            folder=loaded.folder,
            settings=loaded.settings,
        )
    if loaded.task.output_file is not None:
        _write_outputs(loaded.folder / loaded.task.output_file, loaded, evaluation)
    return evaluation


def _write_outputs(path: Path, loaded: LoadedEvaluation, evaluation: "Evaluation") -> None:
    """Write the task's `output_file`."""
    from trl_r1zero.evaluation.files import json_line, json_text, write_atomically

    outputs = [
        loaded.task.output_row(
            row.extra["question"],
            loaded.prompt.reply(row.response),
            row.extra["metadata"],
            loaded.settings["model"],
        )
        for row in evaluation.rows
    ]
    is_lines = path.suffix == ".jsonl"
    write_atomically(path, b"".join(map(json_line, outputs)) if is_lines else json_text(outputs))


def main(argv: Sequence[str] | None = None, program: str = "trl-r1zero eval") -> None:
    """Evaluate as a command line says, and print the results.

    Args:
        argv: The arguments; those of this process by default.
        program: What messages call the program.
    """
    try:
        check_requirements()
        recipe = parse_recipe(
            (EvaluationArguments,),
            list(sys.argv[1:] if argv is None else argv),
            description=__doc__ or "",
            program=program,
        )
        loaded = recipe.instances[0].load()
    except (ValueError, OSError, RuntimeError) as error:
        _fail(program, error)
    from trl_r1zero.evaluation import results_table
    from trl_r1zero.evaluation.results_folder import ResultsFolderError
    from trl_r1zero.generation.vllm_server import VLLMServerError

    print(
        f"Evaluating {loaded.settings['model']} on {len(loaded.examples):,} examples of "
        f"{loaded.settings['task']}, results in {loaded.folder}",
        flush=True,
    )
    try:
        evaluation = run(loaded, recipe)
    except (ResultsFolderError, VLLMServerError) as error:
        _fail(program, error)
    print(results_table(evaluation.summary))
    files = ["results.jsonl", "summary.json", loaded.task.output_file]
    print(f"\n{loaded.folder}: report.html and report.md to read, {', '.join(filter(None, files))}")


def _fail(program: str, error: Exception) -> NoReturn:
    """End with a message: what is wrong is not in this program."""
    print(
        "\n".join([f"{program}: error: {error}", *vars(error).get("__notes__", [])]),
        file=sys.stderr,
    )
    raise SystemExit(2) from None
