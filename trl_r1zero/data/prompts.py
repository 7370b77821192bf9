"""Prompt templates as text files; a prompt carries its stop strings and its answer format.

A prompt file is a header of `key: value` lines, a line `---`, then the template:

    stop: </answer>
    answer_format: tags
    ---
    Q: {question}
    A: <think>

`stop` may be repeated or absent; `answer_format` is one of `ANSWER_FORMATS` and must be there once.
With `chat: true` the template is the user's turn in the tokenizer's chat template; then `system`
(repeated for more lines) is the system message, and `chat_template_kwargs` a JSON object of further
variables of the chat template, such as {"enable_thinking": false}.
The one newline that ends the file is not part of the template; every other character is.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from trl_r1zero.common.naming import unknown_name_message
from trl_r1zero.common.plugins import Role, is_dotted

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

PLACEHOLDER = "{question}"
FENCE = "```"

ANSWER_FORMATS = {
    "tags": "reasoning up to </think>, then the answer as <answer> ... </answer>",
    "boxed": r"the answer in \boxed{...}, anywhere in the response",
    "text": "free text: the response as it is, see Prompt.reply",
}
HEADER_KEYS = ("stop", "answer_format", "chat", "system", "chat_template_kwargs")
# Built-in prompts: the files `prompt_files/*.txt`.
PROMPTS = (
    "r1_zero",
    "r1_zero_three_shot",
    "question_only",
    "question_only_2026",
    "chain_arithmetic",
    "chat",
    "zero_shot",
    "alpaca",
)
PROMPT_ROLE = Role("prompt", (), (), dict.fromkeys(PROMPTS))


@dataclass(frozen=True)
class Prompt:
    """A template with one `{question}`, the strings that end a response, and where its answer is.

    Attributes:
        name: the built-in name, or the stem of the file.
        template: text with exactly one `{question}`.
        stop: generation ends at any of these: a string, which it keeps in the text, or the id of a
            token. Empty: only at eos.
        answer_format: a key of `ANSWER_FORMATS`; a task picks its reward function by it.
        needs_tokenizer: whether `for_tokenizer` has something to do.

    Raises:
        ValueError: a template without exactly one `{question}`, an unknown answer format, or an
            empty stop string.
    """

    name: str
    template: str
    stop: tuple[str | int, ...]
    answer_format: str
    needs_tokenizer: ClassVar[bool] = False

    def __post_init__(self) -> None:
        count = self.template.count(PLACEHOLDER)
        if count != 1:
            raise ValueError(
                f"prompt {self.name!r}: got a template with {count} times {PLACEHOLDER}, expected "
                f"exactly one; write {PLACEHOLDER} where the question goes"
            )
        if self.answer_format not in ANSWER_FORMATS:
            unknown = unknown_name_message("answer_format", self.answer_format, ANSWER_FORMATS)
            raise ValueError(f"prompt {self.name!r}: {unknown}")
        if "" in self.stop:
            raise ValueError(
                f"prompt {self.name!r}: got an empty stop string; remove it, or write its text"
            )

    def format(self, question: str) -> str:
        """Returns the template with `{question}` replaced; other braces (LaTeX) stay."""
        return self.template.replace(PLACEHOLDER, question)

    def format_given(self, prompt: str) -> str:
        """Returns the prompt of a trace, which is formatted already."""
        return prompt

    def for_tokenizer(self, tokenizer: "PreTrainedTokenizerBase | None") -> "Prompt":
        """Returns the prompt that formats questions for a model with this tokenizer."""
        return self

    def reply(self, response: str) -> str:
        """Returns what a response says, for prompts of free text: what stands before the first stop
        string, without white space around it.

        Where the template ends in an opening fence, a fence at the end of the reply closes that
        one, and is left out, unless it closes a block of code that the reply itself has opened.
        """
        strings = [stop for stop in self.stop if isinstance(stop, str)]
        ends = [response.index(string) for string in strings if string in response]
        text = response[: min(ends, default=len(response))].strip()
        # Blocks of code have two fences each, so of an odd number the last is the template's.
        if self.template.endswith(FENCE) and text.endswith(FENCE) and text.count(FENCE) % 2 == 1:
            text = text.removesuffix(FENCE).rstrip()
        return text


@dataclass(frozen=True)
class ChatPrompt(Prompt):
    """A prompt whose template is the user's turn in a tokenizer's chat template.

    It formats questions once `for_tokenizer` has given it the tokenizer: with the opening of the
    assistant's turn at the end, and the token that closes that turn among its `stop`.
    """

    system: str | None = None  # the system message. None: what the chat template has without one.
    # Further variables of the chat template.
    chat_template_kwargs: Mapping[str, Any] = field(default_factory=dict)
    # Whose chat template it is; None before `for_tokenizer`.
    tokenizer: "PreTrainedTokenizerBase | None" = field(default=None, repr=False, compare=False)
    needs_tokenizer: ClassVar[bool] = True

    def format(self, question: str) -> str:
        """Returns the conversation up to where the assistant's turn begins; a ValueError if there
        is no tokenizer yet, or its chat template refuses the conversation."""
        return self._render(super().format(question))

    def format_given(self, prompt: str) -> str:
        """Returns the prompt of a trace as it is if it ends where the assistant's turn begins, and
        otherwise as the user's turn, without the template of this prompt."""
        return prompt if prompt.endswith(self._opening) else self._render(prompt)

    def for_tokenizer(self, tokenizer: "PreTrainedTokenizerBase | None") -> "ChatPrompt":
        """Returns the prompt with the chat template, and the end of a turn, of a tokenizer. A
        ValueError if the tokenizer has no chat template, or one that refuses or leaves out a
        message, or if nothing ends a turn."""
        prompt = replace(self, tokenizer=tokenizer)
        text = prompt._render(PLACEHOLDER)
        for message in filter(None, (PLACEHOLDER, self.system)):
            if message.strip() not in text:
                raise ValueError(
                    f"prompt {self.name!r}: the tokenizer's chat template leaves out {message!r}; "
                    "use a model whose chat template takes it, or a prompt without it"
                )
        return replace(prompt, stop=(*self.stop, prompt._end_of_turn()))

    def _render(self, user: str, answer: str | None = None, *, opens: bool = True) -> str:
        """The conversation as text: with the assistant's answer, or up to where it begins."""
        from jinja2 import TemplateError

        if self.tokenizer is None or self.tokenizer.chat_template is None:
            got = "no tokenizer" if self.tokenizer is None else "a tokenizer without chat template"
            raise ValueError(
                f"prompt {self.name!r} is the user's turn in a chat template: got {got}; use the "
                "tokenizer of an instruct model (Prompt.for_tokenizer), set its chat_template, or "
                "choose a prompt without one, such as question_only"
            )
        messages = [] if self.system is None else [{"role": "system", "content": self.system}]
        messages.append({"role": "user", "content": user})
        if answer is not None:
            messages.append({"role": "assistant", "content": answer})
        try:
            return str(
                self.tokenizer.apply_chat_template(
                    messages,
                    tokenize=False,
                    add_generation_prompt=answer is None and opens,
                    **self.chat_template_kwargs,
                )
            )
        except (TemplateError, TypeError) as error:
            raise ValueError(
                f"prompt {self.name!r}: the tokenizer's chat template refuses it ({error}); change "
                "system or chat_template_kwargs, or choose another prompt"
            ) from error

    @cached_property
    def _opening(self) -> str:
        """What opens the assistant's turn, or, where nothing does, closes the user's."""
        opened, closed = self._render(PLACEHOLDER), self._render(PLACEHOLDER, opens=False)
        return opened.removeprefix(closed) or opened.rpartition(PLACEHOLDER)[2]

    def _end_of_turn(self) -> int:
        """The token that closes the assistant's turn: the first special one behind its text."""
        tokenizer: Any = self.tokenizer
        _, answer, behind = self._render("Q", PLACEHOLDER).rpartition(PLACEHOLDER)
        ids = tokenizer(behind, add_special_tokens=False)["input_ids"] if answer else []
        special = {*tokenizer.all_special_ids, *tokenizer.get_added_vocab().values()}
        end = next((token for token in ids if token in special), tokenizer.eos_token_id)
        if end is None:
            raise ValueError(
                f"prompt {self.name!r}: the tokenizer's chat template closes a turn with no "
                "special token, and there is no eos token; set the tokenizer's eos_token"
            )
        return int(end)


def load_prompt(name_or_path: str, options: Mapping[str, Any] | None = None) -> Prompt:
    """Returns a built-in prompt by its name, a prompt from a path to a `.txt` file, or the `Prompt`
    at a dotted path, `package.module.name`, or what the function there returns.

    Args:
        name_or_path: of the prompt.
        options: of such a function, by their keys in a recipe (`trl_r1zero.common.plugins`).

    Raises:
        FileNotFoundError: a path to a `.txt` file that is not there.
        ValueError: an unknown name, a file that breaks the format (the text names file and line),
            or a function that fails or gives no `Prompt`.
    """
    if name_or_path in PROMPTS:
        file_name = f"{name_or_path}.txt"
        file = resources.files("trl_r1zero.data").joinpath("prompt_files", file_name)
        return _parse(file.read_text(encoding="utf-8"), where=file_name, name=name_or_path)
    if is_dotted(name_or_path):
        return _from_function(name_or_path, options or {})
    if not name_or_path.endswith(".txt"):
        raise ValueError(
            unknown_name_message("prompt", name_or_path, PROMPTS)
            + " A path to a .txt file is accepted too."
        )
    path = Path(name_or_path)
    if not path.is_file():
        raise FileNotFoundError(
            f"prompt file {name_or_path} does not exist; give a path to an existing .txt file, "
            f"or one of: {', '.join(sorted(PROMPTS))}"
        )
    try:
        text = path.read_text(encoding="utf-8-sig")  # line ends and mark are an editor's, not its
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: got bytes that are not UTF-8; convert the file") from error
    return _parse(text, where=str(path), name=path.stem)


def _from_function(name: str, options: Mapping[str, Any]) -> Prompt:
    found = PROMPT_ROLE.bind(name, options)
    if callable(found):
        try:
            found = found()
        except Exception as error:  # the function is the user's, and may raise anything
            raise ValueError(f"prompt {name} raised {type(error).__name__}: {error}") from error
    if not isinstance(found, Prompt):
        raise ValueError(
            f"prompt: {name} must be a Prompt, or a function that returns one, got {found!r:.100}"
        )
    return found


def _parse(text: str, where: str, name: str) -> Prompt:
    header: dict[str, list[str]] = {key: [] for key in HEADER_KEYS}
    lines = text.splitlines(keepends=True)
    for number, line in enumerate(lines, start=1):
        if line.strip() == "---":
            break
        key, colon, value = (part.strip() for part in line.partition(":"))
        if not colon:
            wrong = (
                f"got {line.strip()!r}, expected 'key: value' or the line '---' that ends the "
                f"header; allowed keys: {', '.join(header)}"
            )
        elif key not in header:
            wrong = unknown_name_message("header key", key, header)
        elif not value:
            wrong = f"got no value for {key!r}; write one or drop the line"
        elif key == "answer_format" and value not in ANSWER_FORMATS:
            wrong = unknown_name_message(key, value, ANSWER_FORMATS)
        elif key == "chat" and value not in ("true", "false"):
            wrong = f"chat: got {value!r}, expected true or false"
        elif key == "chat_template_kwargs" and not isinstance(_json(value), dict):
            wrong = (
                f'{key}: got {value!r}, expected a JSON object such as {{"enable_thinking": false}}'
            )
        elif key in ("chat", "chat_template_kwargs") and header[key]:
            wrong = f"got a second line {key!r}; keep one"
        else:
            header[key].append(value)
            continue
        raise ValueError(f"{where}:{number}: {wrong}")
    else:
        raise ValueError(
            f"{where}: got a file without a line '---'; put it between the header and the template"
        )
    if len(header["answer_format"]) != 1:
        raise ValueError(
            f"{where}: got {len(header['answer_format'])} 'answer_format' lines, expected exactly "
            f"one of: {', '.join(sorted(ANSWER_FORMATS))}"
        )
    template = re.sub(r"\r?\n\Z", "", "".join(lines[number:]))
    try:
        return _make(name, template, header)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None


def _make(name: str, template: str, header: Mapping[str, list[str]]) -> Prompt:
    (answer_format,), stop = header["answer_format"], tuple(header["stop"])
    if header["chat"] == ["true"]:
        variables = dict(*map(json.loads, header["chat_template_kwargs"]))
        system = "\n".join(header["system"]) or None
        return ChatPrompt(name, template, stop, answer_format, system, variables)
    for key in ("system", "chat_template_kwargs"):
        if header[key]:
            raise ValueError(f"got {key!r} without 'chat: true'; add that line, or drop {key}")
    return Prompt(name, template, stop, answer_format)


def _json(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return None


ALPACA_TEMPLATE = (
    "Below is an instruction that describes a task. "
    "Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n{prompt}\n\n"
    "### Response:\n{response}"
)


def format_alpaca(prompt: str, response: str = "") -> str:
    """Returns prompt and response in the template, both character by character as given.

    Without a response it is what a tuned model is asked with: all that stands before the response.

    Source: Stanford Alpaca's prompt without input. Departure: there the response follows
    "### Response:" at once; here, as in the handout, after one line break.
    """
    return ALPACA_TEMPLATE.format(prompt=prompt, response=response)
