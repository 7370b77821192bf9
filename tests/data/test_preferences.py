"""HH files: single-turn pairs read, the rest counted, malformed rows named, and the split."""

import gzip
import json
import logging
import re
from collections import Counter

import pytest

from trl_r1zero.data.preferences import PreferencePair, load_hh, split_validation

FILES = (
    "harmless-base.jsonl.gz",
    "helpful-base.jsonl.gz",
    "helpful-online.jsonl.gz",
    "helpful-rejection-sampled.jsonl.gz",
)


def conversation(*messages: str) -> str:
    """Human and assistant in turn, as HH writes them: an empty message leaves no space."""
    roles = ("Human", "Assistant")
    return "".join(
        f"\n\n{roles[number % 2]}:{' ' if message else ''}{message}"
        for number, message in enumerate(messages)
    )


def row(human: str, chosen: str, rejected: str) -> dict[str, str]:
    return {"chosen": conversation(human, chosen), "rejected": conversation(human, rejected)}


def write(path, rows):
    text = "".join(
        (line if isinstance(line, str) else json.dumps(line, ensure_ascii=False)) + "\n"
        for line in rows
    ).encode("utf-8")
    path.write_bytes(gzip.compress(text) if path.suffix == ".gz" else text)
    return path


SINGLE = [
    (f"How do I {verb} {thing}?", f"First, find {thing}.", f"I would rather not {verb}.")
    for verb in ("cook", "paint", "repair", "sell")
    for thing in ("a boat", "an egg", "the fence")
]
MULTI = [
    {
        "chosen": conversation("Hi", "Hello!", question, "Of course."),
        "rejected": conversation("Hi", "Hello!", question, "No."),
    }
    for question in ("Can you help me?", "Is water wet?", "Why?", "Und auf Deutsch?")
]


@pytest.fixture
def hh_folder(tmp_path):
    """The four files of the course, 15 rows each: 12 single-turn and 3 others."""
    for number, name in enumerate(FILES):
        rows = [row(f"{human} ({number})", *responses) for human, *responses in SINGLE]
        rows[2:2] = MULTI[:2]
        rows.append({"chosen": conversation("A?", "a"), "rejected": conversation("B?", "b")})
        write(tmp_path / name, rows)
    (tmp_path / "README.md").write_text("not data")
    return tmp_path


def test_a_folder_of_the_four_files(hh_folder, caplog):
    with caplog.at_level(logging.INFO):
        pairs = load_hh(hh_folder)
    assert Counter(pair.source_file for pair in pairs) == dict.fromkeys(FILES, 12)
    assert [pair.source_file for pair in pairs] == sorted(pair.source_file for pair in pairs)
    assert pairs[0] == PreferencePair(
        "How do I cook a boat? (0)",
        "First, find a boat.",
        "I would rather not cook.",
        "harmless-base.jsonl.gz",
        f"{hh_folder}/harmless-base.jsonl.gz:1",
    )
    # Lines 3 and 4 are multi-turn.
    assert [pair.where.rpartition(":")[2] for pair in pairs[:4]] == ["1", "2", "5", "6"]
    assert [record.getMessage() for record in caplog.records] == [
        f"{hh_folder}/{name}: 15 rows, 12 kept, left out: 2 multi-turn, "
        "1 with different human messages"
        for name in FILES
    ]
    assert load_hh(str(hh_folder)) == pairs


def test_one_file_of_any_name_plain_or_compressed(tmp_path):
    rows = [row(*texts) for texts in SINGLE]
    plain = load_hh(write(tmp_path / "my pairs.jsonl", rows))
    compressed = load_hh(write(tmp_path / "train.jsonl.gz", rows))
    assert [(p.instruction, p.chosen, p.rejected) for p in plain] == SINGLE
    assert [(p.instruction, p.chosen, p.rejected) for p in compressed] == SINGLE
    assert {pair.source_file for pair in compressed} == {"train.jsonl.gz"}
    assert len(load_hh(tmp_path)) == 2 * len(SINGLE)


@pytest.mark.parametrize(
    ("human", "chosen", "rejected"),
    [
        ("Wie heißt „Straße“ auf 日本語? 👋", "道路 (dōro)", "naïve\u00a0café"),
        ("Q?", "", "An answer."),
        ("Q?", "An answer.", ""),
        ("", "What can I do for you?", "Hm?"),
        ("What does Human: mean in Assistant: logs?", "Human: is a label.", "Assistant: too."),
        ("Two lines\nHuman: not a turn", "First\nAssistant: no turn\nHuman: none", "x"),
        ("A paragraph\n\nand another", "1. one\n\n2. two\n\nHumans: no turn", "x\n\n Human: y"),
        ("{prompt} %s \\n", "```\ncode\n```", "{}"),
    ],
)
def test_messages_come_back_as_they_are(tmp_path, human, chosen, rejected):
    path = write(tmp_path / "a.jsonl.gz", [row(human, chosen, rejected)])
    assert load_hh(path) == [PreferencePair(human, chosen, rejected, "a.jsonl.gz", f"{path}:1")]


def test_white_space_around_messages_is_removed(tmp_path):
    texts = {
        "chosen": "\n\nHuman:  Hi there \n\n\nAssistant:\nHello.\n\n",
        "rejected": "\n\nHuman: Hi there\n\nAssistant: ",
        "other": 1,
    }
    (pair,) = load_hh(write(tmp_path / "a.jsonl", [texts]))
    assert (pair.instruction, pair.chosen, pair.rejected) == ("Hi there", "Hello.", "")


@pytest.mark.parametrize(
    ("chosen", "rejected", "reason"),
    [
        (("Q", "A", "Q", "A"), ("Q", "A", "Q", "B"), "1 multi-turn, 0 with"),
        (("Q", "A"), ("Q", "A", "Q", "B"), "1 multi-turn, 0 with"),
        (("Q", "A", "Q", "A"), ("Q", "B"), "1 multi-turn, 0 with"),
        (("Q", "A", "Q"), ("Q", "B"), "1 multi-turn, 0 with"),
        # The text of a message that looks like a turn is one; there is no telling.
        (("Q", "A\n\nAssistant: more"), ("Q", "B"), "1 multi-turn, 0 with"),
        (("Q\n\nHuman: more", "A"), ("Q\n\nHuman: more", "B"), "1 multi-turn, 0 with"),
        (("Q", "A"), ("q", "B"), "0 multi-turn, 1 with different human messages"),
    ],
)
def test_rows_that_are_left_out_are_counted(tmp_path, caplog, chosen, rejected, reason):
    rows = [row("kept", "a", "b")]
    rows.append({"chosen": conversation(*chosen), "rejected": conversation(*rejected)})
    with caplog.at_level(logging.INFO):
        pairs = load_hh(write(tmp_path / "a.jsonl", rows))
    assert [pair.instruction for pair in pairs] == ["kept"]
    assert f"2 rows, 1 kept, left out: {reason}" in caplog.text


GOOD = row("Q?", "yes", "no")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{'chosen': 1}", r"a.jsonl.gz:3: got text that is not JSON"),
        ('["a", "b"]', r"a.jsonl.gz:3: got a JSON list, expected one JSON object per line"),
        ({"chosen": GOOD["chosen"]}, r"a.jsonl.gz:3: field 'rejected': got nothing"),
        ({"rejected": GOOD["rejected"]}, r"a.jsonl.gz:3: field 'chosen': got nothing"),
        ({**GOOD, "chosen": None}, r"a.jsonl.gz:3: field 'chosen': got None \(NoneType\)"),
        ({**GOOD, "rejected": ["x"]}, r"a.jsonl.gz:3: field 'rejected': got \['x'\] \(list\)"),
        ({**GOOD, "chosen": ""}, r"a.jsonl.gz:3: field 'chosen': got '' \(str\)"),
        (
            {**GOOD, "rejected": "plain text"},
            r"a.jsonl.gz:3: field 'rejected': got 'plain text', expected a conversation that "
            r"begins with '\\n\\nHuman:'; correct or remove",
        ),
        ({**GOOD, "chosen": "Human: Q?\n\nAssistant: yes"}, r"3: field 'chosen': got 'Human: Q"),
        ({**GOOD, "chosen": "Hm" + GOOD["chosen"]}, r"3: field 'chosen': got 'Hm"),
        ({**GOOD, "chosen": "\n\nAssistant: yes"}, r"3: field 'chosen': got .*begins with"),
        (
            {**GOOD, "rejected": "\n\nHuman: Q?"},
            r"3: field 'rejected': got a conversation of human turns only, expected a reply",
        ),
    ],
)
def test_malformed_rows_name_file_line_and_field(tmp_path, line, message):
    path = write(tmp_path / "a.jsonl.gz", [GOOD, GOOD, line, GOOD])
    with pytest.raises(ValueError, match=message):
        load_hh(path)


def test_a_malformed_multi_turn_row_is_an_error_too(tmp_path):
    path = write(tmp_path / "a.jsonl", [GOOD, {**MULTI[0], "rejected": "nothing of a turn"}])
    with pytest.raises(ValueError, match=r"a.jsonl:2: field 'rejected'"):
        load_hh(path)


def test_a_broken_gzip_file_is_an_error(tmp_path):
    path = tmp_path / "a.jsonl.gz"
    path.write_bytes(json.dumps(GOOD).encode())
    with pytest.raises(ValueError, match=r"a.jsonl.gz:1: got a broken gzip file"):
        load_hh(tmp_path)


def test_what_is_not_there(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"none.jsonl.gz does not exist"):
        load_hh(tmp_path / "none.jsonl.gz")
    with pytest.raises(FileNotFoundError, match=r"has no \*.jsonl or .*it has: nothing. Give the"):
        load_hh(tmp_path)
    (tmp_path / "data.json").write_text("{}")
    with pytest.raises(FileNotFoundError, match=r"it has: data.json. Give the folder"):
        load_hh(tmp_path)


def test_a_file_plain_and_compressed_would_count_twice(tmp_path):
    write(tmp_path / "helpful-base.jsonl", [GOOD])
    write(tmp_path / "helpful-base.jsonl.gz", [GOOD])
    with pytest.raises(ValueError, match=r"got both helpful-base.jsonl and helpful-base.jsonl.gz"):
        load_hh(tmp_path)


def test_no_single_turn_row_is_an_error(tmp_path):
    path = write(tmp_path / "a.jsonl", MULTI)
    message = f"{path}: got no single-turn pair (left out: 4 multi-turn, 0 with different"
    with pytest.raises(ValueError, match=re.escape(message)):
        load_hh(path)


# The split


def pairs_of(**counts: int) -> list[PreferencePair]:
    """So many pairs for each instruction."""
    return [
        PreferencePair(instruction, f"good {number}", f"bad {number}", "a.jsonl", "a.jsonl:1")
        for instruction, count in counts.items()
        for number in range(count)
    ]


def instructions(pairs) -> set[str]:
    return {pair.instruction for pair in pairs}


def test_split_validation_by_default_has_200(hh_folder):
    pairs = load_hh(hh_folder)
    many = pairs_of(**{f"q{number}": 1 + number % 3 for number in range(300)})
    train, validation = split_validation(many)
    assert (len(train), len(validation)) == (400, 200)
    assert not instructions(train) & instructions(validation)
    with pytest.raises(ValueError, match="num_validation: got 200 of 48 pairs"):
        split_validation(pairs)


@pytest.mark.parametrize("num_validation", [1, 7, 20, 47])
def test_split_validation_loses_nothing_and_keeps_the_order(hh_folder, num_validation):
    pairs = load_hh(hh_folder)
    train, validation = split_validation(pairs, num_validation, seed=3)
    assert len(validation) == num_validation
    assert not instructions(train) & instructions(validation)
    places = [pairs.index(pair) for pair in train], [pairs.index(pair) for pair in validation]
    assert sorted(places[0] + places[1]) == list(range(48))
    assert all(part == sorted(part) for part in places)


def test_split_validation_is_decided_by_the_seed(hh_folder):
    pairs = load_hh(hh_folder)
    first = split_validation(pairs, 10, seed=0)
    assert split_validation(pairs, 10) == first
    assert split_validation(pairs, 10, seed=1) != first
    # From the files of all kinds, not only from the last.
    assert len({pair.source_file for pair in first[1]}) > 1


@pytest.mark.parametrize("seed", range(10))
def test_pairs_of_an_instruction_stay_together(seed, caplog):
    pairs = pairs_of(a=5, b=1, c=1, d=2)
    train, validation = split_validation(pairs, 3, seed)
    # a never fits; b or c fits beside d, and where b and c come first, d does not fit any more.
    assert "a" not in instructions(validation)
    assert instructions(train) & instructions(validation) == set()
    if len(validation) < 3:
        assert instructions(validation) == {"b", "c"}
        assert "validation has 2 pairs, not 3" in caplog.text
    else:
        assert caplog.text == ""


def test_split_validation_says_when_it_has_fewer(caplog):
    train, validation = split_validation(pairs_of(a=2, b=2, c=2), 3)
    assert (len(train), len(validation)) == (4, 2)
    assert "validation has 2 pairs, not 3: the pairs of an instruction stay together" in caplog.text


@pytest.mark.parametrize("num_validation", [-1, 0, 4, 5])
def test_split_validation_leaves_something_on_both_sides(num_validation):
    with pytest.raises(ValueError, match=f"got {num_validation} of 4 pairs, expected at least 1"):
        split_validation(pairs_of(a=1, b=1, c=1, d=1), num_validation)


def test_split_validation_where_no_instruction_fits():
    with pytest.raises(ValueError, match="got 2, but every instruction has at least 3 pairs"):
        split_validation(pairs_of(a=3, b=4), 2)
