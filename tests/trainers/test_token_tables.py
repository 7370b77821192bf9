"""The tokens of logged rollouts as text."""

import json
import math

import pytest
from tiny_grpo import make_trainer

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


def tokens_of_step(folder, step: int) -> list[list]:
    file = folder / "rollouts" / "tokens" / f"grpo_step_{step:05d}.jsonl"
    return [json.loads(line)["tokens"] for line in file.read_text().splitlines()]


def test_off_policy_tokens_have_the_ratio_of_the_last_update(tokenizer, tmp_path):
    trainer = make_trainer(
        tokenizer, tmp_path, n_grpo_steps=1, train_batch_size=8, loss_type="grpo_clip",
        log_rollouts_every=1, num_rollouts_to_log=12, skip_zero_advantages=False,
    )  # fmt: skip
    trainer.train()
    rows = tokens_of_step(tmp_path, 1)
    assert len(rows) == 12 and all(len(token) == 4 for row in rows for token in row)
    # Groups 0 and 2 are in the first train batch, on which the policy has not moved yet.
    ratios = [[token[3] for token in row] for row in rows]
    assert all(ratio == 1.0 for row in (*ratios[:4], *ratios[8:]) for ratio in row)
    assert any(ratio != 1.0 for row in ratios[4:8] for ratio in row)


def test_on_policy_tokens_have_no_ratio(tokenizer, tmp_path):
    make_trainer(
        tokenizer, tmp_path, n_grpo_steps=2, log_rollouts_every=2, num_rollouts_to_log=4
    ).train()
    for step in (1, 2):
        rows = tokens_of_step(tmp_path, step)
        assert len(rows) == 4 and {len(token) for row in rows for token in row} == {3}
