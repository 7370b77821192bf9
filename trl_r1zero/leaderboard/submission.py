"""What a submission is on disk: a folder that can be checked by itself.

| file | what is in it |
| --- | --- |
| `submission.json` | board, entry, accuracy, every rule with its evidence, the facts behind it, versions, and size and sha256 of the other files |
| `responses.jsonl` | one line for each validation problem: prompt, response, ground truth, reward, length in tokens, whether it was cut off |
| `training_hashes.txt` | the `question_hash` of each different training question, sorted |
| `clock.jsonl` | every start, GRPO step and validation with its time (see `clock`) |
| `metrics.jsonl`, `recipe.yaml`, `environment.json` | those of the run |
| `accuracy.png` | validation accuracy against time |

No file names a user or a machine: paths below the working folder and the checkout are made
relative, those below the home folder begin with `~`, and a machine is a hash of its name.
"""  # noqa: E501

import json
import platform
import re
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from trl_r1zero.evaluation.files import json_line, json_text, write_atomically
from trl_r1zero.evaluation.metrics import mean, standard_error
from trl_r1zero.rewards import is_correct
from trl_r1zero.trainers.run_folder import METRICS_FILE, read_metrics

from .clock import CLOCK_FILE, FINISHED, Event, clock_start, parse_events
from .plot import plot_submission
from .rules import Board, Check, question_hash, sha256_of

FORMAT = 1
SUBMISSION_FILE = "submission.json"
RESPONSES_FILE = "responses.jsonl"
TRAINING_FILE = "training_hashes.txt"
RECIPE_FILE = "recipe.yaml"
ENVIRONMENT_FILE = "environment.json"
PLOT_FILE = "accuracy.png"
# What submission.json vouches for.
FILES = (
    RESPONSES_FILE,
    TRAINING_FILE,
    CLOCK_FILE,
    METRICS_FILE,
    RECIPE_FILE,
    ENVIRONMENT_FILE,
    PLOT_FILE,
)
# Columns of a table of generations that a submission keeps.
_COLUMNS = (
    "prompt",
    "response",
    "ground_truth",
    "reward",
    "format_reward",
    "answer_reward",
    "length",
    "truncated",
)


def write_submission(
    run_folder: Path,
    board: Board,
    entry: str,
    facts: Mapping[str, Any],
    training_questions: Sequence[str],
    events: Sequence[Event],
    rows_path: Path,
) -> Path:
    """Put a finished run's submission into `<run_folder>/submission`, without its checks.

    Args:
        run_folder: With the run's metrics, recipe, environment and clock.
        board: Whose rules hold.
        entry: What the run is called.
        facts: Of `collect_facts`.
        training_questions: All of them.
        events: The clock's, finished.
        rows_path: The full evaluation's table of generations.

    Returns:
        The folder. `seal_submission` adds the checks.
    """
    folder = run_folder / "submission"
    folder.mkdir(parents=True, exist_ok=True)
    rows = [json.loads(line) for line in rows_path.read_text(encoding="utf-8").splitlines()]
    kept = [{name: row[name] for name in _COLUMNS if name in row} for row in rows]
    write_atomically(folder / RESPONSES_FILE, b"".join(map(json_line, kept)))
    hashes = sorted({question_hash(question) for question in training_questions})
    write_atomically(folder / TRAINING_FILE, "".join(f"{h}\n" for h in hashes).encode())
    for name in (CLOCK_FILE, METRICS_FILE):
        shutil.copyfile(run_folder / name, folder / name)
    recipe = (run_folder / RECIPE_FILE).read_text(encoding="utf-8")
    write_atomically(folder / RECIPE_FILE, without_places(recipe).encode())
    environment = json.loads((run_folder / ENVIRONMENT_FILE).read_text(encoding="utf-8"))
    del environment["platform"]  # the kernel of one machine; the facts have its CPUs and GPUs
    write_atomically(folder / ENVIRONMENT_FILE, json_text(_map_texts(environment)))
    plot_submission(events, board.budget_seconds, f"{entry} — {board.title}", folder / PLOT_FILE)
    seal_submission(folder, board, entry, _map_texts(facts), [])
    return folder


def seal_submission(
    folder: Path, board: Board, entry: str, facts: Mapping[str, Any], checks: Sequence[Check]
) -> None:
    """Write `submission.json` over the other files of a folder.

    Args:
        folder: Has all `FILES`.
        board, entry, facts: As for `write_submission`.
        checks: Every rule with its evidence.
    """
    read = SubmissionFiles(folder)
    events = read.events
    (final,) = (event for event in events if event["event"] == FINISHED)
    about = {
        "format": FORMAT,
        "board": board.name,
        "entry": entry,
        **accuracy_of(read.rows),
        "seconds": round(final["time"] - clock_start(events), 3),
        # Those of the weights: a step that a kill undid is on the clock too.
        "grpo_steps": final["grpo_step"],
        "rules": [
            {
                "rule": check.rule,
                "allowed": check.allowed,
                "evidence": check.evidence,
                "holds": check.holds,
            }
            for check in checks
        ],
        "facts": facts,
        "environment": read.environment,
        "files": {name: file_facts(folder / name) for name in FILES},
    }
    write_atomically(folder / SUBMISSION_FILE, json_text(about))


def accuracy_of(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Accuracy and its standard error of graded responses."""
    correct = [float(is_correct(row)) for row in rows]
    return {
        "accuracy": mean(correct),
        "accuracy_stderr": standard_error(correct),
        "num_problems": len(rows),
    }


def file_facts(path: Path) -> dict[str, Any]:
    """Size and sha256 of a file."""
    content = path.read_bytes()
    return {"bytes": len(content), "sha256": sha256_of(content)}


def without_places(text: str) -> str:
    """Text without this machine's folders, and without its name in addresses."""
    checkout = Path(__file__).resolve().parents[2]
    for place, stand_in in ((checkout, "."), (Path.cwd(), "."), (Path.home(), "~")):
        if place == Path("/"):
            continue
        bounded = rf"(?<![\w.~-]){re.escape(str(place))}"
        if stand_in == ".":  # what is below it is relative
            text = re.sub(rf"{bounded}/(?=[\w.])", "", text)
        text = re.sub(rf"{bounded}(?![\w.-])", stand_in, text)
    # Elsewhere its name may be an ordinary word, such as `train`.
    return re.sub(rf"(?<=://){re.escape(platform.node())}(?![\w.-])", "host", text)


def _map_texts(value: Any) -> Any:
    """JSON, `without_places` in its texts; its keys are left alone."""
    if isinstance(value, str):
        return without_places(value)
    if isinstance(value, Mapping):
        return {key: _map_texts(content) for key, content in value.items()}
    if isinstance(value, list | tuple):
        return [_map_texts(content) for content in value]
    return value


class SubmissionFiles:
    """The rows, clock, metrics and training hashes of a submission's folder, read once.

    Raises:
        OSError: A file cannot be read.
        ValueError: A file is not what it should be.
    """

    def __init__(self, folder: Path) -> None:
        self.rows: list[dict[str, Any]] = [
            json.loads(line) for line in _lines(folder / RESPONSES_FILE)
        ]
        self.events = parse_events(folder / CLOCK_FILE, _lines(folder / CLOCK_FILE))
        self.metrics = read_metrics(folder)
        self.environment = json.loads((folder / ENVIRONMENT_FILE).read_text(encoding="utf-8"))
        self.training_hashes = _lines(folder / TRAINING_FILE)


def _lines(path: Path) -> list[str]:
    return path.read_text(encoding="utf-8").splitlines()
