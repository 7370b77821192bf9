"""Speed of the reward function beside math-verify, on the same pairs, in one process, in turns.

    python benchmarks/rewards.py PAIRS.jsonl.gz --sample 2000

PAIRS holds one JSON object per line with `response`, `ground_truth`, `prompt_style` ("r1_zero" or
"question_only"), plain or gzipped. Both graders see every sampled pair once; math-verify gets what
its users give it, the answer and the ground truth, each parsed and then compared, with its own
time limits. Where the pairs carry the reference's `answer_reward`, the agreement is printed too.
"""

import argparse
import gzip
import json
import platform
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from math_verify import parse, verify

from trl_r1zero.rewards import question_only_reward_fn, r1_zero_reward_fn

REWARDS = {"r1_zero": r1_zero_reward_fn, "question_only": question_only_reward_fn}


def grade_with_ours(pair: dict[str, Any]) -> bool:
    reward = REWARDS[pair["prompt_style"]](pair["response"], pair["ground_truth"])
    return reward["answer_reward"] == 1.0


def grade_with_math_verify(pair: dict[str, Any]) -> bool:
    truths = pair["ground_truth"]
    truths = truths if isinstance(truths, list) else [str(truths)]
    answer = parse(pair["response"].rsplit("<answer>", 1)[-1].removesuffix("</answer>"))
    return any(verify(parse(f"${truth}$"), answer) for truth in truths)


GRADERS: dict[str, Callable[[dict[str, Any]], bool]] = {
    "trl_r1zero": grade_with_ours,
    "math-verify": grade_with_math_verify,
}


def read_pairs(path: Path) -> list[dict[str, Any]]:
    with gzip.open(path, "rt") if path.suffix == ".gz" else path.open() as lines:
        return [json.loads(line) for line in lines]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("pairs", type=Path)
    parser.add_argument("--sample", type=int, default=2000, help="every n-th pair, so many of them")
    arguments = parser.parse_args()
    pairs = read_pairs(arguments.pairs)
    sample = pairs[:: max(1, len(pairs) // arguments.sample)]
    # Imports, caches of regular expressions and the like are not what is compared.
    for grader in GRADERS.values():
        grader(
            {
                "prompt_style": "r1_zero",
                "response": "</think> <answer>\\sqrt{x}+0.3</answer>",
                "ground_truth": "\\frac{3}{10}+\\sqrt{x}",
            }
        )
    seconds: dict[str, list[float]] = {name: [] for name in GRADERS}
    agreed = dict.fromkeys(GRADERS, 0)
    for pair in sample:
        for name, grader in GRADERS.items():
            start = time.perf_counter()
            right = grader(pair)
            seconds[name].append(time.perf_counter() - start)
            agreed[name] += right == bool(pair.get("answer_reward"))
    print(f"{len(sample)} pairs, {platform.processor() or platform.machine()}, "
          f"Python {platform.python_version()}, one process\n")  # fmt: skip
    print("| grader | pairs/s | p50 ms | p99 ms | max ms | agrees with the reference |")
    print("| --- | ---: | ---: | ---: | ---: | ---: |")
    for name, times in seconds.items():
        times.sort()
        p50, p99 = times[len(times) // 2], times[int(len(times) * 0.99)]
        print(
            f"| {name} | {len(times) / sum(times):,.0f} | {p50 * 1e3:.2f} | {p99 * 1e3:.2f} "
            f"| {times[-1] * 1e3:.0f} | {agreed[name] / len(times):.2%} |"
        )
    ours, theirs = (sum(seconds[name]) for name in GRADERS)
    print(f"\ntrl_r1zero grades {theirs / ours:.0f} times as many pairs per second as math-verify.")


if __name__ == "__main__":
    main()
