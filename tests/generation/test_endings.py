"""Where a completion ends: on constructed token sequences, and against vLLM's own detokenizer."""

import random
from importlib.util import find_spec
from types import SimpleNamespace

import pytest
from real_tokenizers import TOKENIZERS, byte_level_tokenizer, sentencepiece_like_tokenizer
from transformers import PreTrainedTokenizerBase

from trl_r1zero.generation import SamplingConfig
from trl_r1zero.generation.endings import Endings

STOP = "</answer>"


@pytest.fixture(scope="module", params=TOKENIZERS)
def real_tokenizer(request) -> PreTrainedTokenizerBase:
    return TOKENIZERS[request.param]()


@pytest.fixture(scope="module")
def byte_level() -> PreTrainedTokenizerBase:
    return byte_level_tokenizer()


def step_by_step(endings: Endings, prompt: list[int], ids: list[int]) -> tuple[list[int], str, str]:
    """What a loop that samples one token after the other makes of the ids."""
    for size in range(1, len(ids) + 1):
        text = endings.text_if_ended(prompt, ids[:size])
        if text is not None:
            return ids[:size], text, "stop"
    return ids, endings.text(prompt, ids), "length"


def at_once(endings: Endings, prompt: list[int], ids: list[int]) -> tuple[list[int], str, str]:
    completion = endings.completion(prompt, ids)
    return completion.token_ids, completion.text, completion.finish_reason


def ids_of(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    return tokenizer(text, add_special_tokens=False)["input_ids"]


@pytest.mark.parametrize("behind", ["", "\n", "\n\n and more", ".", "</answer>", ">"])
@pytest.mark.parametrize("before", ["", " 5", "10", " <answer> 5 ", "</", "</answer", "中文"])
def test_the_text_ends_behind_the_stop_string_whatever_merges_with_it(
    real_tokenizer, before, behind
):
    endings = Endings(real_tokenizer, SamplingConfig(stop=(STOP,), min_tokens=0))
    prompt = real_tokenizer("A: <think>")["input_ids"]
    ids = ids_of(real_tokenizer, before + STOP + behind)
    kept, text, reason = at_once(endings, prompt, ids)
    assert (kept, text, reason) == step_by_step(endings, prompt, ids)
    assert (text.strip(), reason) == ((before + STOP).strip(), "stop")
    # The last token completes the stop string; what it has beyond is trained on, but no text.
    assert kept == ids[: len(kept)]
    assert STOP in endings.text(prompt, kept)
    assert STOP not in endings.text(prompt, kept[:-1])


def test_tokens_merge_with_a_stop_string_at_both_ends(byte_level):
    assert len(ids_of(byte_level, STOP)) == 3
    assert ids_of(byte_level, ">\n") != ids_of(byte_level, ">") + ids_of(byte_level, "\n")
    whole = byte_level_tokenizer(splits=False)
    assert ids_of(whole, "0" + STOP) != ids_of(whole, "0") + ids_of(whole, STOP)
    completion = Endings(byte_level, SamplingConfig(stop=(STOP,), min_tokens=0)).completion(
        [], ids_of(byte_level, "5</answer>\n"), [-0.1, -0.2, -0.3, -0.4]
    )
    assert completion.text == "5</answer>"
    assert byte_level.decode(completion.token_ids) == "5</answer>\n"
    assert completion.log_probs == [-0.1, -0.2, -0.3, -0.4]


@pytest.mark.parametrize("min_tokens", [0, 3])
def test_any_tokens_end_alike_step_by_step_and_at_once(real_tokenizer, min_tokens):
    stop = (STOP, "a ", "\n ", "é", "Größe", 7)
    endings = Endings(
        real_tokenizer, SamplingConfig(stop=stop, min_tokens=min_tokens, max_tokens=64), [2, 11]
    )
    random_ids = random.Random(0)
    prompt = real_tokenizer("Q: 1\nA: <think>")["input_ids"]
    reasons = set()
    for _ in range(300):
        ids = [random_ids.randrange(3, len(real_tokenizer)) for _ in range(30)]
        if random_ids.random() < 0.5:
            part = ids_of(real_tokenizer, random_ids.choice(["10</answer>\n", "é a b", "Größe"]))
            ids[(at := random_ids.randrange(28)) : at] = part
        result = at_once(endings, prompt, ids)
        assert result == step_by_step(endings, prompt, ids)
        reasons.add(result[2])
    assert reasons == {"stop", "length"}


@pytest.mark.skipif(find_spec("vllm") is None, reason="vLLM is not installed")
def test_vllm_ends_any_tokens_alike(real_tokenizer):
    from vllm.v1.engine.detokenizer import FastIncrementalDetokenizer

    from trl_r1zero.generation.vllm_offline import to_sampling_params

    sampling = SamplingConfig(stop=(STOP, "a ", "Größe"), min_tokens=3)
    endings = Endings(real_tokenizer, sampling)
    prompt = real_tokenizer("Q: 1\nA: <think>")["input_ids"]
    random_ids = random.Random(1)
    for _ in range(300):
        # Ids above those of the bytes: vLLM holds back bytes that are no character to the end.
        ids = [random_ids.randrange(262, len(real_tokenizer)) for _ in range(20)]
        part = ids_of(real_tokenizer, random_ids.choice(["10</answer>\n", "é a b", "Größe"]))
        ids[(at := random_ids.randrange(18)) : at] = part
        request = SimpleNamespace(
            sampling_params=to_sampling_params(sampling), prompt_token_ids=prompt, request_id="0"
        )
        theirs = FastIncrementalDetokenizer(real_tokenizer, request)
        stopped = next((n for n, token in enumerate(ids, 1) if theirs.update([token], False)), None)
        kept, text, reason = at_once(endings, prompt, ids)
        assert (kept, reason) == (ids[:stopped], "length" if stopped is None else "stop")
        assert text == theirs.output_text


def test_the_end_token_is_kept_as_a_token_but_not_in_the_text(byte_level):
    turn, eos = byte_level.convert_tokens_to_ids(["<|im_end|>", "<|endoftext|>"])
    ids = ids_of(byte_level, " 5")
    for end, given in ((turn, (turn,)), (eos, ())):
        endings = Endings(byte_level, SamplingConfig(stop=given))
        assert endings.end_token_ids == sorted({eos, *given})
        assert endings.sampling.stop == (*endings.end_token_ids,)
        assert at_once(endings, [], [*ids, end, *ids]) == ([*ids, end], " 5", "stop")
        assert step_by_step(endings, [], [*ids, end]) == ([*ids, end], " 5", "stop")
    # An ordinary token may be an end token too.
    letter = ids_of(byte_level, "c")[0]
    endings = Endings(byte_level, SamplingConfig(stop=(letter,)))
    assert at_once(endings, [], [*ids, letter]) == ([*ids, letter], " 5", "stop")


def test_an_end_token_that_only_the_sampler_knows(byte_level):
    ids = [*ids_of(byte_level, " 5"), byte_level.convert_tokens_to_ids("<|im_end|>")]
    endings = Endings(byte_level, SamplingConfig(stop=(STOP,)))
    for reason in (("stop", None), ("stop", ids[-1])):
        completion = endings.completion([], ids, None, reason)
        assert (completion.token_ids, completion.text) == (ids, " 5")
        assert completion.finish_reason == "stop"
    assert endings.completion([], ids, None, ("length", None)).finish_reason == "length"


def test_a_stop_string_that_is_a_special_token():
    """Decoding leaves special tokens out, so the text alone would never show it."""
    tokenizer = byte_level_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": [STOP]})
    ids = tokenizer(" 5</answer>\n")["input_ids"]
    endings = Endings(tokenizer, SamplingConfig(stop=(STOP,), min_tokens=0))
    assert tokenizer.convert_tokens_to_ids(STOP) in endings.sampling.stop_token_ids
    assert at_once(endings, [], ids) == (ids[:-1], " 5</answer>", "stop")
    assert step_by_step(endings, [], ids) == (ids[:-1], " 5</answer>", "stop")
    # An added token that is not special is text like any other.
    tokenizer = byte_level_tokenizer()
    tokenizer.add_tokens([STOP])
    endings = Endings(tokenizer, SamplingConfig(stop=(STOP,), min_tokens=0))
    assert endings.sampling.stop_token_ids == (tokenizer.eos_token_id,)
    ids = tokenizer(" 5</answer>\n")["input_ids"]
    assert at_once(endings, [], ids) == (ids[:-1], " 5</answer>", "stop")


def test_a_space_at_the_beginning_stays():
    """A tokenizer like SentencePiece's leaves out the space before the first token of a text."""
    tokenizer = sentencepiece_like_tokenizer()
    ids = ids_of(tokenizer, "hello")
    assert tokenizer.decode(ids) == "hello"
    endings = Endings(tokenizer, SamplingConfig())
    assert endings.text(tokenizer("A: <think>")["input_ids"], ids) == " hello"
    assert endings.text([tokenizer.bos_token_id], ids) == "hello"


def test_bytes_that_are_no_character_yet_are_not_in_the_text(byte_level):
    ids = ids_of(byte_level, "a\U0001f600")
    endings = Endings(byte_level, SamplingConfig())
    assert [endings.text([], ids[:size]) for size in (1, 2, len(ids))] == ["a", "a", "a\U0001f600"]


@pytest.mark.parametrize("wrong", ["</answer>", ("",), (-1,), (True,), (1.5,)])
def test_stops_that_are_none(wrong):
    with pytest.raises(ValueError, match="non-empty strings and token ids"):
        SamplingConfig(stop=wrong)
