"""The rollouts that expert iteration keeps: which, and on disk.

An EI step leaves `ei_step_00001.jsonl`, one line per kept completion (`prompt`, `response`,
`ground_truth`, `token_ids`; a data set for `recipes/sft.py` too), and, once that is complete,
`ei_step_00001.json` with its place in the run.
"""

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from trl_r1zero.data.files import read_jsonl
from trl_r1zero.evaluation import GradedCompletion

KEPT_FOLDER = "expert_iteration"


@dataclass(frozen=True)
class KeptRollout:
    """A completion that is trained on, with the response's tokens as they were sampled."""

    prompt: str
    response: str
    ground_truth: Any
    token_ids: list[int]


@dataclass(frozen=True)
class EIStep:
    """One EI step's place in a run, and what was logged of its rollouts."""

    number: int  # from 1
    first_update: int  # optimizer updates before it
    num_updates: int  # on its rollouts; 0 if none was kept
    metrics: dict[str, float]

    @property
    def end(self) -> int:
        """Optimizer updates after it."""
        return self.first_update + self.num_updates


def choose_kept(
    rows: Sequence[GradedCompletion],
    token_ids: Sequence[list[int]],
    *,
    max_per_question: int | None = None,
    drop_duplicates: bool = False,
) -> list[KeptRollout]:
    """The correct rollouts, in the order in which they were sampled.

    Rows have the number of their question in `example`. The first `max_per_question` of a question
    are as good as any, as all are drawn independently. Of equal responses to a question,
    `drop_duplicates` keeps the first.
    """
    kept, seen, counts = [], set(), Counter[int | None]()
    for row, ids in zip(rows, token_ids, strict=True):
        repeated = drop_duplicates and (row.example, row.response) in seen
        enough = max_per_question is not None and counts[row.example] >= max_per_question
        if row.correct and not repeated and not enough:
            seen.add((row.example, row.response))
            counts[row.example] += 1
            kept.append(KeptRollout(row.prompt, row.response, row.ground_truth, ids))
    return kept


def write_ei_step(run_folder: Path, step: EIStep, kept: Sequence[KeptRollout]) -> None:
    """Write an EI step; its `.json` appears only once everything is there."""
    path = _path(run_folder, step.number)
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [json.dumps(asdict(rollout), ensure_ascii=False) + "\n" for rollout in kept]
    path.with_suffix(".jsonl").write_text("".join(lines), encoding="utf-8")
    unfinished = path.with_suffix(".json.tmp")
    unfinished.write_text(json.dumps(asdict(step), indent=2) + "\n", encoding="utf-8")
    unfinished.replace(path.with_suffix(".json"))


def read_ei_steps(run_folder: Path, num_updates: int) -> list[EIStep]:
    """The EI steps that began within the first `num_updates` updates, in order.

    Files of later steps are removed: a run that goes on from there makes them again.
    """
    steps = []
    folder = run_folder / KEPT_FOLDER
    for path in sorted(folder.glob("ei_step_*.json")):
        step = EIStep(**json.loads(path.read_text(encoding="utf-8")))
        if step.first_update > num_updates:
            path.unlink()
            path.with_suffix(".jsonl").unlink(missing_ok=True)
        else:
            steps.append(step)
    for number, step in enumerate(steps, start=1):
        if step.number != number:
            raise ValueError(
                f"{_path(run_folder, number)}.json does not exist, but later EI steps do; a run "
                "goes on only where all of its files are. Restore it, or start a new run"
            )
    end = steps[-1].end if steps else 0
    if num_updates > end:
        raise ValueError(
            f"the checkpoint has {num_updates} updates, but the EI steps in {folder} have {end}; "
            "go on in the folder of the run that made it"
        )
    return steps


def read_kept(run_folder: Path, number: int) -> list[KeptRollout]:
    """The kept rollouts of an EI step that has some."""
    path = _path(run_folder, number).with_suffix(".jsonl")
    return [KeptRollout(**row.fields) for row in read_jsonl(path)]


def forget_ei_steps(run_folder: Path) -> None:
    """Remove what another run left, as a fresh run begins."""
    for path in (run_folder / KEPT_FOLDER).glob("ei_step_*"):
        path.unlink()


def _path(run_folder: Path, number: int) -> Path:
    return run_folder / KEPT_FOLDER / f"ei_step_{number:05d}"
