"""The embedded tokenizer, built once for all tests of this folder."""

import pytest

from trl_r1zero.data.embedded_tokenizer import build_embedded_tokenizer


@pytest.fixture(scope="session")
def tokenizer():
    return build_embedded_tokenizer()
