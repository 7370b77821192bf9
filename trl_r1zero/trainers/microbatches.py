"""How the rows of a train batch are dealt out to processes and cut into micro-batches.

The gradient does not depend on it, because denominators are those of the whole train batch; memory
and time do. All processes plan for all of them, from the same rows, so nothing needs to be agreed
upon.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol, Self, TypeVar

import torch
from torch import Tensor

from trl_r1zero.data.tokenization import pad_and_shift


class Row(Protocol):
    """What has a length, and a beginning that others may have, too."""

    @property
    def num_tokens(self) -> int:
        """Tokens that the model sees."""

    @property
    def prompt_ids(self) -> Sequence[int]:
        """Tokens of the beginning."""


R = TypeVar("R", bound=Row)


@dataclass
class PaddedRows:
    """Tensors of B sequences, padded to the longest; see `pad_and_shift` for the convention."""

    # input_ids, labels, response_mask: (B, T); the mask is 0 in rows that are not in the loss.
    input_ids: Tensor
    labels: Tensor
    response_mask: Tensor
    lengths: list[int]  # of each row, the positions that are not padding

    @classmethod
    def of(
        cls, prompts: Sequence[list[int]], responses: Sequence[list[int]], pad_id: int, **own: Any
    ) -> Self:
        """B prompts and responses as tensors, on the CPU; `own`: what a kind of rows adds."""
        lengths = [len(a) + len(b) - 1 for a, b in zip(prompts, responses, strict=True)]
        return cls(**pad_and_shift(prompts, responses, pad_id), lengths=lengths, **own)

    def to(self, device: torch.device) -> Self:
        """The same on another device."""
        mine = vars(self).items()
        return replace(self, **{k: v.to(device) for k, v in mine if isinstance(v, Tensor)})


def _num_tokens(row: Row) -> int:
    return row.num_tokens


@dataclass(frozen=True)
class MicroBatchLimits:
    """What a micro-batch may hold. One row is always admitted."""

    rows: int | None  # rows at most; None for any number
    tokens: int | None = None  # tokens at most, padding included; None for any number
    # Whether rows are padded to the longest of their micro-batch; otherwise, or if they are
    # `shared`, they stand one behind the other.
    padded: bool = True
    # Tokens of a row, with the padding that it has whatever is beside it: that of a pair is twice
    # its longer sequence.
    width: Callable[[Any], int] = _num_tokens
    # Whether a prompt is computed once for all rows of a micro-batch that have it.
    shared: bool = False


def plan_microbatches(
    rows: Sequence[R], processes: int, limits: MicroBatchLimits, filler: Callable[[R], R]
) -> list[list[list[R]]]:
    """The micro-batches of every process: `plan[process][micro_batch]` are rows.

    Rows go to processes such that their tokens are balanced: the longest first, each to the process
    that has the fewest tokens so far. Every process gets equally many micro-batches, as the
    collective calls in forward and backward want: one that has fewer splits its largest ones, or
    gets a filler.

    There is at least one row, of a train batch or what is left of it; `filler` makes, from any row,
    one that is not in the loss.
    """
    if not rows:
        raise ValueError("there are no rows to cut; give a filler row at least")
    plan = [cut_rows(share, limits) for share in share_rows(rows, processes, limits.shared)]
    count = max(map(len, plan))
    shortest = min(rows, key=lambda row: row.num_tokens)
    for parts in plan:
        while len(parts) < count:
            largest = max(parts, key=len, default=[])
            if len(largest) > 1:
                number, middle = parts.index(largest), len(largest) // 2
                parts[number : number + 1] = [largest[:middle], largest[middle:]]
            else:
                parts.append([filler(shortest)])
    return plan


def share_rows(rows: Sequence[R], processes: int, shared: bool = False) -> list[list[R]]:
    """The rows of each process, about equally many tokens for each; if prompts are `shared`, rows
    with one prompt stay together, where there are as many prompts as processes."""
    groups: dict[Any, list[R]] = {}
    for number, row in enumerate(rows):
        groups.setdefault(tuple(row.prompt_ids) if shared else number, []).append(row)
    units = list(groups.values()) if len(groups) >= processes else [[row] for row in rows]
    shares: list[list[R]] = [[] for _ in range(processes)]
    tokens = [0] * processes
    for unit in sorted(units, key=lambda unit: -_tokens_of(unit)):
        process = tokens.index(min(tokens))
        shares[process].extend(unit)
        tokens[process] += _tokens_of(unit)
    return shares


def cut_rows(rows: Sequence[R], limits: MicroBatchLimits) -> list[list[R]]:
    """The rows, longest first, in as few micro-batches as the limits allow.

    Rows of like lengths come together, so there is little padding; and a run that does not fit into
    memory fails at once. If prompts are shared, rows that begin alike come together.
    """
    padded = limits.padded and not limits.shared
    size = limits.width if padded else _num_tokens
    ordered = sorted(rows, key=lambda row: -row.num_tokens)
    if limits.shared:
        ordered.sort(key=lambda row: list(row.prompt_ids))
    parts: list[list[R]] = []
    width = total = 0  # of the current part: its longest row, and the tokens of all of its rows
    for row in ordered:
        part = parts[-1] if parts else []
        widest, more = max(width, size(row)), size(row)
        if limits.shared and part and part[-1].prompt_ids == row.prompt_ids:
            more -= len(row.prompt_ids)
        tokens = (len(part) + 1) * widest if padded else total + more
        full = len(part) == limits.rows or (limits.tokens is not None and tokens > limits.tokens)
        if not part or full:
            parts.append([row])
            width = total = size(row)
        else:
            part.append(row)
            width, total = widest, total + more
    return parts


def _tokens_of(rows: Sequence[Row]) -> int:
    return sum(row.num_tokens for row in rows)


def padded_share(parts: Sequence[Sequence[Row]], limits: MicroBatchLimits) -> float:
    """The share of the positions of some micro-batches that is padding."""
    if not limits.padded or limits.shared:
        return 0.0
    real = sum(map(_tokens_of, parts))
    return 1 - real / sum(len(part) * max(map(limits.width, part)) for part in parts)
