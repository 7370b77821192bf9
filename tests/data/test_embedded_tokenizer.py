"""The embedded tokenizer: exact texts, and the same ids however it is loaded again."""

import hashlib
import json
import unicodedata

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer, PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

from trl_r1zero.data.embedded_tokenizer import (
    EOS_TOKEN,
    PAD_TOKEN,
    TAGS,
    VOCABULARY_SIZE,
    build_embedded_tokenizer,
)
from trl_r1zero.data.prompts import PROMPTS, load_prompt
from trl_r1zero.data.tasks import get_task
from trl_r1zero.data.tasks.chain_arithmetic import solve_trace


def texts():
    chains = get_task("chain_arithmetic").load(limit=100)
    puzzles = get_task("countdown").load(limit=20)
    prompts = map(load_prompt, PROMPTS)
    return [
        *(prompt.format(chains[0].question) for prompt in prompts if not prompt.needs_tokenizer),
        *(solve_trace(chain.question) for chain in chains),
        *(puzzle.question for puzzle in puzzles),
        "  two  spaces \n\n\ttabs\r\n 7 77  7 -3.5",
        r"\frac{1}{2} = \boxed{½} naïve 数学 🙂",
        "<think></think><answer></answer> <answer >",
        "",
    ]


def test_tokens_of_the_embedded_task(tokenizer):
    text = "Q: 14 + 5\nA: <think>" + solve_trace("14 + 5")
    # fmt: off
    assert tokenizer.convert_ids_to_tokens(tokenizer(text)["input_ids"]) == [
        "Q", ":", " 1", "4", "Ġ+", " 5", "Ċ", "A", ":", "Ġ", "<think>",
        " 1", "4", "Ġ+", " 5", "Ġ=", " 1", "9", "Ġ", "</think>", "Ġ", "<answer>",
        " 1", "9", "Ġ", "</answer>",
    ]
    # fmt: on


def test_vocabulary(tokenizer):
    assert len(tokenizer) == VOCABULARY_SIZE == 320
    assert (tokenizer.eos_token, tokenizer.pad_token) == (EOS_TOKEN, PAD_TOKEN)
    assert tokenizer.eos_token_id != tokenizer.pad_token_id
    assert tokenizer.bos_token is None
    assert sorted(tokenizer.all_special_tokens) == sorted([EOS_TOKEN, PAD_TOKEN])
    for tag in TAGS:
        assert len(tokenizer(tag)["input_ids"]) == 1


def test_ids_are_those_that_the_documented_numbers_come_from(tokenizer):
    """What changes them (a prompt in the corpus, say) makes another model of the quickstart."""
    by_id = sorted(tokenizer.get_vocab().items(), key=lambda item: item[1])
    digest = hashlib.sha256(json.dumps(by_id).encode()).hexdigest()
    assert digest == "ba753d3d9b14bc103baf462520ff156b7a6508f9228488623b4b0515b42096d5"


def test_round_trip(tokenizer):
    for text in texts():
        ids = tokenizer(text)["input_ids"]
        assert tokenizer.decode(ids) == text
        assert tokenizer.decode(ids, skip_special_tokens=True) == text
    ids = [*tokenizer("5 </answer>")["input_ids"], tokenizer.eos_token_id, tokenizer.pad_token_id]
    assert tokenizer.decode(ids, skip_special_tokens=True) == "5 </answer>"


def test_round_trip_of_any_normalised_text(tokenizer):
    @given(st.text(max_size=40))
    @settings(max_examples=200, deadline=None)
    def round_trip(text):
        text = unicodedata.normalize("NFC", text)
        assert tokenizer.decode(tokenizer(text)["input_ids"]) == text

    round_trip()


def test_prompt_and_completion_have_the_ids_of_their_joined_text(tokenizer):
    prompt = load_prompt("chain_arithmetic")
    for example in get_task("chain_arithmetic").load(limit=50):
        start, trace = prompt.format(example.question), solve_trace(example.question)
        apart = tokenizer(start)["input_ids"] + tokenizer(trace)["input_ids"]
        assert apart == tokenizer(start + trace)["input_ids"]


def test_completions_fit_into_the_64_tokens_of_the_quickstart(tokenizer):
    examples = get_task("chain_arithmetic").load(limit=1000)
    assert max(len(tokenizer(solve_trace(e.question))["input_ids"]) for e in examples) <= 48


def test_the_same_corpus_gives_the_same_tokenizer(tokenizer):
    again = build_embedded_tokenizer()
    assert again.get_vocab() == tokenizer.get_vocab()
    other = build_embedded_tokenizer(["ab ab ab"])
    assert len(other) < VOCABULARY_SIZE
    assert other.decode(other("xyz ab 7 <think>")["input_ids"]) == "xyz ab 7 <think>"


@pytest.mark.parametrize("times", [1, 2])
def test_auto_tokenizer_beside_a_qwen2_model_gives_identical_ids(tokenizer, tmp_path, times):
    config = Qwen2Config(
        vocab_size=len(tokenizer), hidden_size=16, intermediate_size=16, num_hidden_layers=1,
        num_attention_heads=2, num_key_value_heads=1,
    )  # fmt: skip
    model = Qwen2ForCausalLM(config)
    loaded = tokenizer
    for round_number in range(times):  # twice: a trainer saves again what it has loaded
        folder = tmp_path / str(round_number)
        model.save_pretrained(folder)
        loaded.save_pretrained(folder)
        loaded = AutoTokenizer.from_pretrained(folder)
    assert json.loads((folder / "config.json").read_text())["model_type"] == "qwen2"
    assert_identical(loaded, tokenizer)


def test_loading_by_the_base_class_or_without_a_model_gives_identical_ids(tokenizer, tmp_path):
    tokenizer.save_pretrained(tmp_path)
    assert_identical(AutoTokenizer.from_pretrained(tmp_path), tokenizer)
    assert_identical(PreTrainedTokenizerFast.from_pretrained(tmp_path), tokenizer)


def assert_identical(loaded, tokenizer):
    assert len(loaded) == len(tokenizer)
    assert loaded.get_vocab() == tokenizer.get_vocab()
    assert loaded.eos_token_id == tokenizer.eos_token_id
    assert loaded.pad_token_id == tokenizer.pad_token_id
    assert loaded.bos_token_id is None
    for text in texts():
        ids = tokenizer(text)["input_ids"]
        assert loaded(text)["input_ids"] == ids
        assert loaded.decode(ids, skip_special_tokens=True) == text
