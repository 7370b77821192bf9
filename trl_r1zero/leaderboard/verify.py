"""A submission, checked by its own files alone: no model, no data, no network.

Every number that submission.json states is computed again from the other files, and every rule is
held against what they say; its `rules`, what the runner found, are for people, and are not read.
What files cannot show (that nobody made all of them up together) they do not show: a record is to
be run again by somebody else.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from trl_r1zero.data.prompts import PLACEHOLDER, load_prompt
from trl_r1zero.evaluation.markdown import table
from trl_r1zero.rewards import REWARDS

from .clock import FINISHED, START, clock_faults, clock_start
from .rules import (
    Board,
    Check,
    check_facts,
    check_overlap,
    check_settings,
    check_validation,
    get_board,
    inputs_sha256,
    question_hash,
    rows_sha256,
)
from .submission import (
    ENVIRONMENT_FILE,
    FILES,
    FORMAT,
    RECIPE_FILE,
    SUBMISSION_FILE,
    SubmissionFiles,
    accuracy_of,
    file_facts,
)

Row = dict[str, Any]


# What submission.json has to have, for it to be told of at all.
_KINDS: dict[str, tuple[Any, str]] = {
    "board": (str, "a name"),
    "entry": (str, "a name"),
    "accuracy": (int | float, "a number"),
    "accuracy_stderr": (int | float, "a number"),
    "seconds": (int | float, "a number"),
    "grpo_steps": (int, "a number of steps"),
    "facts": (dict, "a mapping"),
    "environment": (dict, "a mapping"),
    "files": (dict, "a mapping"),
}


class SubmissionError(ValueError):
    """A folder that is no submission, or whose files cannot be read."""


def verify(folder: str | Path) -> list[Check]:
    """Every rule, held against a submission's files.

    Raises:
        SubmissionError: The folder has no submission.json that can be read.
    """
    folder = Path(folder)
    about = read_submission(folder)
    board = get_board(about["board"])
    files = _check_files(folder, about["files"])
    if any(not (folder / name).is_file() for name in FILES):
        return [files]
    try:
        read = SubmissionFiles(folder)
        recipe = yaml.safe_load((folder / RECIPE_FILE).read_text(encoding="utf-8"))
        files = _also(
            files,
            about["environment"] == read.environment,
            f"the environment in {SUBMISSION_FILE} is not that of {ENVIRONMENT_FILE}",
        )
        return [files, *rule_checks(board, about, read, recipe)]
    except (AttributeError, LookupError, TypeError, ValueError, yaml.YAMLError) as error:
        # Files that were changed so that they cannot be read as what they are.
        broken = f"{type(error).__name__}: {error}".splitlines()[0]
        return [files, Check("contents", "files as the runner writes them", broken, False)]


def rule_checks(
    board: Board, about: Mapping[str, Any], read: SubmissionFiles, recipe: Mapping[str, Any]
) -> list[Check]:
    """The rules but that of the files' hashes.

    Args:
        board: The rules.
        about: What submission.json states.
        read: What the other files hold.
        recipe: The values of the run's recipe.
    """
    facts = about["facts"]
    questions, unlike = _questions(board, read.rows)
    truths = [(q, row["ground_truth"]) for q, row in zip(questions, read.rows, strict=True)]
    validation = {
        "num_rows": len(read.rows),
        "num_distinct": len({question_hash(question) for question in questions}),
        "sha256": rows_sha256(truths),
    }
    hashes = [question_hash(question) for question in questions]
    by_rule = {check.rule: check for check in check_facts(board, facts)}
    by_rule["validation problems"] = _also(
        check_validation(board, validation),
        validation["sha256"] == facts["validation"]["sha256"],
        "not those that the run had loaded",
    )
    by_rule["model"] = _also(
        by_rule["model"],
        recipe["model_name_or_path"] == facts["model"]["name"],
        f"the recipe has {recipe['model_name_or_path']}",
    )
    settings = {check.rule: check for check in check_settings(board, recipe)}
    weights = settings["weights"]
    by_rule["model"] = _also(by_rule["model"], weights.holds, weights.evidence)
    by_rule["prompt"] = _also(
        by_rule["prompt"],
        unlike == 0,
        f"{unlike} responses are to another prompt",
    )
    trainers = {event["num_processes"] for event in read.events if event["event"] == START}
    by_rule["hardware"] = _also(
        by_rule["hardware"],
        trainers == {facts["hardware"]["num_processes"]},
        f"the clock has {', '.join(map(str, sorted(trainers)))} processes of the trainer",
    )
    return [
        by_rule["model"],
        settings["task"],
        _training(check_overlap(read.training_hashes, hashes), facts["training"]),
        by_rule["validation problems"],
        by_rule["prompt"],
        settings["sampling"],
        _tokens(board, settings["tokens"], read.rows),
        _reward(board, by_rule["reward"], read.rows),
        _accuracy(about, read),
        _time(board, about, read),
        _clock(about, read, inputs_sha256(facts)),
        by_rule["hardware"],
    ]


def describe(about: dict[str, Any], checks: list[Check]) -> list[str]:
    """A submission and its checks, as lines to read."""
    broken = [check.rule for check in checks if not check.holds]
    verdict = f"BROKEN: {', '.join(broken)}" if broken else "every rule holds"
    return [
        f"{about['entry']} on board {about['board']}: accuracy {about['accuracy']:.4f} ± "
        f"{about['accuracy_stderr']:.4f}, {about['seconds']:,.0f} seconds; {verdict}",
        *table(
            ["rule", "allowed", "found", "holds"],
            [
                [check.rule, check.allowed, check.evidence, "yes" if check.holds else "NO"]
                for check in checks
            ],
        ),
    ]


def compare_submissions(submissions: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """What differs between submissions to one board that should be the same, in words.

    Args:
        submissions: By name, what their submission.json states.
    """
    differences = []
    for board in dict.fromkeys(about["board"] for about in submissions.values()):
        of_board = {n: about for n, about in submissions.items() if about["board"] == board}
        kinds = {"validation problems": lambda about: about["facts"]["validation"]["sha256"]}
        if get_board(board).model is not None:
            kinds["weights at the start"] = lambda about: json.dumps(
                about["facts"]["model"]["weights"], sort_keys=True
            )
        for what, of in kinds.items():
            if len({of(about) for about in of_board.values()}) > 1:
                differences.append(
                    f"board {board}: the {what} are not the same in {', '.join(of_board)}"
                )
    return differences


def read_submission(folder: Path) -> dict[str, Any]:
    """What a folder's submission.json states.

    Raises:
        SubmissionError: There is none, or it is not of this format.
    """
    path = folder / SUBMISSION_FILE
    if not path.is_file():
        raise SubmissionError(f"{path} does not exist; give the folder of a submission")
    try:
        about = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise SubmissionError(f"{path} is no JSON ({error}); it was changed by hand") from error
    if not isinstance(about, dict) or about.get("format") != FORMAT:
        raise SubmissionError(f"{path} is not of format {FORMAT}; verify it by its own version")
    if missing := _KINDS.keys() - about.keys():
        raise SubmissionError(f"{path} lacks {', '.join(sorted(missing))}")
    for name, (kind, said) in _KINDS.items():
        # To Python True is a number.
        if not isinstance(about[name], kind) or isinstance(about[name], bool):
            raise SubmissionError(
                f"{path}: {name} must be {said}; got {json.dumps(about[name])[:80]}"
            )
    for kind in ("model", "training", "validation", "prompt", "hardware"):
        if not isinstance(about["facts"].get(kind), dict):
            raise SubmissionError(f"{path}: facts has no mapping {kind}")
    return about


def _check_files(folder: Path, stated: Mapping[str, Any]) -> Check:
    changed = []
    for name in FILES:
        path = folder / name
        if not path.is_file():
            changed.append(f"{name} is missing")
        elif file_facts(path) != stated.get(name):
            changed.append(f"{name} is not the file that was written")
    return Check(
        "files",
        "size and sha256 of submission.json",
        "; ".join(changed) or f"{len(FILES)} files as they were written",
        not changed,
    )


def _questions(board: Board, rows: Sequence[Row]) -> tuple[list[str], int]:
    """The question of each row, and how many prompts are not made from the board's template."""
    before, after = load_prompt(board.prompt).template.split(PLACEHOLDER)
    questions, unlike = [], 0
    for row in rows:
        prompt = row["prompt"]
        fits = prompt.startswith(before) and prompt.endswith(after)
        unlike += not fits
        questions.append(prompt[len(before) : len(prompt) - len(after)] if fits else prompt)
    return questions, unlike


def _training(overlap: Check, training: Mapping[str, Any]) -> Check:
    """The overlap, and where the training rows are from."""
    sha = training["file_sha256"] or training["sha256"]
    return Check(
        overlap.rule,
        overlap.allowed,
        f"{overlap.evidence} ({training['source'] or 'generated'}, {training['num_rows']:,} rows, "
        f"sha256 {sha[:12]}...)",
        overlap.holds,
        overlap.advice,
    )


def _tokens(board: Board, stated: Check, rows: Sequence[Row]) -> Check:
    longest = max((row["length"] for row in rows), default=0)
    cut = [row for row in rows if row["truncated"]]
    check = _also(stated, longest <= board.max_tokens, f"{longest} in the longest response")
    short = sum(row["length"] != board.max_tokens for row in cut)
    return _also(check, short == 0, f"{short} responses are cut off before the limit")


def _reward(board: Board, stated: Check, rows: Sequence[Row]) -> Check:
    reward_fn = REWARDS[board.reward]
    wrong = []
    for number, row in enumerate(rows):
        graded = reward_fn(row["response"], row["ground_truth"])
        if any(row.get(name) != value for name, value in graded.items()):
            wrong.append(number)
    told = f"{len(rows):,} responses graded again, {len(wrong)} otherwise"
    if wrong:
        told += f" (the first in line {wrong[0] + 1})"
    return Check(
        stated.rule,
        f"{stated.allowed}, whose grades are those in responses.jsonl",
        f"{stated.evidence}; {told}",
        stated.holds and not wrong,
    )


def _accuracy(about: Mapping[str, Any], read: SubmissionFiles) -> Check:
    found = accuracy_of(read.rows)
    check = Check(
        "accuracy",
        "that of the responses",
        f"stated {about['accuracy']:.4f} ± {about['accuracy_stderr']:.4f}, computed "
        f"{found['accuracy']:.4f} ± {found['accuracy_stderr']:.4f}",
        all(about[name] == found[name] for name in found),
    )
    measured = [event["accuracy"] for event in read.events if event["event"] == FINISHED]
    told = ", ".join(f"{accuracy:.4f}" for accuracy in measured)
    return _also(check, measured == [found["accuracy"]], f"the clock has {told or 'none'}")


def _time(board: Board, about: Mapping[str, Any], read: SubmissionFiles) -> Check:
    ends = [event["time"] for event in read.events if event["event"] == FINISHED]
    seconds = ends[-1] - clock_start(read.events) if ends else float("inf")
    check = Check(
        "time",
        f"{board.budget_seconds:,.0f} seconds from the start of the process to the last use of a "
        "weight",
        f"{seconds:,.1f} seconds",
        0 < seconds <= board.budget_seconds,
    )
    same = abs(about["seconds"] - seconds) < 0.01
    return _also(check, same, f"submission.json states {about['seconds']:,.1f}")


def _clock(about: Mapping[str, Any], read: SubmissionFiles, inputs: str) -> Check:
    faults = clock_faults(read.events, read.metrics)
    if (steps := read.events[-1].get("grpo_step")) != about["grpo_steps"]:
        faults.append(
            f"{SUBMISSION_FILE} states {about['grpo_steps']} GRPO steps, and it ends at {steps}"
        )
    if any(event["inputs"] != inputs for event in read.events if event["event"] == START):
        faults.append("a start had other weights, data, prompt or reward")
    starts = sum(event["event"] == "start" for event in read.events)
    told = f"{starts} start{'s' * (starts != 1)}, {len(read.events)} lines in order"
    return Check(
        "clock",
        "one machine's clock that runs forwards, and agrees with the metrics",
        "; ".join(faults) or told,
        not faults,
    )


def _also(check: Check, holds: bool, otherwise: str) -> Check:
    """The check with a further condition, of which the evidence speaks where it does not hold."""
    if holds:
        return check
    return Check(check.rule, check.allowed, f"{check.evidence}; {otherwise}", False, check.advice)
