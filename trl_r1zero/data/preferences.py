r"""Pairs of responses of which one is preferred, from Anthropic's HH files.

Bai et al. 2022 (arXiv:2204.05862), https://github.com/anthropics/hh-rlhf. Each line of a file is a
JSON object with the fields `chosen` and `rejected`: two whole conversations, made of turns that
begin with "\n\nHuman:" or "\n\nAssistant:".
"""

import logging
import random
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from trl_r1zero.data.bad_rows import BadRowError, BadRows, reading, usable
from trl_r1zero.data.files import Row, read_jsonl

logger = logging.getLogger(__name__)

FILE_SUFFIXES = (".jsonl", ".jsonl.gz")
# A message may speak of "Human:" in running text, or at the beginning of a line.
TURN = re.compile(r"\n\n(Human|Assistant):")
SINGLE_TURN = ["Human", "Assistant"]
# Why rows are left out.
MULTI_TURN = "multi-turn"
OTHER_MESSAGE = "with different human messages"


@dataclass(frozen=True)
class PreferencePair:
    """An instruction and two responses to it."""

    instruction: str  # the human's message
    chosen: str  # the response that was preferred; may be empty
    rejected: str  # the other one; may be empty
    source_file: str  # name of the file ("harmless-base.jsonl.gz")
    where: str  # the place it came from ("folder/file:line"), for messages


def load_hh(source: str | Path, on_bad_row: str | BadRows = "error") -> list[PreferencePair]:
    r"""Returns the single-turn pairs of one HH file, or of all in a folder, files by name and rows
    in their order.

    Kept are rows where both conversations are one human turn and then one assistant turn, with the
    same human message in both. How many rows of a file are left out, and why, is logged (level
    INFO). White space around a message is removed; one that is then empty is kept.

    Args:
        source: a JSON-lines file, plain or compressed (`*.gz`), or a folder that has `*.jsonl` or
            `*.jsonl.gz` files, of whatever names (subfolders are not searched).
        on_bad_row: see `Task.load`. A row cannot be used whose `chosen` or `rejected` is missing,
            not a string, does not begin with "\n\nHuman:" or has no "\n\nAssistant:"; nor can a
            single-turn one whose responses are equal, for there is nothing to prefer.

    Raises:
        FileNotFoundError: no such file or folder, or a folder without such files.
        ValueError: rows that cannot be used; a broken file, or one without rows; the same file
            twice, plain and compressed; no row that is kept.
    """
    source = Path(source).expanduser()
    pairs: list[PreferencePair] = []
    left_out: Counter[str] = Counter()
    with reading(str(source), on_bad_row):
        for path in _files_of(source) if source.is_dir() else [source]:
            pair_of = partial(_pair_or_reason, source_file=path.name)
            read = list(usable(pair_of, read_jsonl(path)))
            kept = [pair for pair in read if isinstance(pair, PreferencePair)]
            reasons = Counter(reason for reason in read if isinstance(reason, str))
            message = "%s: %d rows, %d kept, left out: %s"
            logger.info(message, path, len(read), len(kept), _counts(reasons))
            pairs += kept
            left_out += reasons
    if not pairs:
        raise ValueError(
            f"{source}: got no single-turn pair (left out: {_counts(left_out)}), expected rows "
            "with one human and one assistant turn, and the same human message in chosen and "
            "rejected; give other files"
        )
    return pairs


def split_validation(
    pairs: Sequence[PreferencePair], num_validation: int = 200, seed: int = 0
) -> tuple[list[PreferencePair], list[PreferencePair]]:
    """Returns `(train, validation)`, both in the order of `pairs`; no instruction is in both.

    Instructions are shuffled by `seed` and go to validation with all their pairs, as long as these
    fit into what is left of `num_validation`. Where most have one pair, as in HH, validation so
    has exactly so many; else it may have fewer, and a warning says so.

    Raises:
        ValueError: num_validation is below 1, or not below the number of pairs, or below the
            smallest number of pairs of an instruction.
    """
    if not 1 <= num_validation < len(pairs):
        raise ValueError(
            f"num_validation: got {num_validation} of {len(pairs)} pairs, expected at least 1 and "
            "fewer than all; change it, or give more pairs"
        )
    sizes = Counter(pair.instruction for pair in pairs)
    instructions = list(sizes)
    random.Random(seed).shuffle(instructions)
    chosen: set[str] = set()
    missing = num_validation
    for instruction in instructions:
        if sizes[instruction] <= missing:
            chosen.add(instruction)
            missing -= sizes[instruction]
    if not chosen:
        raise ValueError(
            f"num_validation: got {num_validation}, but every instruction has at least "
            f"{min(sizes.values())} pairs, which stay together; ask for at least so many"
        )
    if missing:
        message = "validation has %d pairs, not %d: the pairs of an instruction stay together"
        logger.warning(message, num_validation - missing, num_validation)
    train = [pair for pair in pairs if pair.instruction not in chosen]
    return train, [pair for pair in pairs if pair.instruction in chosen]


def _files_of(folder: Path) -> list[Path]:
    found = sorted(folder.iterdir())
    paths = [path for path in found if path.name.endswith(FILE_SUFFIXES)]
    if not paths:
        names = ", ".join(path.name for path in found) or "nothing"
        raise FileNotFoundError(
            f"folder {folder} has no *.jsonl or *.jsonl.gz file; it has: {names}. Give the folder "
            "with harmless-base.jsonl.gz and the other HH files, or one such file"
        )
    for path in paths:
        if path.with_name(f"{path.name}.gz") in paths:
            raise ValueError(
                f"folder {folder}: got both {path.name} and {path.name}.gz, expected one of them, "
                "or every pair would count twice; remove one"
            )
    return paths


def _pair_or_reason(row: Row, source_file: str) -> PreferencePair | str:
    """Returns the pair of a row, or why it is left out."""
    chosen_turns, rejected_turns = _turns(row, "chosen"), _turns(row, "rejected")
    if any([role for role, _ in turns] != SINGLE_TURN for turns in (chosen_turns, rejected_turns)):
        return MULTI_TURN
    (_, instruction), (_, chosen) = chosen_turns
    (_, other_instruction), (_, rejected) = rejected_turns
    if instruction != other_instruction:
        return OTHER_MESSAGE
    if chosen == rejected:
        raise BadRowError(
            row.where,
            "chosen and rejected are equal, so there is nothing to prefer; remove the row",
            "chosen and rejected are equal",
        )
    return PreferencePair(instruction, chosen, rejected, source_file, row.where)


def _turns(row: Row, field: str) -> list[tuple[str, str]]:
    """Returns (role, message) of each turn."""
    # Text before the first turn, then role and message in turn.
    before, *parts = TURN.split(row.text(field))
    roles, messages = parts[::2], parts[1::2]
    if before or roles[:1] != ["Human"]:
        expected = r"a conversation that begins with '\n\nHuman:'"
        raise row.error(field, f"{row.fields[field]!r:.60}", expected)
    if "Assistant" not in roles:
        expected = r"a reply that begins with '\n\nAssistant:'"
        raise row.error(field, "a conversation of human turns only", expected)
    return [(role, message.strip()) for role, message in zip(roles, messages, strict=True)]


def _counts(reasons: Counter[str]) -> str:
    return ", ".join(f"{reasons[reason]} {reason}" for reason in (MULTI_TURN, OTHER_MESSAGE))
