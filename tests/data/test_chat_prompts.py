"""Prompts that are the user's turn in a chat template: formatting, ends of turns, traces, ids."""

import json

import pytest
from real_tokenizers import CHATML, LLAMA, byte_level_tokenizer, sentencepiece_like_tokenizer

from trl_r1zero.data.prompts import Prompt, load_prompt
from trl_r1zero.data.rows import build_dataset
from trl_r1zero.data.tasks import get_task
from trl_r1zero.data.tasks.base import Example
from trl_r1zero.data.tokenization import encode_prompts, tokenize_separately
from trl_r1zero.data.traces import load_traces

OPENING = "<|im_start|>assistant\n"
ASKED = "1+1?\n\nReason step by step, and put the final answer in \\boxed{}."


def prompt_file(tmp_path, header: str, template: str = "{question}") -> Prompt:
    path = tmp_path / "mine.txt"
    path.write_text(f"chat: true\nanswer_format: boxed\n{header}---\n{template}\n")
    return load_prompt(str(path))


def with_template(template: str | None, **settings):
    return byte_level_tokenizer(chat_template=template, **settings)


def test_the_built_in_prompt_is_the_question_with_a_boxed_answer():
    prompt = load_prompt("chat").for_tokenizer(byte_level_tokenizer())
    assert prompt.format("1+1?") == f"<|im_start|>user\n{ASKED}<|im_end|>\n{OPENING}"
    assert (prompt.stop, prompt.answer_format) == ((2,), "boxed")
    rows = build_dataset([Example("1+1?", "2")], prompt)
    assert rows["prompt"] == [prompt.format("1+1?")]
    assert rows["question"] == ["1+1?"]
    assert prompt.reply(" yes ") == "yes"


@pytest.mark.parametrize("make", [byte_level_tokenizer, sentencepiece_like_tokenizer])
def test_text_and_ids_are_those_of_transformers(make):
    tokenizer = make()
    prompt = load_prompt("chat").for_tokenizer(tokenizer)
    for question in ("1+1?", " a b\n", "Größe {question} \\frac{1}{2}"):
        user = prompt.template.replace("{question}", question)
        expected = tokenizer.apply_chat_template(
            [{"role": "user", "content": user}], add_generation_prompt=True, return_dict=True
        )
        # Among them one begin token, which both the template and the tokenizer would write.
        assert encode_prompts([prompt.format(question)], tokenizer) == [expected["input_ids"]]


def test_a_begin_token_is_there_once():
    tokenizer = sentencepiece_like_tokenizer()
    begin = tokenizer.bos_token_id
    plain, spelled = encode_prompts(["a b", "<s>a b"], tokenizer)
    assert plain[0] == spelled[0] == begin
    assert plain.count(begin) == spelled.count(begin) == 1
    assert tokenize_separately(["<s>a b"], [" a"], tokenizer)[0] == [spelled]
    assert encode_prompts(["<s>"], tokenizer) == [[begin]]
    assert encode_prompts(["<s><s>a"], tokenizer)[0].count(begin) == 2  # the author wrote two
    # Without a begin token of its own, a tokenizer takes the text as it is.
    assert byte_level_tokenizer().bos_token_id is None
    assert encode_prompts(["a"], byte_level_tokenizer()) == [[byte_level_tokenizer().vocab["a"]]]


def test_system_message_and_variables_of_the_template(tmp_path):
    variables = {"enable_thinking": False}
    prompt = prompt_file(
        tmp_path,
        f"system: Be brief.\nsystem: Be kind.\nchat_template_kwargs: {json.dumps(variables)}\n",
    )
    template = CHATML.replace(
        "assistant\n", "assistant\n{% if not enable_thinking %}<no>{% endif %}"
    )
    prompt = prompt.for_tokenizer(with_template(template))
    assert prompt.format("1+1?") == (
        "<|im_start|>system\nBe brief.\nBe kind.<|im_end|>\n"
        f"<|im_start|>user\n1+1?<|im_end|>\n{OPENING}<no>"
    )


@pytest.mark.parametrize(
    ("behind", "eos", "end"),
    [
        ("<|im_end|>\n", "<|endoftext|>", "<|im_end|>"),  # not the eos token, as with Llama 3
        (" {{ eos_token }}", "<|endoftext|>", "<|endoftext|>"),
        ("\n", "<|im_end|>", "<|im_end|>"),  # the template closes nothing: eos
    ],
)
def test_the_end_of_a_turn(behind, eos, end):
    template = "{% for m in messages %}" + "{{ m.role }}: {{ m.content | trim }}" + behind
    tokenizer = with_template(template + "{% endfor %}", eos_token=eos)
    (stop,) = load_prompt("chat").for_tokenizer(tokenizer).stop
    assert tokenizer.convert_ids_to_tokens(stop) == end


def test_own_stop_strings_stay(tmp_path):
    prompt = prompt_file(tmp_path, "stop: </answer>\n").for_tokenizer(byte_level_tokenizer())
    assert prompt.stop == ("</answer>", 2)


def test_what_cannot_be_formatted_is_an_error(tmp_path):
    chat = load_prompt("chat")
    with pytest.raises(
        ValueError, match="got no tokenizer; use the tokenizer of an instruct model"
    ):
        chat.format("1+1?")
    with pytest.raises(ValueError, match="got a tokenizer without chat template"):
        chat.for_tokenizer(with_template(None))
    refusing = with_template("{{ raise_exception('no system here') }}")
    with pytest.raises(ValueError, match=r"refuses it \(no system here\); change system"):
        chat.for_tokenizer(refusing)
    silent = with_template("{{ messages[0].role }}")
    with pytest.raises(ValueError, match=r"leaves out '\{question\}'"):
        chat.for_tokenizer(silent)
    users_only = with_template(
        "{% for m in messages if m.role == 'user' %}{{ m.content }}{% endfor %}"
    )
    with pytest.raises(ValueError, match=r"leaves out 'Be kind\.'"):
        prompt_file(tmp_path, "system: Be kind.\n").for_tokenizer(users_only)
    endless = with_template("{% for m in messages %}{{ m.content }}{% endfor %}")
    endless.eos_token = None
    with pytest.raises(ValueError, match="closes a turn with no special token"):
        chat.for_tokenizer(endless)
    clashing = prompt_file(tmp_path, 'chat_template_kwargs: {"tokenize": true}\n')
    with pytest.raises(ValueError, match=r"refuses it .*'tokenize'"):
        clashing.for_tokenizer(byte_level_tokenizer())


# Traces


def written(tmp_path, *rows: dict) -> str:
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


SOLVED = {"question": "1+1?", "answer": "One and one.\n#### 2"}


def test_solutions_begin_where_the_turn_does(tmp_path):
    source = written(tmp_path, SOLVED)
    prompt = load_prompt("chat").for_tokenizer(byte_level_tokenizer())
    (trace,) = load_traces(get_task("gsm8k"), prompt, source)
    assert trace.prompt == prompt.format("1+1?")
    assert trace.response == "One and one.\n\\boxed{2}"
    path = tmp_path / "tags.txt"
    path.write_text("chat: true\nanswer_format: tags\n---\n{question}\n")
    tags = load_prompt(str(path))
    for opening, begin in (("", "<think>"), ("<think>\n", "")):
        template = CHATML.replace("assistant\n", "assistant\n" + opening)
        prompt = tags.for_tokenizer(with_template(template))
        (trace,) = load_traces(get_task("gsm8k"), prompt, source)
        assert trace.response == f"{begin} One and one. </think> <answer> 2 </answer>"


@pytest.mark.parametrize("template", [CHATML, LLAMA.replace("{{ bos_token }}", "")])
def test_prompts_of_traces_are_put_into_the_template_once(tmp_path, template, caplog):
    prompt = load_prompt("chat").for_tokenizer(with_template(template))
    formatted = prompt.format("2+2?")
    source = written(
        tmp_path,
        {"prompt": "1+1?", "response": "2"},
        {"prompt": formatted, "response": "4"},
    )
    first, second = load_traces(get_task("gsm8k"), prompt, source)
    assert first.prompt == formatted.replace(prompt.template.replace("{question}", "2+2?"), "1+1?")
    assert second.prompt == formatted
    assert "1 of 2 prompts of traces were put into the chat template" in caplog.text
