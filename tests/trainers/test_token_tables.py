"""The tokens of logged rollouts as text."""

import math

import pytest

from trl_r1zero.generation import Completion
from trl_r1zero.trainers.token_tables import token_texts, write_tokens


@pytest.mark.parametrize("text", ["14 + 5 = 19 </answer>", " naïve ½", "日本語 🎉!", ""])
def test_the_texts_of_tokens_are_the_text(tokenizer, text):
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    texts = token_texts(ids, tokenizer)
    assert len(texts) == len(ids) and "".join(texts) == text


def test_values_that_a_sampler_does_not_give_or_that_are_infinite_are_null(tokenizer, tmp_path):
    ids = tokenizer("ab", add_special_tokens=False)["input_ids"]
    log_probs = [-math.inf] + [-0.12345] * (len(ids) - 1)
    one = Completion(ids, "ab", "stop", log_probs=log_probs)
    write_tokens([one], tokenizer, tmp_path / "table.jsonl")
    line = (tmp_path / "tokens" / "table.jsonl").read_text()
    assert line == '{"tokens": [["a", null, null], ["b", -0.123, null]]}\n'
