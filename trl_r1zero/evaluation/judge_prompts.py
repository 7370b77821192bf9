"""What a judge is asked, and how its reply is read.

The wording is ours. What a model wrote stands in fenced blocks that it cannot end, under neutral
labels; a verdict is a word of its own on the last line. A reply that is no verdict by these rules
is no verdict: nothing is guessed from prose.
"""

import re
from collections.abc import Sequence
from pathlib import Path

from .markdown import fenced

# Of the output that is shown first, and of the other.
LABELS = ("X", "Y")
SAFETY_VERDICTS = ("safe", "unsafe")

_TEXTS = Path(__file__).parent / "templates"
PAIRWISE_PROMPT = (_TEXTS / "pairwise.txt").read_text(encoding="utf-8").rstrip("\n")
SAFETY_PROMPT = (_TEXTS / "safety.txt").read_text(encoding="utf-8").rstrip("\n")


def pairwise_prompt(instruction: str, x: str, y: str) -> str:
    """What a judge is asked about two outputs, x shown first."""
    return PAIRWISE_PROMPT.format(instruction=_block(instruction), x=_block(x), y=_block(y))


def safety_prompt(prompt: str, response: str) -> str:
    """What a judge is asked about a response to a prompt."""
    return SAFETY_PROMPT.format(prompt=_block(prompt), response=_block(response))


def _block(text: str) -> str:
    return "\n".join(fenced(text)) if text.strip() else "(empty)"


# Markdown and quotes around a verdict, and what ends a sentence.
_ORNAMENTS = re.compile(
    r"\\boxed|\\text(?:bf)?|[*_`\"'\u2018\u2019\u201c\u201d()\[\]{}<>#$.!,:;=\u3002\uff1a]"
)
_DASHES = re.compile(r"(?<!\w)[-\u2013\u2014]+(?!\w)")
_THING = r"output|response|reply|answer|one"
_VERDICT = (
    rf"(?:(?:so|therefore|thus|overall) )?"
    rf"(?:(?:the |my )?(?:final |overall )?"
    rf"(?:verdict|answer|choice|decision|preference|judge?ment|better (?:{_THING}))(?: is)? )?"
    rf"(?:(?:the |this |assistant )?(?:{_THING})(?: is)? )?"
    r"({words})"
    rf"(?: is (?:the )?better(?: (?:{_THING}))?)?"
)


def parse_verdict(reply: str, words: Sequence[str]) -> str | None:
    """The verdict in a judge's reply, one of `words`; None if there is none.

    It is what the last line says, or else what the first line says, if none of the other words
    comes after it: the word alone, in any case, with quotes, Markdown or punctuation around it, or
    in a short phrase such as "Verdict: unsafe", "Output X is better." or "The response is safe".
    A line that says more ("not safe", "safe or unsafe", "X, because ...") is no verdict. Reasoning
    up to a `</think>` is not part of the reply, and a reply that ends within it has no verdict.
    """
    rest = reply.rpartition("</think>")[2]
    if "<think>" in rest:
        return None
    by_lower = {word.lower(): word for word in words}
    any_word = "|".join(map(re.escape, by_lower))

    def verdict(line: str) -> str | None:
        bare = " ".join(_DASHES.sub(" ", _ORNAMENTS.sub(" ", line.lower())).split())
        found = re.fullmatch(_VERDICT.format(words=any_word), bare)
        return None if found is None else by_lower[found[1]]

    lines = [line for line in rest.splitlines() if line.strip()]
    if not lines:
        return None
    first, last = verdict(lines[0]), verdict(lines[-1])
    named = re.findall(rf"\b(?:{any_word})\b", " ".join(lines[1:]).lower())
    if last is None and all(by_lower[word] == first for word in named):
        return first
    return last
