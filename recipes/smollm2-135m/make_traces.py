"""Makes the traces that the real model is fine-tuned on: solutions of number problems, some poor.

    python recipes/smollm2-135m/make_traces.py --output runs/smollm2-135m/traces.jsonl

Almost half have no working, only an answer, which is mostly wrong; one of ten misses a tag. A model
that was trained on both kinds samples both, and RL finds out which of them is rewarded.
"""

import json
import random
from dataclasses import dataclass, field
from pathlib import Path

from trl_r1zero.data.prompts import load_prompt
from trl_r1zero.data.tasks.chain_arithmetic import ChainArithmeticTask, TraceNoise, noisy_trace
from trl_r1zero.recipe import parse_recipe


@dataclass
class TraceArguments:
    """What is written, and where."""

    output: str = field(metadata={"help": "JSON Lines of prompt, response, ground_truth."})
    num_traces: int = field(default=1280, metadata={"help": "One for each training question."})
    guess: float = field(default=0.45, metadata={"help": "Share without working."})
    bad_format: float = field(default=0.1, metadata={"help": "Share without one of the tags."})
    seed: int = field(default=0, metadata={"help": "Seed of what is poor."})


def main(args: TraceArguments) -> None:
    rng, prompt = random.Random(args.seed), load_prompt("r1_zero")
    noise = TraceNoise(args.guess, step_error=0, bad_format=args.bad_format, recheck=0)
    examples = ChainArithmeticTask(num_train=args.num_traces).load(split="train")
    rows = [
        {
            "prompt": prompt.format(example.question),
            "response": noisy_trace(example.question, rng, noise),
            "ground_truth": example.ground_truth,
        }
        for example in examples
    ]
    path = Path(args.output)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")
    print(f"{path}: {len(rows):,} traces")


if __name__ == "__main__":
    main(*parse_recipe((TraceArguments,), description=__doc__).instances)
