"""Examples and a prompt, or traces, to the rows that a trainer or an evaluation reads."""

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from trl_r1zero.data.files import describe
from trl_r1zero.data.prompts import Prompt
from trl_r1zero.data.tasks.base import Example, GroundTruth
from trl_r1zero.data.traces import Trace

if TYPE_CHECKING:
    from datasets import Dataset

OWN_COLUMNS = ("prompt", "question", "ground_truth")


def build_dataset(examples: Sequence[Example], prompt: Prompt) -> "Dataset":
    """Returns a data set of `prompt` (formatted), `question`, `ground_truth`, and the metadata.

    Rows keep the order of `examples`. `ground_truth` has one type: if any example has a list, all
    become lists (a list of one grades as its element does). There is one column for each metadata
    key of any example, None where an example lacks it.

    Raises:
        ValueError: no examples; ground truths of which some are dicts, or with other keys than the
            first; a metadata key that is one of the three names above; metadata that
            JSON cannot hold, or whose type differs from row to row.
    """
    # Imported here: tasks and prompts do not need it, and it takes a second.
    from datasets import Dataset

    if not examples:
        raise ValueError("got no examples; give at least one")
    columns: dict[str, list[Any]] = {
        "prompt": [prompt.format(example.question) for example in examples],
        "question": [example.question for example in examples],
        "ground_truth": _of_one_type([example.ground_truth for example in examples]),
    }
    for key in dict.fromkeys(key for example in examples for key in example.metadata):
        if key in OWN_COLUMNS:
            raise ValueError(
                f"metadata: got the key {key!r}, which is a column of its own; rename it "
                f"(taken: {', '.join(OWN_COLUMNS)})"
            )
        columns[key] = _metadata_column(key, examples)
    return Dataset.from_dict(columns)


def build_trace_dataset(traces: Sequence[Trace]) -> "Dataset":
    """Returns a data set of `prompt` (formatted), `response`, and, where all traces have one,
    `ground_truth` (of one type, as in `build_dataset`). Rows keep the order of `traces`. A
    ValueError if there are none."""
    from datasets import Dataset

    if not traces:
        raise ValueError("got no traces; give at least one")
    columns: dict[str, list[Any]] = {
        "prompt": [trace.prompt for trace in traces],
        "response": [trace.response for trace in traces],
    }
    truths = [trace.ground_truth for trace in traces if trace.ground_truth is not None]
    if len(truths) == len(traces):
        columns["ground_truth"] = _of_one_type(truths)
    return Dataset.from_dict(columns)


def _of_one_type(ground_truths: Sequence[GroundTruth]) -> list[Any]:
    kinds = [sorted(truth) if isinstance(truth, dict) else None for truth in ground_truths]
    for row, kind in enumerate(kinds):
        # A data set would fill what is missing with None.
        if kind != kinds[0]:
            raise ValueError(
                f"ground_truth of example {row}: got {ground_truths[row]!r:.80}, expected "
                f"{'no dict' if kinds[0] is None else f'a dict of {kinds[0]}'} as in the rows "
                "before; use one kind in all rows"
            )
    any_list = any(isinstance(truth, list) for truth in ground_truths)
    return [[t] if any_list and isinstance(t, str) else t for t in ground_truths]


def _metadata_column(key: str, examples: Sequence[Example]) -> list[Any]:
    values = [example.metadata.get(key) for example in examples]
    first = next((value for value in values if value is not None), None)
    for row, value in enumerate(values):
        place = f"metadata {key!r} of example {row}: got"
        try:
            json.dumps(value)
        except TypeError as error:
            raise ValueError(
                f"{place} {value!r}, expected what JSON can hold; convert it, to a string for "
                "example"
            ) from error
        if value is not None and type(value) is not type(first):
            raise ValueError(
                f"{place} {describe(value)}, expected {type(first).__name__} as in the rows "
                "before; use one type in all rows"
            )
    return values
