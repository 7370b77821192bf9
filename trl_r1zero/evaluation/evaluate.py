"""Sample, grade and write: one evaluation, on any engine.

Everything that is missing goes to the engine in one stream. A completion is graded and written as
soon as it is there, while the engine goes on with the others, so grading costs no time of its own
where the engine is another process; and an evaluation that was killed goes on where it was.
"""

import hashlib
import json
import math
from collections.abc import Generator, Iterable, Mapping, Sequence
from contextlib import closing, nullcontext
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from datasets import Dataset
from tqdm import tqdm
from transformers import PreTrainedTokenizerBase

from trl_r1zero.generation import Completion, Engine, SamplingConfig, row_seeds
from trl_r1zero.grading import Grade, Grader
from trl_r1zero.rewards import reward_identity

from .metrics import GradedCompletion, is_number, mean
from .report import write_evaluation_report
from .results_folder import ResultsFolder, Stopwatch
from .summary import summarize_evaluation

# Columns of an example that go into its rows besides prompt and ground truth.
_GIVEN = ("question", "metadata")
# Columns of a row that are not the grader's to fill.
_TAKEN = {field.name for field in fields(GradedCompletion)} | {
    *_GIVEN,
    "finish_reason",
    "mean_log_prob",
}


@dataclass
class Evaluation:
    """What came of an evaluation.

    Attributes:
        rows: The graded completions, those of the first example first, in sampling order.
        summary: What `summarize_evaluation` says of them.
    """

    rows: list[GradedCompletion]
    summary: dict[str, Any]


def graded_completion(
    example: Mapping[str, Any],
    completion: Completion,
    parts: Mapping[str, float],
    extra: Mapping[str, Any],
    *,
    numbers: tuple[int, int] | None = None,
) -> GradedCompletion:
    """The row of a completion.

    Args:
        example: Has `prompt` and `ground_truth`.
        completion: What was sampled.
        parts: Its reward: `reward`, and usually `format_reward` and `answer_reward`; empty if it is
            not graded.
        extra: Further columns, such as the `rule`.
        numbers: Of the example, and of the completion among those of its example; None where each
            example has one completion and the order is enough.
    """
    log_probs = completion.log_probs
    number, index = (None, 0) if numbers is None else numbers
    return GradedCompletion(
        prompt=example["prompt"],
        response=completion.text,
        ground_truth=example["ground_truth"],
        rewards=dict(parts),
        length=len(completion.token_ids),
        truncated=completion.truncated,
        entropy=_finite(completion.mean_entropy),
        extra={
            "finish_reason": completion.finish_reason,
            "mean_log_prob": _finite(mean(log_probs)) if log_probs else None,
            **extra,
        },
        example=number,
        completion=index,
    )


def evaluate(
    engine: Engine,
    examples: Iterable[Mapping[str, Any]],
    grader: Grader,
    sampling: SamplingConfig,
    *,
    num_completions: int = 1,
    seed: int = 0,
    folder: str | Path | None = None,
    settings: Mapping[str, Any] | None = None,
    progress: bool = True,
) -> Evaluation:
    """Sample completions of all examples, grade them, and say what they amount to.

    With a folder the rows are in `results.jsonl` as soon as they are graded. The same call after a
    kill generates what is missing; completion k of example i has the same seed in any case. At the
    end there are also `summary.json`, `report.md` and `report.html`. docs/evaluation.md describes
    them.

    Args:
        engine: What samples.
        examples: A `datasets.Dataset` (see `build_dataset`) or dicts, each with `prompt` and
            `ground_truth`, and where known `question` and `metadata` (a dict); other columns count
            as metadata.
        grader: The `reward_identity` of its function must be the same when the evaluation goes on.
        sampling: How to sample.
        num_completions: Completions of each example.
        seed: Seed of the sampling.
        folder: Where to write; nothing is written if None.
        settings: What else identifies and describes the evaluation (model, task, prompt, versions),
            as JSON can hold it. It must be the same when the evaluation goes on.
        progress: Whether to show a progress bar.

    Raises:
        ValueError: There are no examples, or one lacks a column or has an empty prompt; the folder
            holds another evaluation, or another process is at work in it; the reward function
            returned something else than it should.
        RuntimeError: The engine left rows out or gave one twice.
    """
    if num_completions < 1:
        raise ValueError(f"num_completions must be at least 1, got {num_completions}")
    if isinstance(examples, Dataset):
        examples = examples.to_list()  # ten times as fast as going through it row by row
    checked = [_example(number, example) for number, example in enumerate(examples)]
    if not checked:
        raise ValueError("there is nothing to evaluate: examples is empty")
    about = {
        "num_examples": len(checked),
        "examples_sha256": _fingerprint(checked),
        "num_completions": num_completions,
        "seed": seed,
        "sampling": asdict(sampling),
        "engine": engine.name,
        "reward": reward_identity(grader.reward_fn),
        "settings": dict(settings or {}),
    }
    num_rows = len(checked) * num_completions
    context: ResultsFolder | nullcontext[None] = nullcontext()
    if folder is not None:
        context = ResultsFolder(folder, about, num_rows, num_completions)
    with context as results:
        done = {} if results is None else results.rows
        clock = Stopwatch() if results is None else results.clock
        missing = [number for number in range(num_rows) if number not in done]
        if missing:
            wanted = [divmod(number, num_completions) for number in missing]
            prompt_ids = _tokenize(engine.tokenizer, checked, [index for index, _ in wanted])
            seeds = row_seeds(seed, "eval", 0, missing)
            right = sum(row.graded and row.correct for row in done.values())
            with (
                _progress_bar(progress, num_rows, len(done)) as bar,
                clock,
                closing(
                    _graded(engine, prompt_ids, sampling, seeds, wanted, checked, grader)
                ) as new,
            ):
                for position, row in new:
                    if missing[position] in done:
                        raise RuntimeError(f"engine {engine.name!r} gave row {position} twice")
                    done[missing[position]] = row
                    if results is not None:
                        results.add(row)
                    if row.graded:
                        right += row.correct
                        bar.set_postfix_str(f"accuracy {right / len(done):.3f}", refresh=False)
                    bar.update()
            if len(done) < num_rows:
                raise RuntimeError(
                    f"engine {engine.name!r} left out {num_rows - len(done)} of {len(missing)} rows"
                )
        rows = [done[number] for number in range(num_rows)]
        summary = summarize_evaluation(rows, num_completions, clock.seconds)
        if results is not None:
            results.finish((row.as_row() for row in rows), summary)
            write_evaluation_report(results.folder, rows, summary, results.facts)
    return Evaluation(rows, summary)


def _graded(
    engine: Engine,
    prompt_ids: Sequence[Sequence[int]],
    sampling: SamplingConfig,
    seeds: Sequence[int],
    wanted: Sequence[tuple[int, int]],
    examples: Sequence[dict[str, Any]],
    grader: Grader,
) -> Generator[tuple[int, GradedCompletion]]:
    """The engine's stream, graded. `wanted` has the numbers of example and completion of a row."""
    stream = engine.stream(prompt_ids, sampling, seeds)
    try:
        for position, completion in stream:
            index, number = wanted[position]
            example = examples[index]
            (grade,) = grader.grade([(completion.text, example["ground_truth"])])
            given: dict[str, Any] = {key: example[key] for key in _GIVEN if key in example}
            yield (
                position,
                graded_completion(
                    example,
                    completion,
                    grade.parts,
                    {**given, **_columns(grade)},
                    numbers=(index, number),
                ),
            )
    finally:
        if isinstance(stream, Generator):
            stream.close()  # the engine stops what is still under way


def _progress_bar(show: bool, total: int, done: int) -> tqdm:
    return tqdm(total=total, initial=done, desc="Evaluation", unit="completion", disable=not show)


def _example(number: int, example: Mapping[str, Any]) -> dict[str, Any]:
    """`prompt`, `ground_truth`, and where known `question` and `metadata`."""
    absent = [name for name in ("prompt", "ground_truth") if example.get(name) is None]
    if absent:
        raise ValueError(
            f"example {number} lacks {absent}, it has {sorted(example)}; build the examples with "
            "trl_r1zero.data.rows.build_dataset"
        )
    for name, kind in (("prompt", str), ("metadata", dict)):
        if example.get(name) is not None and not isinstance(example[name], kind):
            raise ValueError(
                f"example {number}: {name} must be a {kind.__name__}, got "
                f"{type(example[name]).__name__}: {example[name]!r:.80}"
            )
    own = ("prompt", "ground_truth", *_GIVEN)
    checked = {name: example[name] for name in own[:3] if example.get(name) is not None}
    metadata = {
        **(example.get("metadata") or {}),
        **{name: value for name, value in example.items() if name not in own},
    }
    known = {name: value for name, value in metadata.items() if value is not None}
    if known:
        checked["metadata"] = known
    try:
        json.dumps(checked, ensure_ascii=False, allow_nan=False).encode()
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"example {number} cannot be written as JSON ({error}); convert the value, or leave "
            "its column out"
        ) from error
    return checked


def _fingerprint(examples: Sequence[dict[str, Any]]) -> str:
    digest = hashlib.sha256()
    for example in examples:
        graded_by = [example["prompt"], example["ground_truth"]]
        digest.update(json.dumps(graded_by, ensure_ascii=False).encode() + b"\n")
    return digest.hexdigest()


def _tokenize(
    tokenizer: PreTrainedTokenizerBase, examples: Sequence[dict[str, Any]], wanted: Sequence[int]
) -> list[list[int]]:
    """Token ids of the prompts of the wanted examples, each of which is tokenised once."""
    different = list(dict.fromkeys(wanted))
    encoded = tokenizer([examples[number]["prompt"] for number in different])["input_ids"]
    ids: dict[int, list[int]] = dict(zip(different, encoded, strict=True))
    for number in different:
        if not ids[number]:
            raise ValueError(
                f"example {number}: the prompt {examples[number]['prompt']!r} has no tokens; a "
                "causal model needs at least one to go on from"
            )
    return [ids[number] for number in wanted]


def _columns(grade: Grade) -> dict[str, Any]:
    """The columns of a row that are the grader's to fill.

    Raises:
        ValueError: One of them, or a part of the reward, is somebody else's, or is a number.
    """
    columns = {
        **({} if grade.rule is None else {"rule": grade.rule}),
        "answer": grade.answer,
        **grade.columns,
    }
    taken = sorted((_TAKEN & grade.parts.keys()) | ((_TAKEN | grade.parts.keys()) & columns.keys()))
    if taken:
        raise ValueError(f"a grader must not fill the columns {taken}; rename them")
    numbers = sorted(name for name, value in columns.items() if is_number(value))
    if numbers:
        raise ValueError(
            f"the columns {numbers} of a grade are numbers; return them among the reward's parts"
        )
    return columns


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None
