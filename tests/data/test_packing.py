"""Packed instruction data: documents, chunks, their order and batches; see `packed_rows`."""

import json
import os
import pickle
from itertools import chain, pairwise
from pathlib import Path

import pytest
import torch
from packed_rows import DOCUMENTS, ROWS, TOKENS, number_tokenizer, pairs, stream, written
from torch.utils.data import DataLoader
from transformers import ByT5Tokenizer

from trl_r1zero.data import packing
from trl_r1zero.data.packing import PackedSFTDataset, iterate_batches
from trl_r1zero.data.prompts import format_alpaca

pytestmark = pytest.mark.usefixtures("cache_dir")
REAL_DATA = Path(__file__).parents[3] / "shared" / "data"
needs_real_data = pytest.mark.skipif(
    not REAL_DATA.is_dir(), reason="the published data sets are not beside the repository"
)


# The template


def test_format_alpaca():
    assert format_alpaca("Say hi.", "Hi!") == (
        "Below is an instruction that describes a task. Write a response that appropriately "
        "completes the request.\n\n### Instruction:\nSay hi.\n\n### Response:\nHi!"
    )
    assert format_alpaca("Say hi.") + "Hi!" == format_alpaca("Say hi.", "Hi!")


def test_format_alpaca_takes_braces_as_they_are():
    text = format_alpaca("a {response} {0} {", "} {prompt}")
    assert text.endswith("### Instruction:\na {response} {0} {\n\n### Response:\n} {prompt}")


# Chunks


def test_chunks_by_hand(tmp_path, numbers):
    dataset = PackedSFTDataset(numbers, written(tmp_path), 6, False)
    # 21 tokens: (21 - 1) // 6 = 3 chunks; the last two tokens are never an input.
    assert pairs(dataset) == [
        ([1, 3, 10, 11, 4, 12], [3, 10, 11, 4, 12, 2]),
        ([2, 1, 3, 20, 4, 21], [1, 3, 20, 4, 21, 22]),
        ([22, 23, 2, 1, 3, 30], [23, 2, 1, 3, 30, 4]),
    ]
    assert (len(dataset), dataset.num_tokens, dataset.num_documents) == (3, 21, 3)
    assert set(dataset[0]) == {"input_ids", "labels"}
    assert dataset[0]["input_ids"].dtype == dataset[0]["labels"].dtype == torch.long


@pytest.mark.parametrize(("seq_length", "chunks"), [(1, 20), (4, 5), (5, 4), (7, 2), (20, 1)])
@pytest.mark.parametrize("shuffle", [False, True])
def test_every_token_is_in_one_chunk(tmp_path, numbers, seq_length, chunks, shuffle):
    path = written(tmp_path)
    tokens = stream(PackedSFTDataset(numbers, path, 1, shuffle))
    assert sorted(tokens) == sorted(TOKENS)
    dataset = PackedSFTDataset(numbers, path, seq_length, shuffle)
    assert len(dataset) == chunks
    inputs, labels = zip(*pairs(dataset), strict=True)
    assert list(chain(*inputs)) == tokens[: chunks * seq_length]
    assert list(chain(*labels)) == tokens[1 : chunks * seq_length + 1]


def test_changing_one_tensor_leaves_the_other(tmp_path, numbers):
    chunk = PackedSFTDataset(numbers, written(tmp_path), 6, False)[0]
    chunk["labels"][:] = -100
    assert chunk["input_ids"].tolist() == [1, 3, 10, 11, 4, 12]


def test_index(tmp_path, numbers):
    dataset = PackedSFTDataset(numbers, written(tmp_path), 6, False)
    assert torch.equal(dataset[-1]["labels"], dataset[2]["labels"])
    for index in (3, -4):
        with pytest.raises(IndexError, match=rf"got index {index}, but there are 3 chunks"):
            dataset[index]
    with pytest.raises(TypeError):
        dataset[0.5]


# Documents


def test_a_document_is_the_template_and_the_end_token(tmp_path, tokenizer):
    dataset = PackedSFTDataset(tokenizer, written(tmp_path), 1, False)
    # This tokenizer has no begin token.
    expected = [
        format_alpaca("10 11", "12"),
        format_alpaca("20", "21 22 23"),
        format_alpaca("30", "31"),
    ]
    end = tokenizer.eos_token
    assert tokenizer.decode(stream(dataset)) == end.join(expected) + end


def test_a_tokenizer_that_adds_an_end_token_gets_no_second(tmp_path):
    tokenizer = number_tokenizer("<s> $A </s>")
    assert tokenizer("10")["input_ids"] == [1, 10, 2]
    assert stream(PackedSFTDataset(tokenizer, written(tmp_path), 1, False)) == TOKENS


def test_a_response_that_spells_the_end_token_gets_no_second(tmp_path, numbers):
    rows = [{**row, "response": row["response"] + "</s>"} for row in ROWS]
    assert stream(PackedSFTDataset(numbers, written(tmp_path, rows), 1, False)) == TOKENS


def test_an_empty_response_is_a_document(tmp_path, numbers):
    path = written(tmp_path, [{"prompt": "10", "response": ""}])
    assert stream(PackedSFTDataset(numbers, path, 1, False)) == [1, 3, 10, 4, 2]


def test_a_slow_tokenizer(tmp_path):
    # Bytes + 3, and an end token of its own, 1.
    tokenizer = ByT5Tokenizer()
    assert not tokenizer.is_fast
    dataset = PackedSFTDataset(tokenizer, written(tmp_path), 1, False)
    texts = [format_alpaca(row["prompt"], row["response"]).encode() for row in ROWS]
    assert stream(dataset) == [
        token for text in texts for token in [*(byte + 3 for byte in text), 1]
    ]


def test_documents_longer_than_the_context_are_not_cut(tmp_path, caplog):
    tokenizer = number_tokenizer(model_max_length=4)
    assert stream(PackedSFTDataset(tokenizer, written(tmp_path), 1, False)) == TOKENS
    assert not caplog.records


@pytest.mark.parametrize(
    ("limit", "sizes"),
    # A document has some 150 characters, so with at most 7 it fills a batch alone.
    [("DOCUMENTS_PER_BATCH", [7] * 7 + [1]), ("CHARACTERS_PER_BATCH", [1] * 50)],
)
def test_batches_of_documents_leave_no_trace(tmp_path, numbers, monkeypatch, limit, sizes):
    tokenize, seen = packing._tokenize, []

    def tokenize_and_note(tokenizer, texts):
        seen.append(len(texts))
        return tokenize(tokenizer, texts)

    monkeypatch.setattr(packing, "_tokenize", tokenize_and_note)
    path = written(tmp_path, [{"prompt": str(10 + row), "response": "5"} for row in range(50)])
    whole = stream(PackedSFTDataset(numbers, path, 1, False))
    assert seen == [50]
    assert whole == [token for row in range(50) for token in (1, 3, 10 + row, 4, 5, 2)]

    monkeypatch.setattr(packing, limit, 7)
    again = PackedSFTDataset(numbers, path, 1, False, cache_dir=tmp_path / "another")
    assert seen[1:] == sizes
    assert stream(again) == whole


@needs_real_data
def test_the_published_sample(tokenizer):
    path = REAL_DATA / "instruction_sft_sample.jsonl"
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    texts = [format_alpaca(row["prompt"], row["response"]) + tokenizer.eos_token for row in rows]
    ids = list(chain(*tokenizer(texts)["input_ids"]))
    dataset = PackedSFTDataset(tokenizer, path, 64, False)
    assert dataset.num_documents == 5
    assert pairs(dataset) == [
        (ids[start : start + 64], ids[start + 1 : start + 65])
        for start in range(0, len(ids) - 64, 64)
    ]
    assert pairs(PackedSFTDataset(tokenizer, path, 64, True)) != pairs(dataset)


# Shuffle


def in_order(order):
    return list(chain(*(DOCUMENTS[document] for document in order)))


def test_shuffle_puts_whole_documents_into_another_order(tmp_path, numbers):
    path = written(tmp_path)
    streams = {
        tuple(stream(PackedSFTDataset(numbers, path, 1, True, seed=seed))) for seed in range(60)
    }
    orders = [(0, 1, 2), (0, 2, 1), (1, 0, 2), (1, 2, 0), (2, 0, 1), (2, 1, 0)]
    # Every order comes up, and nothing but orders of whole documents.
    assert streams == {tuple(in_order(order)) for order in orders}


def test_shuffled_chunks_are_cut_from_the_shuffled_documents(tmp_path, numbers):
    path = written(tmp_path)
    shuffled = stream(PackedSFTDataset(numbers, path, 1, True, seed=3))
    for seq_length in range(2, 21):
        chunks = pairs(PackedSFTDataset(numbers, path, seq_length, True, seed=3))
        for chunk, (ids, labels) in enumerate(chunks):
            start = chunk * seq_length
            assert ids == shuffled[start : start + seq_length]
            assert labels == shuffled[start + 1 : start + seq_length + 1]


def test_seed_decides_the_order(tmp_path, numbers):
    path = written(tmp_path, [{"prompt": str(10 + row), "response": "5"} for row in range(50)])
    first, again, other = (
        stream(PackedSFTDataset(numbers, path, 1, True, **seed))
        for seed in ({}, {"seed": 0}, {"seed": 1})
    )
    assert first == again != other


@pytest.mark.parametrize("shuffle", [False, True])
def test_a_pickled_dataset_names_its_tokens(tmp_path, numbers, shuffle):
    rows = [{"prompt": "10", "response": "11 " * 1000}] * 20
    dataset = PackedSFTDataset(numbers, written(tmp_path, rows), 64, shuffle)
    pickled = pickle.dumps(dataset)
    assert len(pickled) < 1000
    assert pairs(pickle.loads(pickled)) == pairs(dataset)


def test_progress_bar(tmp_path, numbers, capsys):
    path = written(tmp_path, name="rows.jsonl.gz")
    PackedSFTDataset(numbers, path, 6, False)
    assert "Tokenising rows.jsonl.gz: 100%" in (shown := capsys.readouterr().err)
    assert "3/3" in shown
    PackedSFTDataset(numbers, path, 6, False)
    PackedSFTDataset(number_tokenizer("$A"), path, 6, False, show_progress=False)
    assert capsys.readouterr().err == ""


# Errors


def entries(folder):
    return sorted(path.name for path in folder.iterdir())


def test_errors(tmp_path, numbers):
    path = written(tmp_path)
    with pytest.raises(ValueError, match=r"seq_length: got 0, expected at least 1"):
        PackedSFTDataset(numbers, path, 0, False)
    with pytest.raises(ValueError, match=r"eos_token_id is None.*set one that the model knows"):
        PackedSFTDataset(number_tokenizer(eos_token=None), path, 6, False)
    with pytest.raises(FileNotFoundError, match=r"none\.jsonl does not exist; give a path"):
        PackedSFTDataset(numbers, tmp_path / "none.jsonl", 6, False)
    with pytest.raises(
        ValueError,
        match=r"got 21 tokens in 3 documents, expected at least 22 .* give a smaller seq_length",
    ):
        PackedSFTDataset(numbers, path, 21, False)
    with pytest.raises(
        OSError, match=r"cannot make the cache folder .*; set cache_dir to a folder"
    ):
        PackedSFTDataset(numbers, path, 6, False, cache_dir=path)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"prompt": "10"}', "field 'response': got nothing, expected a string"),
        ('{"prompt": "10", "response": null}', "field 'response': got nothing"),
        ('{"prompt": "10", "response": 7}', r"field 'response': got 7 \(int\), expected a string"),
        ('{"response": "10"}', "field 'prompt': got nothing, expected a non-empty string"),
        ('{"prompt": " ", "response": "10"}', "field 'prompt': got ' '"),
        ('{"prompt": "10", ', "got text that is not JSON"),
    ],
)
def test_a_malformed_row_is_named_and_nothing_cached(tmp_path, numbers, cache_dir, line, message):
    path = written(tmp_path)
    with path.open("a") as file:
        file.write(line + "\n")
    with pytest.raises(ValueError, match=rf"rows\.jsonl:4: {message}"):
        PackedSFTDataset(numbers, path, 6, False)
    assert entries(cache_dir) == []


def test_an_empty_file(tmp_path, numbers):
    for name in ("rows.jsonl", "rows.jsonl.gz"):
        with pytest.raises(ValueError, match=rf"{name}:1: got a file without rows"):
            PackedSFTDataset(numbers, written(tmp_path, [], name), 6, False)


def test_a_broken_gz_file(tmp_path, numbers, cache_dir):
    path = written(tmp_path, name="rows.jsonl.gz")
    os.truncate(path, path.stat().st_size - 12)
    with pytest.raises(ValueError, match=r"got a broken gzip file"):
        PackedSFTDataset(numbers, path, 6, False)
    assert entries(cache_dir) == []


# iterate_batches


def test_iterate_batches_in_order(tmp_path, numbers):
    dataset = PackedSFTDataset(numbers, written(tmp_path), 4, False)
    batches = iterate_batches(dataset, 2, False)
    # 5 chunks of 4: batches of 2, 2 and 1.
    assert len(batches) == 3
    assert [batch["input_ids"].tolist() for batch in batches] == [
        [[1, 3, 10, 11], [4, 12, 2, 1]],
        [[3, 20, 4, 21], [22, 23, 2, 1]],
        [[3, 30, 4, 31]],
    ]
    assert [batch["labels"].tolist() for batch in batches] == [
        [[3, 10, 11, 4], [12, 2, 1, 3]],
        [[20, 4, 21, 22], [23, 2, 1, 3]],
        [[30, 4, 31, 2]],
    ]


@pytest.mark.parametrize(
    ("batch_size", "lengths"), [(1, [1] * 20), (8, [8, 8, 4]), (20, [20]), (30, [20])]
)
def test_shuffled_batches_hold_every_item_once(tmp_path, numbers, batch_size, lengths):
    dataset = PackedSFTDataset(numbers, written(tmp_path), 1, False)
    batches = iterate_batches(dataset, batch_size, True, seed=0)
    assert len(batches) == len(lengths)
    passes = []
    for _ in range(2):
        pass_ = list(batches)
        assert [len(batch["input_ids"]) for batch in pass_] == lengths
        rows = [
            (ids.item(), label.item())
            for batch in pass_
            for ids, label in zip(batch["input_ids"], batch["labels"], strict=True)
        ]
        assert sorted(rows) == sorted(pairwise(TOKENS))
        passes.append(rows)
    assert passes[0] != passes[1]


def test_seed_decides_the_batches(tmp_path, numbers):
    dataset = PackedSFTDataset(numbers, written(tmp_path), 1, False)

    def order(**seed):
        return [batch["input_ids"].tolist() for batch in iterate_batches(dataset, 4, True, **seed)]

    assert order(seed=5) == order(seed=5) != order(seed=6)
    torch.manual_seed(1)
    first = order()
    torch.manual_seed(1)
    assert order() == first


def test_iterate_batches_error(tmp_path, numbers):
    dataset = PackedSFTDataset(numbers, written(tmp_path), 4, False)
    with pytest.raises(ValueError, match=r"batch_size: got 0, expected at least 1"):
        iterate_batches(dataset, 0, False)


def test_workers_read_the_same(tmp_path, numbers):
    dataset = PackedSFTDataset(numbers, written(tmp_path), 4, True)
    alone = [batch["labels"].tolist() for batch in DataLoader(dataset, batch_size=2)]
    loader = DataLoader(dataset, batch_size=2, num_workers=2, multiprocessing_context="fork")
    assert [batch["labels"].tolist() for batch in loader] == alone
