"""The doctor on tokenizers: their end tokens, and prompts in their chat template."""

import pytest
from doctor_runs import levels, make_run
from real_tokenizers import byte_level_tokenizer
from tiny_models import make_tiny_model

from trl_r1zero.doctor.data import load_data, load_prompt
from trl_r1zero.doctor.model import check_tokenizer

CHAT = ("--task=chain_arithmetic", "--prompt=chat")


@pytest.mark.parametrize("in_generation_config", [False, True])
def test_an_eos_token_that_the_model_does_not_end_with(tmp_path, in_generation_config):
    model = make_tiny_model(byte_level_tokenizer())
    if in_generation_config:
        model.generation_config.eos_token_id = [0, 1]
    model.save_pretrained(tmp_path)
    right, wrong = byte_level_tokenizer(), byte_level_tokenizer(eos_token="<|im_start|>")
    assert levels(check_tokenizer(right, model.config, str(tmp_path))) == {"tokenizer": "ok"}
    findings = list(check_tokenizer(wrong, model.config, str(tmp_path)))
    if in_generation_config:
        assert levels(findings) == {"tokenizer": "ok"}
        return
    assert levels(findings) == {"tokenizer": "ok", "eos": "warning"}
    assert findings[1].found == (
        "the tokenizer's eos token is '<|im_start|>' (1), but the model's config says "
        "'<|endoftext|>' (0)"
    )
    assert findings[1].do.startswith("set eos_token in tokenizer_config.json")


def test_the_prompt_in_the_chat_template_is_shown():
    run = make_run("80GB", *CHAT)
    prompt, (finding,) = load_prompt(run, byte_level_tokenizer())
    assert finding.level == "ok"
    assert finding.found.startswith("prompt chat: '<|im_start|>user\\n{question}\\n")
    train, validation = load_data(run, prompt)
    assert train.prompts[0].endswith("<|im_end|>\n<|im_start|>assistant\n")
    assert validation.prompts[0].startswith("<|im_start|>user\n")


@pytest.mark.parametrize("tokenizer", [None, byte_level_tokenizer(chat_template=None)])
def test_without_a_chat_template_the_rest_is_looked_at(tokenizer):
    run = make_run("80GB", *CHAT)
    prompt, (finding,) = load_prompt(run, tokenizer)
    assert finding.level == "problem"
    assert finding.do.startswith("use the tokenizer of an instruct model")
    assert load_data(run, prompt)[0].prompts


def test_other_prompts_need_no_tokenizer():
    assert load_prompt(make_run("80GB", "--task=chain_arithmetic"), None)[1] == []
    assert load_prompt(make_run("80GB", "--train_data=none", method="dpo"), None) == (None, [])
