"""Strict CSV: every record is right, or the error says where it is not."""

import pytest

from trl_r1zero.data.files import read_csv


def fields(path, **settings):
    return [row.fields for row in read_csv(path, **settings)]


@pytest.fixture
def path(tmp_path):
    return tmp_path / "rows.csv"


def test_with_and_without_a_header(path):
    path.write_bytes(b'\xef\xbb\xbfa,b\r\n1,"x, ""y"""\r\n2,z\r\n')
    assert fields(path) == [{"a": "1", "b": 'x, "y"'}, {"a": "2", "b": "z"}]
    assert fields(path, columns=("c", "d"))[0] == {"c": "a", "d": "b"}


def test_a_record_is_named_by_its_first_line(path):
    path.write_text('a\n"one\ntwo"\n\nthree\n')
    rows = list(read_csv(path))
    assert [row.text("a") for row in rows] == ["one\ntwo", "three"]
    assert [row.where for row in rows] == [f"{path}:2", f"{path}:5"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"a,b\n1,2\n3\n", r"rows.csv:3: got 1 fields \(\['3'\]\), expected 2: a, b; put a field"),
        (b"a,b\n1,2,3\n", r"rows.csv:2: got 3 fields"),
        (b'a,b\n1,"2" 3\n', r"rows.csv:2: got a record that is no CSV"),
        (b'a,b\n1,2\n1,"2\n3', r"rows.csv:3: got a record that is no CSV \(unexpected end"),
        (b"a,b\n1,2\n1,\xff\n", r"rows.csv:3: got bytes that are not UTF-8"),
        (b"a,a\n1,2\n", r"rows.csv:1: got \['a', 'a'\], expected a header of different names"),
        (b"a,b\n", r"rows.csv:1: got a file without records"),
        (b"", r"rows.csv:1: got a file without records"),
    ],
)
def test_malformed(path, content, message):
    path.write_bytes(content)
    with pytest.raises(ValueError, match=message):
        fields(path)


def test_an_empty_file_without_a_header(path):
    path.write_text("\n\n")
    with pytest.raises(ValueError, match=r"rows.csv:1: got a file without records"):
        fields(path, columns=("a",))


def test_no_such_file(path):
    with pytest.raises(FileNotFoundError, match=r"rows.csv does not exist"):
        fields(path)
