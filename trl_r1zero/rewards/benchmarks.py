"""Reward functions of two benchmarks that are answered in free text: MMLU and GSM8K.

Both read the response with the parser of that benchmark (`extraction`) and never guess. What stands
behind a "# Query" is the next question of a model that goes on with the prompt `zero_shot`, and is
not read.
"""

from decimal import Decimal, InvalidOperation
from typing import Any

from .extraction import before_next_query, parse_gsm8k_response, parse_mmlu_response
from .reward_functions import Explanation, GroundTruth, ground_truth_texts

LETTERS = ("A", "B", "C", "D")
RULES: dict[str, str] = {
    "right_option": "the option that is claimed is the right one",
    "other_option": "another option is claimed than the right one",
    "no_option_claimed": "no option is claimed, or several are",
    "same_number": "the last number of the response equals the ground truth",
    "other_number": "the last number of the response is another one than the ground truth",
    "no_number": "there is no number in the response",
}


def mmlu_reward_fn(response: str, ground_truth: dict[str, Any]) -> dict[str, float]:
    """Reward of a response to a question with four options.

    Args:
        response: what the model wrote.
        ground_truth: `answer`, the right letter, "A" to "D"; and where known `options`, the four
            texts, by which an option can be named too. It is the `mmlu_example` of
            `parse_mmlu_response`.

    Returns:
        `format_reward`, 1 if the response claims an option; `answer_reward` and `reward`, 1 if that
        is the right one.

    Raises:
        TypeError: the ground truth is no dict with such a letter.
    """
    return explain_mmlu(response, ground_truth).parts


def gsm8k_reward_fn(response: str, ground_truth: GroundTruth) -> dict[str, float]:
    """Reward of a response to a question whose answer is a number.

    Args:
        response: what the model wrote; its last number is the answer.
        ground_truth: the right number, as a text or not; of a list, any will do.

    Returns:
        `format_reward`, 1 if there is a number; `answer_reward` and `reward`, 1 if the last one
        equals the ground truth as a number ("72" equals "72.0").

    Raises:
        TypeError: the ground truth has another type.
        ValueError: it is no number.
    """
    return explain_gsm8k(response, ground_truth).parts


def explain_mmlu(response: str, ground_truth: dict[str, Any]) -> Explanation:
    """Which option the response claims, and the rule that decided its reward."""
    right = ground_truth.get("answer") if isinstance(ground_truth, dict) else None
    if right not in LETTERS:
        raise TypeError(
            f"ground_truth of MMLU: got {ground_truth!r:.80}, expected a dict with the key answer, "
            'one of A, B, C, D, such as {"answer": "B", "options": [four texts]}'
        )
    letter = parse_mmlu_response(ground_truth, response)
    rules = {None: "no_option_claimed", right: "right_option"}
    return _explanation(rules.get(letter, "other_option"), letter, right)


def explain_gsm8k(response: str, ground_truth: GroundTruth) -> Explanation:
    """The last number of the response, and the rule that decided its reward."""
    truths = ground_truth_texts(ground_truth)
    if not truths:
        raise ValueError("ground_truth of GSM8K: got an empty list, expected a number")
    numbers = [_number(truth) for truth in truths]
    said = parse_gsm8k_response(before_next_query(response))
    if said is None:
        return _explanation("no_number", None, truths[0])
    value = Decimal(said)
    matching = [truth for truth, number in zip(truths, numbers, strict=True) if number == value]
    if matching:
        return _explanation("same_number", said, matching[0])
    return _explanation("other_number", said, truths[0])


def _number(truth: str) -> Decimal:
    try:
        number = Decimal(truth.replace(",", ""))
    except InvalidOperation:
        number = Decimal("nan")
    if not number.is_finite():
        raise ValueError(
            f"ground_truth of GSM8K: got {truth!r:.80}, expected a number such as '72' or '-1.5'"
        )
    return number


def _explanation(rule: str, answer: str | None, ground_truth: str) -> Explanation:
    right = float(rule in ("right_option", "same_number"))
    return Explanation(float(answer is not None), right, rule, RULES[rule], answer, ground_truth)
