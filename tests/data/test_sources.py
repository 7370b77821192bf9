"""Strict JSON lines, and what a `source` may be."""

import gzip

import pytest
from datasets import Dataset

from trl_r1zero.data.files import read_json, read_jsonl
from trl_r1zero.data.sources import dataset_rows, hub_file, read_source

TWO_ROWS = '{"a": "x"}\n{"a": "y"}\n'


def texts(rows):
    return [row.text("a") for row in rows]


def test_read_jsonl_plain_and_compressed(tmp_path):
    (tmp_path / "rows.jsonl").write_text(TWO_ROWS + "\n  \n")
    (tmp_path / "rows.jsonl.gz").write_bytes(gzip.compress(TWO_ROWS.encode()))
    plain = list(read_jsonl(tmp_path / "rows.jsonl"))
    assert texts(plain) == texts(read_jsonl(tmp_path / "rows.jsonl.gz")) == ["x", "y"]
    assert plain[1].where == f"{tmp_path}/rows.jsonl:2"


def test_blank_lines_and_a_byte_order_mark_are_nothing(tmp_path):
    for name, reader in (("a.jsonl", read_jsonl), ("a.json", read_json)):
        path = tmp_path / name
        path.write_bytes(b'\xef\xbb\xbf{"a": "x"}\r\n \r\n{"a": "y"}\r\n\r\n')
        rows = list(reader(path))
        assert texts(rows) == ["x", "y"]
        assert rows[1].where == f"{path}:3"
    path.write_bytes(b'\xef\xbb\xbf[{"a": "x"}]')
    assert texts(read_json(path)) == ["x"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"a": "x"}\n{"a": \n', r"rows.jsonl:2: got text that is not JSON .*correct the line"),
        (
            b'{"a": "x"}\n["y"]\n',
            r"rows.jsonl:2: got a JSON list, expected one JSON object per line",
        ),
        (b'{"a": "\xff"}\n', r"rows.jsonl:1: got bytes that are not UTF-8 \(at byte 7"),
        (b"", r"rows.jsonl:1: got a file without rows"),
        (b"\n\n", r"rows.jsonl:1: got a file without rows"),
    ],
)
def test_read_jsonl_malformed(tmp_path, content, message):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=message):
        list(read_jsonl(path))


def test_read_jsonl_broken_gzip(tmp_path):
    path = tmp_path / "rows.jsonl.gz"
    path.write_text(TWO_ROWS)
    with pytest.raises(ValueError, match=r"rows.jsonl.gz:1: got a broken gzip file"):
        list(read_jsonl(path))
    path.write_bytes(gzip.compress(TWO_ROWS.encode())[:-9])
    with pytest.raises(ValueError, match=r"got a broken gzip file"):
        list(read_jsonl(path))


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (
            '{"b": "x"}',
            r"rows.jsonl:1: field 'a': got nothing, expected a non-empty string; add it",
        ),
        (
            '{"a": 5}',
            r"rows.jsonl:1: field 'a': got 5 \(int\), expected a non-empty string; correct",
        ),
        (
            '{"a": null}',
            r"rows.jsonl:1: field 'a': got None \(NoneType\), expected a non-empty str",
        ),
        ('{"a": " "}', r"rows.jsonl:1: field 'a': got ' ' \(str\), expected a non-empty string"),
    ],
)
def test_row_text_errors(tmp_path, row, message):
    path = tmp_path / "rows.jsonl"
    path.write_text(row)
    with pytest.raises(ValueError, match=message):
        texts(read_jsonl(path))


def test_row_names_the_nearest_field(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text('{"problems": "x", "answer": "y"}')
    with pytest.raises(ValueError, match=r"did you mean 'problems'\? Allowed: answer, problems"):
        next(read_jsonl(path)).text("problem")


def test_read_source_file_and_folder(tmp_path, monkeypatch):
    (tmp_path / "train.jsonl").write_text(TWO_ROWS)
    (tmp_path / "validation.jsonl.gz").write_bytes(gzip.compress(b'{"a": "z"}\n'))
    assert texts(read_source(f"{tmp_path}/train.jsonl", "validation")) == ["x", "y"]
    assert texts(read_source(str(tmp_path), "train")) == ["x", "y"]
    assert texts(read_source(str(tmp_path), "validation")) == ["z"]
    monkeypatch.chdir(tmp_path)
    assert texts(read_source("train.jsonl", "train")) == ["x", "y"]
    with pytest.raises(
        FileNotFoundError, match=r"has no test.jsonl or test.jsonl.gz; it has: train.jsonl, valid"
    ):
        read_source(str(tmp_path), "test")


@pytest.mark.parametrize(
    "source", ["no.jsonl", "no.jsonl.gz", "no.json", "./no", "../no", "/no", "~/no"]
)
def test_read_source_takes_what_looks_like_a_path_for_one(tmp_path, monkeypatch, source):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"looks like a local path, and /.* does not exist"):
        read_source(source, "train")


@pytest.mark.parametrize("source", ["a/b/c", "a b", "a:b:c", "a@"])
def test_read_source_neither_path_nor_hub_id(tmp_path, monkeypatch, source):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=r"expected a local file of rows or a folder, or a Hub id"):
        read_source(source, "train")


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ("some/set", "some/set:train"),
        ("some/set:test", "some/set:test"),
        ("some/set@main", "some/set@main:train"),
        ("some/set@main:test", "some/set@main:test"),
    ],
)
def test_read_source_hub_without_a_network(tmp_path, monkeypatch, source, name):
    import datasets.config
    import huggingface_hub.constants

    # As HF_HUB_OFFLINE=1 sets them when the libraries are imported.
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(OSError, match=r"could not load .* run\n.*to_json") as error:
        read_source(source, "train")
    assert f"could not load {name} from the Hugging Face Hub" in str(error.value)
    assert error.value.__cause__ is not None


def test_hub_file_without_a_network(monkeypatch, tmp_path):
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(OSError, match=r"could not load rows.json of the data set some/set") as e:
        hub_file("some/set", "rows.json")
    assert "hf download some/set rows.json --repo-type dataset --local-dir ." in str(e.value)
    assert "copy rows.json here, and give its path as the source" in str(e.value)


def test_read_source_by_the_name_of_the_file(tmp_path):
    (tmp_path / "rows.csv").write_text('a,b\n"x, y",1\n')
    (tmp_path / "rows.json").write_text('[{"a": "x"}, {"a": "y"}]')
    (tmp_path / "lines.json").write_text(TWO_ROWS)
    assert texts(read_source(f"{tmp_path}/rows.csv", "test")) == ["x, y"]
    rows = list(read_source(f"{tmp_path}/rows.json", "test"))
    assert texts(rows) == texts(read_source(f"{tmp_path}/lines.json", "test")) == ["x", "y"]
    assert rows[1].where == f"{tmp_path}/rows.json[1]"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"[]", r"rows.json: got an array without elements"),
        (b'[{"a": "x"},\n 5]', r"rows.json\[1\]: got a JSON int, expected an object"),
        (b'[{"a": "x"},\n {"a": ]', r"rows.json:2: got text that is not JSON .* column 8"),
        (b'[{"a": "\xff"}]', r"rows.json:1: got bytes that are not UTF-8 \(at byte 8 of"),
        (b'{"a": "x"}\n["y"]\n', r"rows.json:2: got a JSON list, expected one JSON object per li"),
        (b"", r"rows.json:1: got a file without rows"),
    ],
)
def test_read_json_malformed(tmp_path, content, message):
    path = tmp_path / "rows.json"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=message):
        list(read_json(path))


def test_dataset_rows_are_checked_like_lines():
    rows = dataset_rows(Dataset.from_dict({"a": ["x", None]}), "some/set:train")
    assert next(rows).text("a") == "x"
    with pytest.raises(ValueError, match=r"some/set:train row 1: field 'a': got None"):
        next(rows).text("a")
