"""Prompts that leave no room in the context."""

from dataclasses import dataclass

import pytest
from tiny_grpo import make_trainer
from tiny_models import make_tiny_model
from transformers import GPT2Config, LlamaConfig, MambaConfig, Qwen2Config

from trl_r1zero.data.bad_rows import BadRows
from trl_r1zero.data.prompt_room import PromptRoom, context_length, context_of


@dataclass
class Item:
    where: str


class Words:
    """A tokenizer with one token for each character, and what it was asked for."""

    model_max_length = 50
    bos_token_id = None

    def __init__(self):
        self.seen = 0

    def __call__(self, texts, verbose=True):
        self.seen += len(texts)
        return {"input_ids": [list(range(len(text))) for text in texts]}


def room(**changes):
    given = {"context": 40, "limit": "max_model_len", "new_tokens": 10, "setting": "max_tokens"}
    return PromptRoom(Words(), **{**given, **changes})


PROMPTS = ["a" * length for length in (5, 31, 30, 60, 3, 40)]
ITEMS = [Item(f"f:{n}") for n in range(1, 7)]


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (Qwen2Config(max_position_embeddings=4096), 4096),
        (GPT2Config(n_positions=77), 77),
        (MambaConfig(), None),
        (LlamaConfig(max_position_embeddings=100, rope_scaling=None), 100),
        (
            LlamaConfig(
                max_position_embeddings=100,
                rope_scaling={"rope_type": "linear", "factor": 4.0, "rope_theta": 1e4},
            ),
            400,
        ),
        (
            LlamaConfig(
                max_position_embeddings=100,
                rope_scaling={
                    **{"rope_type": "yarn", "factor": 4.0, "rope_theta": 1e4},
                    "original_max_position_embeddings": 25,
                },
            ),
            100,
        ),
    ],
)
def test_the_context_that_a_config_says(config, expected):
    assert context_length(config) == expected


def test_what_limits_the_context():
    config, words = Qwen2Config(max_position_embeddings=100), Words()
    model = "the model's max_position_embeddings"
    assert context_of(config, words, vllm=False, max_model_len=20) == (100, model)
    assert context_of(config, words, vllm=True, max_model_len=20) == (20, "max_model_len")
    assert context_of(config, words, vllm=True) == (50, "the tokenizer's model_max_length")
    assert context_of(None, words, vllm=True, max_model_len=-1)[0] is None
    words.model_max_length = 10**30
    assert context_of(config, words, vllm=True) == (100, model)


def test_rows_are_kept_or_added_to_the_bad_ones_the_longest_first():
    bad_rows = BadRows("error", "rows.jsonl")
    kept = room().keep(ITEMS, PROMPTS, bad_rows)
    assert [item.where for item in kept] == ["f:1", "f:3", "f:5"]
    assert [error.where for error in bad_rows.errors] == ["f:4", "f:6", "f:2"]
    with pytest.raises(ValueError, match=r"rows.jsonl: 3 of 6 rows cannot be used") as caught:
        bad_rows.check()
    assert (
        "f:4: a prompt of 60 tokens and max_tokens 10 are more than max_model_len 40; lower "
        "max_tokens, or raise it"
    ) in str(caught.value)
    assert bad_rows.facts()["reasons"] == {"no room in the context for 10 new tokens": 3}


@pytest.mark.parametrize(("first", "bad"), [(1, []), (2, [2]), (3, [2, 4]), (9, [2, 4, 6])])
def test_only_the_prompts_that_are_used_count(first, bad):
    bad_rows = BadRows("skip")
    kept = room(first=first).keep(ITEMS, PROMPTS, bad_rows)
    assert sorted(error.where for error in bad_rows.errors) == [f"f:{n}" for n in bad]
    assert len(kept) == 6 - len(bad)


def test_a_check_that_refuses():
    room().check("train_data", PROMPTS[:1])
    room(first=1).check("train_data", PROMPTS)
    message = "train_data: 3 of 6 prompts leave no room .* the longest, row 3: a prompt of 60 token"
    with pytest.raises(ValueError, match=message):
        room().check("train_data", PROMPTS)
    larger = room(limit="the model's max_position_embeddings")
    with pytest.raises(ValueError, match="take a model of a larger context"):
        larger.check("train_data", PROMPTS)


def test_a_trainer_refuses_prompts_without_room(tokenizer, tmp_path):
    model = make_tiny_model(tokenizer)
    model.config.max_position_embeddings = 25
    message = "train_data: .* of 32 prompts leave no room in the context for 10 new tokens"
    with pytest.raises(ValueError, match=message):
        make_trainer(tokenizer, tmp_path, model=model)
    make_trainer(tokenizer, tmp_path, model=model, max_completion_length=4)


def test_short_texts_are_not_tokenised():
    short = room(context=1000)
    assert short.too_long(PROMPTS) == {}
    assert short.tokenizer.seen == 0
    assert room().too_long(["ä" * 20]) == {}  # 40 bytes, 20 tokens
    assert room(new_tokens=40).too_long(["a"]) == {0: 1}
