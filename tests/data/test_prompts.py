"""Built-in prompts by their exact wording, and the file format with all its errors."""

import re
from importlib import resources

import pytest

from trl_r1zero import r1_zero_reward_fn
from trl_r1zero.data.prompts import ANSWER_FORMATS, PROMPTS, Prompt, format_alpaca, load_prompt
from trl_r1zero.data.tasks import TASKS


def test_r1_zero_is_the_published_wording_to_the_letter():
    prompt = load_prompt("r1_zero")
    assert prompt.format("What is 1+1?") == (
        "A conversation between User and Assistant. The User asks a question, and the Assistant "
        "solves it. The Assistant first thinks about the reasoning process in the mind and then "
        "provides the User with the answer. The reasoning process is enclosed within <think> "
        "</think> and answer is enclosed within <answer> </answer> tags, respectively, i.e., "
        "<think> reasoning process here </think> <answer> answer here </answer>.\n"
        "User: What is 1+1?\n"
        "Assistant: <think>"
    )
    assert (prompt.stop, prompt.answer_format) == (("</answer>",), "tags")


def test_question_only_2026_asks_for_a_box():
    prompt = load_prompt("question_only_2026")
    assert prompt.format("1 + 1?") == r"1 + 1? Please put your final answer within \boxed{}."
    assert (prompt.stop, prompt.answer_format) == ((), "boxed")


def test_three_shots_are_right_answers_in_the_form_of_r1_zero():
    prompt, zero_shot = load_prompt("r1_zero_three_shot"), load_prompt("r1_zero")
    assert (prompt.stop, prompt.answer_format) == (zero_shot.stop, zero_shot.answer_format)
    instruction, *turns = prompt.template.split("User: ")
    assert instruction == zero_shot.template.split("User: ")[0]
    assert turns.pop() == "{question}\nAssistant: <think>"
    assert len(turns) == 3
    for turn in turns:
        question, response = turn.split("\nAssistant: <think>")
        answer = response.split("<answer> ")[1].split(" </answer>")[0]
        assert question.endswith("?") and response.endswith("</answer>\n")
        assert r1_zero_reward_fn(response.rstrip(), answer)["reward"] == 1.0
        # Each equation of the working holds.
        for left, right in re.findall(r"([\d.]+(?: [-*/] [\d.]+)+) = ([\d.]+)\b", response):
            assert eval(left) == float(right), left


def test_question_only_is_the_question_and_stops_nowhere():
    prompt = load_prompt("question_only")
    assert prompt.format("What is 1+1?") == "What is 1+1?"
    assert (prompt.stop, prompt.answer_format) == ((), "boxed")


def test_chain_arithmetic_prompt():
    prompt = load_prompt("chain_arithmetic")
    assert prompt.format("14 + 5") == "Q: 14 + 5\nA: <think>"
    assert (prompt.stop, prompt.answer_format) == (("</answer>",), "tags")


def test_zero_shot_is_the_published_wording_to_the_letter():
    prompt = load_prompt("zero_shot")
    assert prompt.format("What is {1}+1?") == (
        "# Instruction\n"
        "Below is a list of conversations between a human and an AI assistant (you). \n"
        'Users place their queries under "# Query:", and your responses are under  "# Answer:".\n'
        "You are a helpful, respectful, and honest assistant.\n"
        "You should always answer as helpfully as possible while ensuring safety.\n"
        "Your answers should be well-structured and provide detailed information. They should also "
        "have an engaging tone.\n"
        "Your responses must not contain any fake, harmful, unethical, racist, sexist, toxic, "
        "dangerous, or illegal content, even if it may be helpful.\n"
        "Your response must be socially responsible, and thus you can reject to answer some "
        "controversial topics.\n"
        "\n"
        "# Query:\n"
        "```What is {1}+1?```\n"
        "\n"
        "# Answer:\n"
        "```"
    )
    assert (prompt.stop, prompt.answer_format) == (("# Query:",), "text")


@pytest.mark.parametrize("question", ["What is 1+1?", "{prompt} and {response}", "a\n\nb"])
def test_alpaca_is_the_template_of_instruction_data(question):
    prompt = load_prompt("alpaca")
    assert prompt.format(question) == format_alpaca(question)
    assert (prompt.stop, prompt.answer_format) == ((), "text")


@pytest.mark.parametrize(
    ("response", "reply"),
    [
        ("Paris.", "Paris."),
        ("\nParis.\n```\n\n# Query:", "Paris."),
        ("Paris.```\n\n# Query:", "Paris."),
        ("Paris.\n\n# Query:\n```Next?```\n\n# Answer:\n```No.```", "Paris."),
        ("Paris.\n```", "Paris."),
        # A block of code at the end has its own two fences.
        ("So:\n```python\nx = 1\n```", "So:\n```python\nx = 1\n```"),
        ("So:\n```python\nx = 1\n```\n```\n\n# Query:", "So:\n```python\nx = 1\n```"),
        ("```x = 1```, and so on\n```\n# Query:", "```x = 1```, and so on"),
        # Cut off inside of a block of code.
        ("So:\n```python\nx = 1", "So:\n```python\nx = 1"),
        # What follows the closing fence is kept: nothing says that it is no answer.
        ("Paris.\n```\nIndeed.", "Paris.\n```\nIndeed."),
        ("", ""),
        ("```\n\n# Query:", ""),
        ("# Query:", ""),
        ("# Query", "# Query"),
    ],
)
def test_reply_in_the_fence_of_zero_shot(response, reply):
    assert load_prompt("zero_shot").reply(response) == reply


@pytest.mark.parametrize(
    ("response", "reply"),
    [
        (" Paris.\n", "Paris."),
        ("So:\n```\nx = 1\n```", "So:\n```\nx = 1\n```"),
        ("Paris.\n```", "Paris.\n```"),  # the template has opened no fence
        ("Paris.\n# Query:", "Paris.\n# Query:"),
    ],
)
def test_reply_in_the_alpaca_template(response, reply):
    assert load_prompt("alpaca").reply(response) == reply


def test_reply_ends_at_the_first_of_several_stop_strings():
    prompt = Prompt("p", "{question}", ("END", "Q:"), "text")
    assert prompt.reply("yes Q: no END") == prompt.reply("yes END no Q:") == "yes"


def test_every_shipped_file_is_registered_and_the_other_way_round():
    folder = resources.files("trl_r1zero.data").joinpath("prompt_files")
    assert sorted(file.name for file in folder.iterdir()) == sorted(
        f"{name}.txt" for name in PROMPTS
    )
    assert [load_prompt(name).name for name in PROMPTS] == list(PROMPTS)


def test_every_answer_format_is_read_by_a_task():
    assert set(ANSWER_FORMATS) == {name for task in TASKS.values() for name in task.rewards}


def test_format_leaves_other_braces_alone():
    prompt = Prompt("latex", r"\boxed{x} {question} {y}", (), "boxed")
    assert prompt.format(r"\frac{1}{2} {question}") == r"\boxed{x} \frac{1}{2} {question} {y}"


def test_load_prompt_from_a_file(tmp_path):
    path = tmp_path / "mine.txt"
    path.write_text("stop: END\nanswer_format: boxed\nstop: Q:\n---\n\n---\n{question}\n\n")
    prompt = load_prompt(str(path))
    assert prompt == Prompt("mine", "\n---\n{question}\n", ("END", "Q:"), "boxed")


def test_load_prompt_needs_no_final_newline(tmp_path):
    path = tmp_path / "mine.txt"
    path.write_text("answer_format: boxed\n---\nQ: {question} ")
    assert load_prompt(str(path)).template == "Q: {question} "


def test_line_ends_of_windows_and_a_byte_order_mark_are_not_the_prompt_s(tmp_path):
    path = tmp_path / "mine.txt"
    path.write_bytes(b"\xef\xbb\xbfanswer_format: boxed\r\n---\r\nA\r\n{question}\r\n")
    assert load_prompt(str(path)).template == "A\n{question}"


def test_load_prompt_unknown_name():
    with pytest.raises(ValueError) as error:
        load_prompt("r1zero")
    assert str(error.value) == (
        "unknown prompt 'r1zero'; did you mean 'r1_zero'? "
        "Allowed: alpaca, chain_arithmetic, chat, question_only, question_only_2026, r1_zero, "
        "r1_zero_three_shot, zero_shot. "
        "A path to a .txt file is accepted too."
    )


def test_load_prompt_missing_file():
    with pytest.raises(FileNotFoundError, match=r"prompt file no/such.txt does not exist.*r1_zero"):
        load_prompt("no/such.txt")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "stopp: x\n---\n{question}",
            r"mine.txt:1: unknown header key 'stopp'; did you mean 'stop'",
        ),
        (
            "answer_format: boxed\nhello\n---\n{question}",
            r"mine.txt:2: got 'hello', expected 'key: ",
        ),
        (
            "answer_format: box\n---\n{question}",
            r"mine.txt:1: unknown answer_format 'box'; did you",
        ),
        ("answer_format: boxed\nstop:\n---\n{question}", r"mine.txt:2: got no value for 'stop'"),
        ("answer_format: boxed\n{question}: a\n", r"mine.txt:2: unknown header key '{question}'"),
        ("answer_format: boxed\n", r"mine.txt: got a file without a line '---'"),
        (
            "stop: x\n---\n{question}",
            r"mine.txt: got 0 'answer_format' lines, expected exactly one",
        ),
        (
            "answer_format: boxed\nanswer_format: tags\n---\n{question}",
            r"mine.txt: got 2 'answer_format' lines",
        ),
        (
            "answer_format: text\nchat: yes\n---\n{question}",
            r"mine.txt:2: chat: got 'yes', expected",
        ),
        ("chat: true\nchat: true\n---\n{question}", r"mine.txt:2: got a second line 'chat'"),
        (
            "chat: true\nchat_template_kwargs: [1]\n---\n{question}",
            r"mine.txt:2: chat_template_kwargs: got '\[1\]', expected a JSON object such as",
        ),
        (
            "answer_format: text\nsystem: Be kind.\n---\n{question}",
            r"mine.txt: got 'system' without 'chat: true'",
        ),
        ("answer_format: boxed\n---\nhello", r"mine.txt: .*got a template with 0 times {question}"),
        ("answer_format: boxed\n---\n{question}{question}", r"mine.txt: .*with 2 times {question}"),
    ],
)
def test_load_prompt_file_errors(tmp_path, text, message):
    path = tmp_path / "mine.txt"
    path.write_text(text)
    with pytest.raises(ValueError, match=message):
        load_prompt(str(path))


def test_prompt_checks_itself():
    with pytest.raises(ValueError, match=r"unknown answer_format 'tag'; did you mean 'tags'\?"):
        Prompt("p", "{question}", (), "tag")
    with pytest.raises(ValueError, match=r"got an empty stop string"):
        Prompt("p", "{question}", ("",), "tags")
