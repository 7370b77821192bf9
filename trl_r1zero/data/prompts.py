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

from dataclasses import dataclass
from importlib import resources
from pathlib import Path

from trl_r1zero.naming import unknown_name_message

__all__ = ["ANSWER_FORMATS", "PROMPTS", "Prompt", "load_prompt"]

PLACEHOLDER = "{question}"
FENCE = "```"
HEADER_KEYS = ("stop", "answer_format")

ANSWER_FORMATS = {
    "tags": "reasoning up to </think>, then the answer as <answer> ... </answer>",
    "boxed": r"the answer in \boxed{...}, anywhere in the response",
    "text": "free text: the response as it is, see Prompt.reply",
}

# Built-in prompts and their files in `prompt_files/`.
PROMPTS = {
    "r1_zero": "r1_zero.txt",
    "question_only": "question_only.txt",
    "chain_arithmetic": "chain_arithmetic.txt",
    "zero_shot": "zero_shot.txt",
    "alpaca": "alpaca.txt",
}


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
            raise ValueError(
                f"prompt {self.name!r}: "
                + unknown_name_message("answer_format", self.answer_format, ANSWER_FORMATS)
            )
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
        file_name = PROMPTS[name_or_path]
        text = (
            resources.files("trl_r1zero.data")
            .joinpath("prompt_files", file_name)
            .read_text("utf-8")
        )
        return _parse(text, where=file_name, name=name_or_path)
    if name_or_path.endswith(".txt"):
        path = Path(name_or_path)
        if not path.is_file():
            raise FileNotFoundError(
                f"prompt file {name_or_path} does not exist; give a path to an existing .txt file, "
                f"or one of: {', '.join(sorted(PROMPTS))}"
            )
        # newline="" keeps "\r\n" of a template as it is, instead of silently making it "\n".
        with path.open(encoding="utf-8", newline="") as file:
            return _parse(file.read(), where=str(path), name=path.stem)
    raise ValueError(
        unknown_name_message("prompt", name_or_path, PROMPTS)
        + " A path to a .txt file is accepted too."
    )


def _parse(text: str, where: str, name: str) -> Prompt:
    stop: list[str] = []
    answer_formats: list[str] = []
    lines = text.splitlines(keepends=True)
    for number, line in enumerate(lines, start=1):
        if line.strip() == "---":
            template = "".join(lines[number:])
            break
        key, colon, value = (part.strip() for part in line.partition(":"))
        if not colon:
            raise ValueError(
                f"{where}:{number}: got {line.strip()!r}, expected 'key: value' or the line '---' "
                f"that ends the header; allowed keys: {', '.join(HEADER_KEYS)}"
            )
        if key not in HEADER_KEYS:
            raise ValueError(
                f"{where}:{number}: " + unknown_name_message("header key", key, HEADER_KEYS)
            )
        if not value:
            raise ValueError(
                f"{where}:{number}: got no value for {key!r}; write one or drop the line"
            )
        if key == "answer_format" and value not in ANSWER_FORMATS:
            raise ValueError(
                f"{where}:{number}: " + unknown_name_message("answer_format", value, ANSWER_FORMATS)
            )
        (stop if key == "stop" else answer_formats).append(value)
    else:
        raise ValueError(
            f"{where}: got a file without a line '---'; put it between the header and the template"
        )
    if len(answer_formats) != 1:
        raise ValueError(
            f"{where}: got {len(answer_formats)} 'answer_format' lines, expected exactly one of: "
            f"{', '.join(sorted(ANSWER_FORMATS))}"
        )
    for newline in ("\r\n", "\n"):
        if template.endswith(newline):
            template = template.removesuffix(newline)
            break
    try:
        return Prompt(name, template, tuple(stop), answer_formats[0])
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None
