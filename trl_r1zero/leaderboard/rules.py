"""The rules of the boards, as data, and the checks that need no more than what a recipe says.

A rule is a `Check`: what is allowed, what was found, and whether that is allowed. The same checks
are made before a run (`check_settings`, `check_facts`), so that no hours are spent on what cannot
count, and over the files of a submission (`verify`).
"""

import hashlib
import json
import unicodedata
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from trl_r1zero.naming import unknown_name_message

QUESTION_HASH_DIGITS = 16


@dataclass(frozen=True)
class Board:
    """The rules of one board.

    Attributes:
        name: A key of `BOARDS`.
        title: What its table is called.
        task: The task, a key of `TASKS`, with its own settings of the validation problems.
        model: The hub id of the weights that training starts from; None: any weights of the
            architecture and size below, such as one trained on the spot.
        architecture: The class of the model, as its config.json names it.
        num_parameters: Of the model, tied ones once; None: the hub id says enough.
        num_problems: Validation problems, all of which are answered once.
        validation_sha256: Of their questions and answers (`rows_sha256`); None: not known here, so
            that it is recorded and compared between submissions only.
        prompt: A built-in prompt.
        prompt_sha256: Of its template.
        temperature, top_p: Of the validation's sampling, of all tokens (no top-k, no min-p).
        seed: Of the validation's sampling, so that nobody draws again.
        max_tokens: New tokens of a response at most.
        reward: The name of the reward function in `REWARDS` that grades.
        budget_seconds: Wall-clock from the start of the first process to the end of the last use of
            a weight.
        max_gpus: GPUs of trainers and servers together.
        max_repeated: How many of the problems may repeat another's question, as `question_hash`
            compares them: where the code does not know the official file, it may do so.
    """

    name: str
    title: str
    task: str
    model: str | None
    architecture: str
    num_parameters: int | None
    num_problems: int
    validation_sha256: str | None
    prompt: str
    prompt_sha256: str
    max_tokens: int
    budget_seconds: float
    max_gpus: int
    temperature: float = 1.0
    top_p: float = 1.0
    seed: int = 0
    reward: str = "r1_zero"
    max_repeated: int = 0


BOARDS = {
    "math": Board(
        name="math",
        title="MATH with Qwen2.5-Math-1.5B, 4 hours on 2 GPUs",
        task="math",
        model="Qwen/Qwen2.5-Math-1.5B",
        architecture="Qwen2ForCausalLM",
        num_parameters=None,
        num_problems=5000,
        validation_sha256=None,
        prompt="r1_zero",
        prompt_sha256="56213732da87e12ace60a2b88a16df0af18280fb0563a957cbecc938a6a2ac0e",
        max_tokens=1024,
        budget_seconds=4 * 3600.0,
        max_gpus=2,
        max_repeated=50,
    ),
    "embedded": Board(
        name="embedded",
        title="The embedded task with 0.6M parameters, 4 minutes on a CPU",
        task="chain_arithmetic",
        model=None,
        architecture="Qwen2ForCausalLM",
        num_parameters=632_448,
        num_problems=512,
        validation_sha256="099d2b5a5d62295d8761871e1485b8215bebc9bdbd5025c6c27cf48b9831c74f",
        prompt="chain_arithmetic",
        prompt_sha256="ddd0d7b12d04805cd63dc918a9c949543abe12efb3329f13419f0eb7f5f35b44",
        max_tokens=64,
        budget_seconds=4 * 60.0,
        max_gpus=0,
    ),
}


def get_board(name: str) -> Board:
    """The board of that name.

    Raises:
        ValueError: There is none.
    """
    if name not in BOARDS:
        raise ValueError(unknown_name_message("board", name, BOARDS))
    return BOARDS[name]


@dataclass(frozen=True)
class Check:
    """One rule, held against what was found.

    Attributes:
        rule: Its name, such as `sampling`.
        allowed: What it allows, in words.
        evidence: What was found, in words.
        holds: Whether that is allowed.
        advice: What to do where it does not hold; may be empty.
    """

    rule: str
    allowed: str
    evidence: str
    holds: bool
    advice: str = ""


class RuleBrokenError(ValueError):
    """A run that cannot count."""


def require_all(checks: Iterable[Check]) -> None:
    """Raise a RuleBrokenError that names every rule that does not hold."""
    broken = [check for check in checks if not check.holds]
    if broken:
        raise RuleBrokenError(
            "this run would break the rules of the leaderboard:\n"
            + "\n".join(
                f"  {check.rule}: got {check.evidence}; allowed: {check.allowed}. {check.advice}"
                for check in broken
            )
        )


# Fingerprints


def sha256_of(content: str | bytes) -> str:
    return hashlib.sha256(content.encode() if isinstance(content, str) else content).hexdigest()


def question_hash(question: str) -> str:
    """64 bits of the sha256 of a question without its white space, in lower case, with Unicode's
    compatibility forms made one: two that differ in these alone are the same question."""
    plain = "".join(unicodedata.normalize("NFKC", question).casefold().split())
    return sha256_of(plain)[:QUESTION_HASH_DIGITS]


def rows_sha256(rows: Iterable[tuple[str, Any]]) -> str:
    """Of questions and their ground truths, in whatever order they stand."""
    return sha256_of("\n".join(sorted(json.dumps(row, ensure_ascii=False) for row in rows)))


def inputs_sha256(facts: Mapping[str, Any]) -> str:
    """Of what all starts of a run must have in common: weights, data, prompt and reward."""
    inputs = [
        facts["model"]["weights"],
        facts["training"]["sha256"],
        facts["validation"]["sha256"],
        facts["prompt"]["sha256"],
        facts["reward"],
    ]
    return sha256_of(json.dumps(inputs, sort_keys=True))


# What a recipe says


def validation_sampling(values: Mapping[str, Any]) -> dict[str, Any]:
    """How a recipe's validation samples, from the values of a GRPO recipe's keys."""
    limit = values["eval_max_completion_length"]
    return {
        "temperature": values["eval_temperature"],
        "top_p": values["eval_top_p"],
        "top_k": values["top_k"] or 0,
        "min_p": values["min_p"] or 0.0,
        "seed": values["eval_seed"],
        "max_tokens": values["max_completion_length"] if limit is None else limit,
        "min_tokens": values["min_tokens"],
    }


def check_settings(board: Board, values: Mapping[str, Any]) -> list[Check]:
    """The rules that a recipe's values alone can break.

    Args:
        board: The rules.
        values: The value of each key of the recipe, defaults included.
    """
    sampling = validation_sampling(values)
    wanted = {
        "temperature": board.temperature,
        "top_p": board.top_p,
        "top_k": 0,
        "min_p": 0.0,
        "seed": board.seed,
    }
    found = {name: sampling[name] for name in wanted}
    return [
        Check(
            "task",
            board.task,
            str(values["task"]),
            values["task"] == board.task,
            f"Set task: {board.task}, or choose another board.",
        ),
        _check_loading(board, values),
        Check(
            "sampling",
            _listed(wanted),
            _listed(found),
            found == wanted,
            "Set eval_temperature, eval_top_p, top_k, min_p and eval_seed so.",
        ),
        Check(
            "tokens",
            f"{board.max_tokens} new tokens at most",
            f"{sampling['max_tokens']}",
            sampling["max_tokens"] == board.max_tokens,
            f"Set eval_max_completion_length: {board.max_tokens} (unset, it is "
            "max_completion_length).",
        ),
    ]


def _check_loading(board: Board, values: Mapping[str, Any]) -> Check:
    """That the weights which are loaded are those that `model_facts` hashes."""
    revision, kwargs = values["model_revision"], values["model_init_kwargs"]
    holds = not kwargs and (board.model is None or revision == "main")
    return Check(
        "weights",
        "model_init_kwargs unset"
        + (", model_revision main" if board.model is not None else "")
        + ", so that training starts from the weights whose hash is recorded",
        f"model_init_kwargs {kwargs or 'unset'}, model_revision {revision}",
        holds,
        "Remove them from the recipe; dtype and attn_implementation are keys of their own.",
    )


def check_run_settings(values: Mapping[str, Any]) -> list[Check]:
    """What the runner needs besides the rules, or it could not stop in time or count the GPUs."""
    own_server = not values["use_vllm"] or values["vllm_server"] is not None
    return [
        Check(
            "validations",
            "some while training, which tell how long the full evaluation will take",
            f"eval_every: {values['eval_every']}",
            values["eval_every"] is not None,
            "Set eval_every to a number of GRPO steps.",
        ),
        Check(
            "server",
            "one that the run starts itself, for its GPUs are counted",
            "vllm_server" if own_server else "a server that somebody else runs",
            own_server,
            "Set vllm_server, {} for all defaults.",
        ),
    ]


# What a run starts with


def check_facts(board: Board, facts: Mapping[str, Any]) -> list[Check]:
    """The rules about what a run starts with; see `collect_facts`."""
    return [
        check_model(board, facts["model"]),
        check_validation(board, facts["validation"]),
        check_prompt(board, facts["prompt"]),
        check_hardware(board, facts["hardware"]),
        Check(
            "reward",
            board.reward,
            facts["reward"],
            facts["reward"] == board.reward,
            f"Set reward: {board.reward}, or leave it unset.",
        ),
    ]


def check_model(board: Board, model: Mapping[str, Any]) -> Check:
    name, size = model["name"], model["num_parameters"]
    weights = sha256_of(json.dumps(model["weights"], sort_keys=True))[:12]
    evidence = f"{name} ({model['architecture']}, {size:,} parameters, weights {weights}...)"
    advice = f"Set model_name_or_path: {board.model}."
    if board.model is not None:
        revision = model["revision"]
        evidence += f", revision {revision}"
        allowed = f"{board.model} from the Hugging Face Hub"
        holds = name == board.model and bool(revision) and bool(model["weights"])
    else:
        allowed = f"any weights of {board.architecture} with {board.num_parameters:,} parameters"
        holds = size == board.num_parameters and bool(model["weights"])
        advice = "Set model_name_or_path to a base policy such as `make quickstart` makes."
    holds = holds and model["architecture"] == board.architecture
    return Check("model", allowed, evidence, holds, advice)


def check_validation(board: Board, validation: Mapping[str, Any]) -> Check:
    """`validation` has `num_rows`, `num_distinct` and `sha256` of the problems."""
    number, distinct, sha = (validation[key] for key in ("num_rows", "num_distinct", "sha256"))
    allowed = f"all {board.num_problems:,} validation problems, each once"
    holds = number == board.num_problems and number - distinct <= board.max_repeated
    if board.max_repeated:
        allowed += f", at most {board.max_repeated} of which repeat a question"
    if board.validation_sha256 is not None:
        allowed += f", sha256 {board.validation_sha256[:12]}..."
        holds = holds and sha == board.validation_sha256
    return Check(
        "validation problems",
        allowed,
        f"{number:,} problems, {distinct:,} different ones, sha256 {sha[:12]}...",
        holds,
        "Set eval_data to the file of all validation problems, and leave the task's settings of "
        "its validation problems as they are.",
    )


def check_prompt(board: Board, prompt: Mapping[str, Any]) -> Check:
    return Check(
        "prompt",
        f"{board.prompt}, sha256 {board.prompt_sha256[:12]}...",
        f"{prompt['name']}, sha256 {prompt['sha256'][:12]}...",
        prompt["sha256"] == board.prompt_sha256,
        f"Set prompt: {board.prompt}.",
    )


def check_overlap(training: Iterable[str], validation: Iterable[str]) -> Check:
    """No validation row among the training rows.

    Args:
        training, validation: The `question_hash` of each row.
    """
    training, validation = set(training), set(validation)
    shared = training & validation
    evidence = f"{len(shared)} of {len(validation):,} validation questions among {len(training):,}"
    return Check(
        "training data",
        "at least one row, no validation question",
        f"{evidence} training questions",
        bool(training) and not shared,
        "Remove these questions from train_data.",
    )


def check_hardware(board: Board, hardware: Mapping[str, Any]) -> Check:
    gpus = hardware["num_gpus"]
    evidence = f"{gpus} GPUs"
    if hardware["gpu_names"]:
        evidence += f" ({', '.join(sorted(set(hardware['gpu_names'])))})"
    return Check(
        "hardware",
        f"{board.max_gpus} GPUs at most" if board.max_gpus else "no GPU",
        evidence,
        gpus <= board.max_gpus,
        "Start fewer processes, or give the server fewer devices; on a CPU alone: use_cpu: true.",
    )


def _listed(settings: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {value:g}" for name, value in settings.items())
