"""A reward function for recipes of the tests, named there by its dotted path."""

import numpy as np

_LEAKED: list[np.ndarray] = []


def odd_digits(response: str, ground_truth: str) -> dict[str, float]:
    """1 for an odd number of digits: an untrained model gets it half of the time."""
    odd = float(sum(character.isdigit() for character in response) % 2)
    return {"reward": odd, "format_reward": 1.0, "answer_reward": odd}


def hangs_on_e(response: str, ground_truth: str) -> dict[str, float]:
    """`odd_digits`, but it never returns for a response with an e in it."""
    while "e" in response:
        pass
    return odd_digits(response, ground_truth)


def nothing_for_e(response: str, ground_truth: str) -> dict[str, float]:
    """`odd_digits`, but 0 for a response with an e in it."""
    if "e" in response:
        return dict.fromkeys(("reward", "format_reward", "answer_reward"), 0.0)
    return odd_digits(response, ground_truth)


def eats_memory_on_e(response: str, ground_truth: str) -> dict[str, float]:
    """`odd_digits`, but it takes memory without end for a response with an e in it."""
    while "e" in response:
        _LEAKED.append(np.empty(2**28, np.uint8))
    return odd_digits(response, ground_truth)


def leaks(response: str, ground_truth: str) -> dict[str, float]:
    """`nothing_for_e`, but 128 MiB are gone after each response."""
    _LEAKED.append(np.empty(2**27, np.uint8))
    return nothing_for_e(response, ground_truth)


def odd_length(response: str, ground_truth: str) -> dict[str, float]:
    """1 for an odd number of characters, whatever they are."""
    return {"reward": float(len(response) % 2)}


def many_digits(response: str, ground_truth: str) -> dict[str, float]:
    """1 for three digits or more: rare in an untrained model, and soon learned."""
    many = float(sum(character.isdigit() for character in response) >= 3)
    return {"reward": many, "format_reward": 1.0, "answer_reward": many}


def never(response: str, ground_truth: str) -> dict[str, float]:
    """0 for everything."""
    return {"reward": 0.0}
