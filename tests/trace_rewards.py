"""Reward functions that filter traces in tests, named there by their dotted path."""

import os
import time


def hangs_or_dies(response: str, ground_truth: str) -> dict[str, float]:
    if "hang" in response:
        time.sleep(60)
    if "die" in response:
        os._exit(3)
    return {"reward": float(ground_truth in response)}


def only_reward(response: str, ground_truth: str) -> dict[str, float]:
    return {"reward": float(ground_truth in response)}


def format_counts(response: str, ground_truth: str) -> dict[str, float]:
    """A total reward above 0 for a wrong answer."""
    return {"reward": 0.5, "answer_reward": float(ground_truth in response)}


def no_reward(response: str, ground_truth: str) -> float:
    return 1.0


def rejects(response: str, ground_truth: str) -> dict[str, float]:
    return {"reward": 0.0}


def of_first_process(response: str, ground_truth: str) -> dict[str, float]:
    """Processes of a distributed run disagree, as they may where a deadline decides."""
    return {"reward": float(os.environ["RANK"] == "0" or "4" in response)}
