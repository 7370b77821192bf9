"""The embedded tokenizer, built once for all tests of this folder, and what packing needs."""

import pytest
from packed_rows import number_tokenizer

from trl_r1zero.data.embedded_tokenizer import build_embedded_tokenizer


@pytest.fixture(scope="session")
def tokenizer():
    return build_embedded_tokenizer()


@pytest.fixture
def numbers():
    return number_tokenizer()


@pytest.fixture
def cache_dir(tmp_path, monkeypatch):
    """The default cache folder of packed data."""
    monkeypatch.delenv("HF_HOME", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "trl_r1zero" / "packed_sft"
