"""Agreement of the graders with the verdicts that math-verify's own test cases expect.

    python benchmarks/math_reward.py PAIRS.jsonl.gz

PAIRS holds one JSON object per line, plain or gzipped; used are those with `math_verify_expected`
(1 or 0, what math-verify's published test suite expects), beside `response`, `ground_truth` and
`prompt_style`.
"""

import argparse
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rewards import REWARDS, read_pairs

from trl_r1zero.rewards import math_reward_fn

Pair = dict[str, Any]
GRADERS: dict[str, Callable[[Pair], dict[str, float]]] = {
    "`math_reward_fn`": lambda pair: math_reward_fn(pair["response"], pair["ground_truth"]),
    "the reference's verdicts": lambda pair: REWARDS[pair["prompt_style"]](
        pair["response"], pair["ground_truth"]
    ),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("pairs", type=Path)
    pairs = [
        pair for pair in read_pairs(parser.parse_args().pairs) if "math_verify_expected" in pair
    ]
    print(f"{len(pairs)} published cases\n")
    print("| grader | agrees | right called wrong | wrong called right |")
    print("| --- | ---: | ---: | ---: |")
    for name, grade in GRADERS.items():
        outcomes = Counter(
            (
                pair["math_verify_expected"],
                int(grade(pair)["answer_reward"]),
            )
            for pair in pairs
        )
        agreement = (outcomes[0, 0] + outcomes[1, 1]) / len(pairs)
        print(f"| {name} | {agreement:.1%} | {outcomes[1, 0]} | {outcomes[0, 1]} |")


if __name__ == "__main__":
    main()
