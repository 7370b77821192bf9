"""Reward functions for evaluations of the tests, named there by their dotted path."""

import os


def length_is_even(response: str, ground_truth: str) -> dict[str, float]:
    even = float(len(response) % 2 == 0)
    return {"reward": even, "format_reward": 1.0, "answer_reward": even}


def hangs_on_long_responses(response: str, ground_truth: str) -> dict[str, float]:
    while len(response) > 20:
        pass
    return length_is_even(response, ground_truth)


def dies_on_long_responses(response: str, ground_truth: str) -> dict[str, float]:
    if len(response) > 20:
        os._exit(3)
    return length_is_even(response, ground_truth)


def raises(response: str, ground_truth: str) -> dict[str, float]:
    raise KeyError("no such thing")


def raises_on_anything_but_nothing(response: str, ground_truth: str) -> dict[str, float]:
    if response:
        raise KeyError("no such thing")
    return {"reward": 0.0, "style": 0.5}
