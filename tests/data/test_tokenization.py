"""`tokenize_prompt_and_output` and `pad_and_shift`, worked by hand on a six-word tokenizer."""

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from trl_r1zero.data.tokenization import pad_and_shift, tokenize_prompt_and_output

PAD, BOS, EOS = 0, 1, 2
WORDS = {"<pad>": PAD, "<s>": BOS, "</s>": EOS, "one": 3, "two": 4, "three": 5, "four": 6}


def word_tokenizer(template: str | None = None, pad_token: str | None = "<pad>"):
    backend = Tokenizer(models.WordLevel(WORDS, unk_token="<pad>"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    if template is not None:
        specials = [("<s>", BOS), ("</s>", EOS)]
        backend.post_processor = processors.TemplateProcessing(template, special_tokens=specials)
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="</s>", pad_token=pad_token)


def test_tokenize_prompt_and_output():
    # full: 3 4 | 5 .     and     6 | 4 3 5    (L = 4, so T = 3)
    got = tokenize_prompt_and_output(
        ["one two", "four"], ["three", "two one three"], word_tokenizer()
    )
    assert got["input_ids"].tolist() == [[3, 4, 5], [6, 4, 3]]
    assert got["labels"].tolist() == [[4, 5, PAD], [4, 3, 5]]
    assert got["response_mask"].tolist() == [[False, True, False], [True, True, True]]
    assert set(got) == {"input_ids", "labels", "response_mask"}
    assert got["input_ids"].dtype == got["labels"].dtype == torch.long
    assert got["response_mask"].dtype == torch.bool


def test_tokenize_prompt_and_output_gives_the_begin_token_to_the_prompt_only():
    got = tokenize_prompt_and_output(["one"], ["two three"], word_tokenizer("<s> $A"))
    assert got["input_ids"].tolist() == [[BOS, 3, 4]]
    assert got["labels"].tolist() == [[3, 4, 5]]
    assert got["response_mask"].tolist() == [[False, True, True]]


def test_tokenize_prompt_and_output_marks_an_empty_output_nowhere():
    got = tokenize_prompt_and_output(["one two", "one"], ["", "two"], word_tokenizer())
    assert got["labels"].tolist() == [[4], [4]]
    assert got["response_mask"].tolist() == [[False], [True]]


def test_tokenize_prompt_and_output_never_merges_across_the_border(tokenizer):
    # In one text " +" is one token; with the border between its characters it has to be two.
    assert len(tokenizer("5 +")["input_ids"]) == 2
    got = tokenize_prompt_and_output(["5 "], ["+"], tokenizer)
    assert got["response_mask"].tolist() == [[False, True]]
    assert tokenizer.decode(got["labels"][0]) == " +"


def test_tokenize_prompt_and_output_pads_right_whatever_the_tokenizer_would_do():
    tokenizer = word_tokenizer()
    tokenizer.padding_side = "left"
    got = tokenize_prompt_and_output(["one", "one"], ["two", "two three"], tokenizer)
    assert got["labels"].tolist() == [[4, PAD], [4, 5]]


def test_tokenize_prompt_and_output_errors():
    with pytest.raises(ValueError, match=r"got 2 prompt_strs and 1 output_strs; give one output"):
        tokenize_prompt_and_output(["one", "two"], ["three"], word_tokenizer())
    with pytest.raises(ValueError, match=r"got no rows"):
        tokenize_prompt_and_output([], [], word_tokenizer())
    with pytest.raises(ValueError, match=r"tokenizer.pad_token = tokenizer.eos_token"):
        tokenize_prompt_and_output(["one"], ["two"], word_tokenizer(pad_token=None))
    with pytest.raises(ValueError, match=r"appends special tokens \(2\) after the prompt"):
        tokenize_prompt_and_output(["one"], ["two"], word_tokenizer("$A </s>"))


def test_pad_and_shift_keeps_a_real_eos_where_eos_also_pads():
    got = pad_and_shift([[5], [5]], [[6, EOS], [6, 7, 8, EOS]], pad_token_id=EOS)
    assert got["labels"].tolist() == [[6, EOS, EOS, EOS], [6, 7, 8, EOS]]
    assert got["response_mask"].int().tolist() == [[1, 1, 0, 0], [1, 1, 1, 1]]


def test_pad_and_shift_after_an_empty_prompt_cannot_label_the_first_token():
    got = pad_and_shift([[]], [[6, 7, 8]], pad_token_id=PAD)
    assert got["labels"].tolist() == [[7, 8]]
    assert got["response_mask"].int().tolist() == [[1, 1]]


def test_pad_and_shift_depends_on_each_row_alone():
    prompts, outputs = [[3, 4], [5], [6, 6, 6]], [[7], [8, 9, 3, 4], []]
    together = pad_and_shift(prompts, outputs, pad_token_id=PAD)
    for row in range(3):
        alone = pad_and_shift(prompts[row : row + 1], outputs[row : row + 1], pad_token_id=PAD)
        width = alone["labels"].shape[1]
        for name, tensor in alone.items():
            assert torch.equal(together[name][row, :width], tensor[0])
        assert not together["response_mask"][row, width:].any()


def test_pad_and_shift_errors():
    with pytest.raises(ValueError, match=r"got 1 prompt_ids and 2 output_ids"):
        pad_and_shift([[1]], [[1], [2]], pad_token_id=PAD)
    with pytest.raises(ValueError, match=r"got 2 rows without a single token"):
        pad_and_shift([[], []], [[], []], pad_token_id=PAD)
    with pytest.raises(ValueError, match=r"got pad_token_id None"):
        pad_and_shift([[1]], [[1]], pad_token_id=None)
