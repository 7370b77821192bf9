"""Tables of generations: JSON lines for programs, Markdown for people."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .markdown import fenced
from .metrics import GradedCompletion, is_number, summarize


def log_generations(
    prompts: Sequence[str],
    responses: Sequence[str],
    ground_truths: Sequence[Any],
    rewards: Sequence[dict[str, float]],
    entropies: Sequence[float | None],
    lengths: Sequence[int],
    path: str | Path | None = None,
    *,
    truncated: Sequence[bool] | None = None,
    extra: Sequence[dict[str, Any]] | None = None,
    title: str = "Generations",
) -> dict[str, Any]:
    """One row per generation, and what the batch amounts to.

    Args:
        prompts, responses, ground_truths: The texts of N generations.
        rewards: N dicts with `reward`, and where known `format_reward` and `answer_reward`.
        entropies: Mean token entropy of each response in nats, None where unknown.
        lengths: Tokens of each response.
        path: Where to write, without suffix: `<path>.jsonl` has the rows, `<path>.md` the summary
            and the same rows to read. Nothing is written if None.
        truncated: Whether each response ended at the length limit.
        extra: Further columns of each row.
        title: Heading of the Markdown file.

    Returns:
        `rows` (a list of N dicts: `prompt`, `response`, `ground_truth`, the rewards, `entropy`,
        `length`, `truncated` and the extra columns) and `summary` (see `summarize`; among others
        the mean length of all, of the correct and of the incorrect responses).

    Raises:
        ValueError: The columns are not of one length.
    """
    columns = {
        "prompts": prompts,
        "responses": responses,
        "ground_truths": ground_truths,
        "rewards": rewards,
        "lengths": lengths,
        "truncated": [False] * len(prompts) if truncated is None else truncated,
        "entropies": entropies,
        "extra": [{}] * len(prompts) if extra is None else extra,
    }
    sizes = {name: len(column) for name, column in columns.items()}
    if len(set(sizes.values())) != 1:
        raise ValueError(f"all columns must have one entry per generation, got {sizes}")
    # The columns are the first attributes of `GradedCompletion`, in their order.
    graded = [GradedCompletion(*row) for row in zip(*columns.values(), strict=True)]
    return write_generations(graded, path, title=title)


def write_generations(
    graded: Sequence[GradedCompletion], path: str | Path | None, *, title: str = "Generations"
) -> dict[str, Any]:
    """`log_generations` for rows that are already graded."""
    rows = [g.as_row() for g in graded]
    summary = summarize(graded)
    if path is not None:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        Path(f"{path}.jsonl").write_text(lines, encoding="utf-8")
        Path(f"{path}.md").write_text(_markdown(rows, summary, title), encoding="utf-8")
    return {"rows": rows, "summary": summary}


def _markdown(rows: Sequence[dict[str, Any]], summary: dict[str, float], title: str) -> str:
    lines = [f"# {title}", "", "| metric | value |", "| --- | --- |"]
    lines += [f"| {name} | {value:.4g} |" for name, value in summary.items()]
    for number, row in enumerate(rows):
        facts = [f"{name} {value:.4g}" for name, value in row.items() if is_number(value)]
        facts += ["truncated"] if row["truncated"] else []
        lines += ["", f"## {number}: {', '.join(facts)}", ""]
        lines += [f"Ground truth: `{row['ground_truth']}`", ""]
        lines += [*fenced(row["prompt"]), "", *fenced(row["response"])]
    return "\n".join(lines) + "\n"
