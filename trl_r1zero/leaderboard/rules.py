"""The rules of the boards, as data, and their checks: before a run, and of a submission."""

import hashlib
import json
import unicodedata
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from trl_r1zero.common.naming import unknown_name_message


@dataclass(frozen=True)
class Board:
    """The rules of one board."""

    name: str
    title: str  # of its table
    task: str  # with its own settings of the validation problems
    model: str | None  # hub id of the first weights; None: any of this architecture and size
    architecture: str  # class of the model, as its config.json names it
    num_parameters: int | None  # tied ones once; None: the hub id is enough
    num_problems: int  # validation problems, all of which are answered once
    validation_sha256: str | None  # `rows_facts`; None: not known, compared between submissions
    prompt: str  # a built-in one
    prompt_sha256: str  # of its template
    max_tokens: int  # new tokens of a response at most
    budget_seconds: float  # wall-clock, from the start of the process to the end of the evaluation
    max_gpus: int  # of trainers and servers together
    temperature: float = 1.0  # of the validation's sampling, as top_p and seed
    top_p: float = 1.0
    seed: int = 0  # fixed, so that nobody draws again
    reward: str = "r1_zero"

    @property
    def time_unit(self) -> tuple[str, float]:
        """The unit in which the budget is readable, and its seconds."""
        return ("hours", 3600.0) if self.budget_seconds >= 3600 else ("minutes", 60.0)


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
    """The board of that name, or a ValueError."""
    if name not in BOARDS:
        raise ValueError(unknown_name_message("board", name, BOARDS))
    return BOARDS[name]


@dataclass(frozen=True)
class Check:
    """One rule, and whether it holds."""

    rule: str  # its name, such as `eval_temperature`
    allowed: str  # what it allows, in words
    evidence: str  # what was found, in words
    holds: bool
    advice: str = ""  # what to do where it does not hold


class RuleBrokenError(ValueError):
    """A run that cannot count."""


def sha256_of(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def question_hashes(questions: Iterable[str]) -> set[str]:
    """The sha256 of each without white space and case, and with Unicode's compatibility forms made
    one: questions that differ in these alone are the same."""
    plain = ("".join(unicodedata.normalize("NFKC", q).casefold().split()) for q in questions)
    return set(map(sha256_of, plain))


def rows_facts(rows: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    """Number and sha256 of questions and their ground truths, in whatever order they are."""
    lines = sorted(json.dumps(row, ensure_ascii=False) for row in rows)
    return {"num_rows": len(lines), "sha256": sha256_of("\n".join(lines))}


def check_settings(board: Board, values: Mapping[str, Any]) -> list[Check]:
    """The rules that a recipe can break; `values` has all its keys."""
    wanted: dict[str, Any] = {
        "task": board.task,
        "eval_temperature": board.temperature,
        "eval_top_p": board.top_p,
        "top_k": 0,
        "min_p": 0.0,
        "eval_seed": board.seed,
        "eval_max_completion_length": board.max_tokens,
        "model_init_kwargs": {},  # could load other weights than those whose hash is recorded
    }
    if board.model is not None:
        wanted["model_revision"] = "main"
    found = {name: values[name] for name in wanted}
    if found["eval_max_completion_length"] is None:
        found["eval_max_completion_length"] = values["max_completion_length"]
    checks = [
        # Unset is off, or empty.
        _equal(name, value, found[name] or type(value)(), f"Set {name}: {value}.")
        for name, value in wanted.items()
    ]
    if values["eval_every"] is None:
        why = "a number of GRPO steps, for validations tell how long the full evaluation will take"
        checks.append(Check("eval_every", why, "None", False))
    if values["use_vllm"] and values["vllm_server"] is None:
        why = "a server that the run starts itself, whose GPUs are counted; {} for all defaults"
        checks.append(Check("vllm_server", why, "a server that somebody else runs", False))
    return checks


def check_facts(board: Board, facts: Mapping[str, Any]) -> list[Check]:
    """The rules about what a run starts with; see `collect_facts`."""
    model, validation = facts["model"], facts["validation"]
    set_model = "Set model_name_or_path to a base policy such as `make quickstart` makes."
    set_data = "Leave the task's settings of its validation problems as they are."
    weights = _equal("parameters", board.num_parameters, model["num_parameters"], set_model)
    if board.model is not None:
        set_model = f"Set model_name_or_path: {board.model}."
        set_data = "Set eval_data to the file of all validation problems."
        found = model["name"] if model["revision"] else f"the folder {model['name']}"
        weights = _equal("model", board.model, found, set_model)
    overlap, gpus = facts["num_validation_questions"], facts["hardware"]["num_gpus"]
    set_gpus = "Start fewer processes, or give the server fewer devices; on a CPU: use_cpu: true."
    checks = [
        weights,
        _equal("architecture", board.architecture, model["architecture"], set_model),
        _equal("validation questions in train_data", 0, overlap, "Remove them."),
        _equal("validation problems", board.num_problems, validation["num_rows"], set_data),
        _equal("prompt", board.prompt_sha256, facts["prompt"], f"Set prompt: {board.prompt}."),
        _equal("reward", board.reward, facts["reward"], f"Set reward: {board.reward}."),
        Check("GPUs", f"at most {board.max_gpus}", f"{gpus}", gpus <= board.max_gpus, set_gpus),
    ]
    if board.validation_sha256 is not None:
        known = board.validation_sha256
        checks.append(_equal("validation sha256", known, validation["sha256"], set_data))
    return checks


def _equal(rule: str, allowed: Any, found: Any, advice: str) -> Check:
    return Check(rule, f"{allowed}", f"{found}", found == allowed, advice)
