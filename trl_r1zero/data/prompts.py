"""Prompt templates as text files; a prompt carries its stop strings and its answer format.

A prompt file is a header of `key: value` lines, a line `---`, then the template:

    stop: </answer>
    answer_format: tags
    ---
    Q: {question}
    A: <think>

`stop` may be repeated or absent; `answer_format` is one of `ANSWER_FORMATS` and must be there once.
The one newline that ends the file is not part of the template; every other character is.
"""

import re
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

from trl_r1zero.common.naming import unknown_name_message

PLACEHOLDER = "{question}"
FENCE = "```"

ANSWER_FORMATS = {
    "tags": "reasoning up to </think>, then the answer as <answer> ... </answer>",
    "boxed": r"the answer in \boxed{...}, anywhere in the response",
    "text": "free text: the response as it is, see Prompt.reply",
}
# Built-in prompts: the files `prompt_files/*.txt`.
PROMPTS = ("r1_zero", "question_only", "chain_arithmetic", "zero_shot", "alpaca")


@dataclass(frozen=True)
class Prompt:
    """A template with one `{question}`, the strings that end a response, and where its answer is.

    Attributes:
        name: the built-in name, or the stem of the file.
        template: text with exactly one `{question}`.
        stop: generation ends at any of these, and keeps it in the text. Empty: only at eos.
        answer_format: a key of `ANSWER_FORMATS`; a task picks its reward function by it.

    Raises:
        ValueError: a template without exactly one `{question}`, an unknown answer format, or an
            empty stop string.
    """

    name: str
    template: str
    stop: tuple[str, ...]
    answer_format: str

    def __post_init__(self) -> None:
        count = self.template.count(PLACEHOLDER)
        if count != 1:
            raise ValueError(
                f"prompt {self.name!r}: got a template with {count} times {PLACEHOLDER}, expected "
                f"exactly one; write {PLACEHOLDER} where the question goes"
            )
        if self.answer_format not in ANSWER_FORMATS:
            raise ValueError(f"prompt {self.name!r}: {_unknown_format(self.answer_format)}")
        if not all(self.stop):
            raise ValueError(
                f"prompt {self.name!r}: got an empty stop string; remove it, or write its text"
            )

    def format(self, question: str) -> str:
        """Returns the template with `{question}` replaced; other braces (LaTeX) stay."""
        return self.template.replace(PLACEHOLDER, question)

    def reply(self, response: str) -> str:
        """Returns what a response says, for prompts of free text: what stands before the first stop
        string, without white space around it.

        Where the template ends in an opening fence, a fence at the end of the reply closes that
        one, and is left out, unless it closes a block of code that the reply itself has opened.
        """
        ends = [response.index(stop) for stop in self.stop if stop in response]
        text = response[: min(ends, default=len(response))].strip()
        # Blocks of code have two fences each, so of an odd number the last is the template's.
        if self.template.endswith(FENCE) and text.endswith(FENCE) and text.count(FENCE) % 2 == 1:
            text = text.removesuffix(FENCE).rstrip()
        return text


def load_prompt(name_or_path: str) -> Prompt:
    """Returns a built-in prompt by its name, or a prompt from a path to a `.txt` file.

    Raises:
        FileNotFoundError: a path to a `.txt` file that is not there.
        ValueError: an unknown name, or a file that breaks the format; the text names file and line.
    """
    if name_or_path in PROMPTS:
        file_name = f"{name_or_path}.txt"
        text = resources.files("trl_r1zero.data").joinpath("prompt_files", file_name).read_bytes()
        return _parse(text.decode(), where=file_name, name=name_or_path)
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
    # Bytes keep "\r\n" of a template as it is; reading text would silently make it "\n".
    return _parse(path.read_bytes().decode(), where=str(path), name=path.stem)


def _parse(text: str, where: str, name: str) -> Prompt:
    header: dict[str, list[str]] = {"stop": [], "answer_format": []}
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
            wrong = _unknown_format(value)
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
        return Prompt(name, template, tuple(header["stop"]), *header["answer_format"])
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None


def _unknown_format(got: str) -> str:
    return unknown_name_message("answer_format", got, ANSWER_FORMATS)
