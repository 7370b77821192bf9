"""Prompts that differ from the run's own in white space alone.

A model is then trained to answer one text and asked another, which no message says.
"""

from collections.abc import Sequence

from trl_r1zero.data.prompts import Prompt

_MARK = "\0"  # no question has it
_AROUND = 8  # characters of an excerpt on either side of a difference


def one_spaced(text: str) -> str:
    """Returns a text with one space for all white space, none at its ends."""
    return " ".join(text.split())


def other_white_space(
    prompts: Sequence[str], prompt: Prompt, eval_prompts: Sequence[str] = ()
) -> dict[int, str]:
    """Number of each prompt that has the words of the run's prompt around its question, but other
    white space -> how they differ.

    Blanks and line breaks at the ends of the question are the question's own, unless half of the
    prompts have them, and not half of `eval_prompts`, which the run's prompt has made. Prompts of
    other words are not looked at.
    """
    before, _, after = prompt.format(_MARK).partition(_MARK)
    found: dict[int, str] = {}
    at_ends: dict[int, str] = {}
    for number, text in enumerate(prompts):
        start, end = _end_of(text, before), len(text) - _end_of(text[::-1], after[::-1])
        head, tail = text[:start], text[end:]
        if not 0 <= start < end <= len(text) or (head, tail) == (before, after):
            continue
        same = head == before
        words = _difference(*((tail, after) if same else (head, before)), at_end=same)
        own = head.removeprefix(before) + tail.removesuffix(after)
        is_own = head.startswith(before) and tail.endswith(after) and not own.strip(" \n")
        (at_ends if is_own else found)[number] = words
    if 2 * len(at_ends) >= len(prompts) and not other_white_space(eval_prompts or [""], prompt):
        found |= at_ends
    return dict(sorted(found.items()))


def _end_of(text: str, beginning: str) -> int:
    """Where, in a text, a beginning ends that may have other white space; with the white space
    behind it, if that ends in some. Beyond the text if it has no such beginning."""
    wanted, seen = "".join(beginning.split()), 0
    for position, character in enumerate(text):
        if character.isspace():
            continue
        if seen == len(wanted):
            return position
        if character != wanted[seen]:
            return len(text) + 1
        seen += 1
    return len(text) if seen == len(wanted) else len(text) + 1


def _difference(got: str, expected: str, at_end: bool = False) -> str:
    """Where two texts differ first, or last."""
    if at_end:
        got, expected = got[::-1], expected[::-1]
    equal = (a == b for a, b in zip(got, expected, strict=False))
    same = next((n for n, one in enumerate(equal) if not one), min(len(got), len(expected)))
    parts = [text[max(0, same - _AROUND) : same + _AROUND] for text in (got, expected)]
    got, expected = (part[::-1] if at_end else part for part in parts)
    return f"{got!r}, not {expected!r}"
