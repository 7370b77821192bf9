"""The tokens of packed data on disk: when they are made again, and what ends a build early."""

import json
import multiprocessing
import os
import signal
import time
import tracemalloc

import pytest
from packed_rows import ROWS, TOKENS, AnotherTokenizer, number_tokenizer, pairs, stream, written
from transformers import ByT5Tokenizer

from trl_r1zero.data import packing
from trl_r1zero.data.packing import PackedSFTDataset, default_cache_dir

pytestmark = pytest.mark.usefixtures("cache_dir")
fork = multiprocessing.get_context("fork")


def forbid_building(monkeypatch):
    def fail(*_):
        raise AssertionError("tokenised again")

    monkeypatch.setattr(packing, "_tokenize", fail)


def entries(folder):
    return sorted(path.name for path in folder.iterdir())


def test_gz_has_the_same_chunks(tmp_path, numbers):
    plain = PackedSFTDataset(numbers, written(tmp_path), 6, False)
    packed = PackedSFTDataset(numbers, written(tmp_path, name="rows.jsonl.gz"), 6, False)
    assert pairs(packed) == pairs(plain)


def test_cache_is_used_again(tmp_path, numbers, monkeypatch, cache_dir):
    path = written(tmp_path)
    before = pairs(PackedSFTDataset(numbers, path, 6, False))
    (entry,) = cache_dir.iterdir()
    files = {file.name: file.stat() for file in entry.iterdir()}
    assert {name: file.st_size for name, file in files.items()} == {
        "tokens.bin": 21 * 4,
        "ends.bin": 3 * 8,
    }

    forbid_building(monkeypatch)
    moved = path.rename(tmp_path / "elsewhere.jsonl")  # the name of the file does not matter
    assert pairs(PackedSFTDataset(number_tokenizer(), moved, 6, False)) == before
    PackedSFTDataset(numbers, moved, 4, False)
    PackedSFTDataset(numbers, moved, 6, True, seed=1)
    assert entries(cache_dir) == [entry.name]
    for file in entry.iterdir():
        assert file.stat().st_ino == files[file.name].st_ino
        assert file.stat().st_mtime_ns == files[file.name].st_mtime_ns


def test_cache_knows_a_tokenizer_that_padded_and_cut_before(tmp_path, numbers, monkeypatch):
    path = written(tmp_path)
    before = pairs(PackedSFTDataset(numbers, path, 6, False))
    numbers(["10 11 12", "10"], padding="max_length", truncation=True, max_length=2)
    forbid_building(monkeypatch)
    assert pairs(PackedSFTDataset(numbers, path, 6, False)) == before


def test_padding_and_truncation_of_earlier_calls_do_not_touch_documents(tmp_path, numbers):
    numbers(["10 11 12", "10"], padding="max_length", truncation=True, max_length=2)
    assert stream(PackedSFTDataset(numbers, written(tmp_path), 1, False)) == TOKENS


def test_another_content_is_tokenised(tmp_path, numbers, cache_dir):
    path = written(tmp_path)
    PackedSFTDataset(numbers, path, 6, False)
    # As long as before, and as old.
    times = path.stat().st_atime_ns, path.stat().st_mtime_ns
    written(tmp_path, [ROWS[0], ROWS[1], {"prompt": "30", "response": "99"}])
    os.utime(path, ns=times)
    changed = stream(PackedSFTDataset(numbers, path, 1, False))
    assert changed == [*TOKENS[:-2], 99, 2]
    assert len(entries(cache_dir)) == 2


@pytest.mark.parametrize(
    "other",
    [
        number_tokenizer("$A"),
        number_tokenizer(eos_token="?"),
        number_tokenizer(split_special_tokens=True),
        number_tokenizer(kind=AnotherTokenizer),
    ],
    ids=["no begin token", "another end token", "specials split", "another class"],
)
def test_another_tokenizer_has_an_entry_of_its_own(tmp_path, numbers, other, cache_dir):
    path = written(tmp_path)
    PackedSFTDataset(numbers, path, 6, False)
    PackedSFTDataset(other, path, 6, False)
    assert len(entries(cache_dir)) == 2


def test_slow_tokenizers_are_told_apart(tmp_path, cache_dir):
    path = written(tmp_path)
    PackedSFTDataset(ByT5Tokenizer(), path, 6, False)
    PackedSFTDataset(ByT5Tokenizer(), path, 6, False)
    assert len(entries(cache_dir)) == 1
    with_token = ByT5Tokenizer()
    with_token.add_tokens(["Instruction"])
    PackedSFTDataset(with_token, path, 6, False)
    assert len(entries(cache_dir)) == 2


def test_another_template_has_an_entry_of_its_own(tmp_path, numbers, monkeypatch, cache_dir):
    path = written(tmp_path)
    PackedSFTDataset(numbers, path, 6, False)
    monkeypatch.setattr(packing, "ALPACA_TEMPLATE", "{prompt} {response}")
    PackedSFTDataset(numbers, path, 6, False)
    assert len(entries(cache_dir)) == 2


def test_where_the_cache_is(tmp_path, numbers, monkeypatch):
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    assert default_cache_dir() == tmp_path / "hf" / "trl_r1zero" / "packed_sft"
    monkeypatch.delenv("HF_HOME")
    assert default_cache_dir() == tmp_path / "cache" / "trl_r1zero" / "packed_sft"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert default_cache_dir() == tmp_path / "home" / ".cache" / "trl_r1zero" / "packed_sft"

    data = tmp_path / "data"
    data.mkdir()
    PackedSFTDataset(numbers, written(data), 6, False)
    assert entries(data) == ["rows.jsonl"]
    assert len(entries(default_cache_dir())) == 1
    PackedSFTDataset(numbers, written(data), 6, False, cache_dir=data)
    assert len(entries(data)) == 2


# Builds that end early, and several at once


def one_document_a_batch(monkeypatch, before_second):
    """From now on documents are tokenised one by one; before the second, `before_second()` runs."""
    tokenize, calls = packing._tokenize, []

    def tokenize_one(tokenizer, texts):
        calls.append(texts)
        if len(calls) == 2:
            before_second()
        return tokenize(tokenizer, texts)

    monkeypatch.setattr(packing, "DOCUMENTS_PER_BATCH", 1)
    monkeypatch.setattr(packing, "_tokenize", tokenize_one)


def in_processes(*targets):
    """Runs the functions in processes of their own, and returns the exit codes."""
    processes = [fork.Process(target=target) for target in targets]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    return [process.exitcode for process in processes]


def test_a_killed_build_is_no_entry(tmp_path, numbers, monkeypatch, cache_dir):
    path = written(tmp_path)
    with monkeypatch.context() as patch:
        one_document_a_batch(patch, lambda: os.kill(os.getpid(), signal.SIGKILL))
        assert in_processes(lambda: PackedSFTDataset(numbers, path, 1, False)) == [-signal.SIGKILL]
    (left,) = cache_dir.iterdir()
    assert left.name.startswith(".building-")

    assert stream(PackedSFTDataset(numbers, path, 1, False)) == TOKENS
    # It may be another process at work: what is left is removed only when nobody has touched it
    # for a day.
    assert left.is_dir()
    a_day_ago = time.time() - packing.ABANDONED_SECONDS - 1
    for place in (left, *left.iterdir()):
        os.utime(place, (a_day_ago, a_day_ago))
    PackedSFTDataset(number_tokenizer("$A"), path, 1, False)
    assert not left.exists()
    assert len(entries(cache_dir)) == 2


def test_a_build_that_fails_leaves_nothing(tmp_path, numbers, monkeypatch, cache_dir):
    def interrupt():
        raise KeyboardInterrupt

    path = written(tmp_path)
    with monkeypatch.context() as patch:
        one_document_a_batch(patch, interrupt)
        with pytest.raises(KeyboardInterrupt):
            PackedSFTDataset(numbers, path, 1, False)
    assert entries(cache_dir) == []


def test_two_processes_build_at_once(tmp_path, numbers, monkeypatch, cache_dir):
    path = written(tmp_path)
    barrier = fork.Barrier(2)
    # Each waits in the middle of its build for the other to be in the middle of its own.
    one_document_a_batch(monkeypatch, lambda: barrier.wait(60))

    def build():
        if stream(PackedSFTDataset(numbers, path, 1, False)) != TOKENS:
            os._exit(3)

    assert in_processes(build, build) == [0, 0]
    assert len(entries(cache_dir)) == 1
    forbid_building(monkeypatch)
    assert stream(PackedSFTDataset(numbers, path, 1, False)) == TOKENS


def test_the_slower_of_two_builds_takes_the_entry_of_the_faster(tmp_path, numbers, monkeypatch):
    path = written(tmp_path)
    faster = []
    one_document_a_batch(
        monkeypatch, lambda: faster.append(PackedSFTDataset(numbers, path, 1, False))
    )
    slower = PackedSFTDataset(numbers, path, 1, False)
    assert stream(slower) == stream(faster[0]) == TOKENS


def test_a_file_that_changes_while_it_is_read_is_not_cached(
    tmp_path, numbers, monkeypatch, cache_dir
):
    path = written(tmp_path)

    def append():
        with path.open("a") as file:
            file.write(json.dumps(ROWS[0]) + "\n")

    one_document_a_batch(monkeypatch, append)
    with pytest.raises(RuntimeError, match=r"rows\.jsonl changed while it was read"):
        PackedSFTDataset(numbers, path, 1, False)
    assert entries(cache_dir) == []


@pytest.mark.parametrize("size", [None, 0, 10, 20 * 4])
@pytest.mark.parametrize("name", ["tokens.bin", "ends.bin"])
def test_a_damaged_entry_is_an_error(tmp_path, numbers, cache_dir, name, size):
    path = written(tmp_path)
    PackedSFTDataset(numbers, path, 1, False)
    (entry,) = cache_dir.iterdir()
    if size is None:
        (entry / name).unlink()
    else:
        os.truncate(entry / name, size)
    with pytest.raises(RuntimeError, match=r"missing or cut off; delete this folder"):
        PackedSFTDataset(numbers, path, 1, False)


def test_a_build_holds_one_batch_of_documents(tmp_path, numbers, monkeypatch):
    row = json.dumps({"prompt": "10", "response": "x" * 5000}) + "\n"
    path = tmp_path / "rows.jsonl"
    path.write_text(row * 1000)  # 5 MB
    monkeypatch.setattr(packing, "DOCUMENTS_PER_BATCH", 16)
    tracemalloc.start()
    dataset = PackedSFTDataset(numbers, path, 64, True, show_progress=False)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert dataset.num_tokens == 1000 * 6
    assert peak < 1_000_000
