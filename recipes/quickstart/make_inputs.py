"""Makes what the recipes of the embedded task start from: a model and four files of traces.

    python recipes/quickstart/make_inputs.py --output_dir runs/quickstart/inputs

* `model/`: an untrained Qwen2 of 0.6M parameters and its tokenizer;
* `base_policy.jsonl`: traces for `sft-base_policy.yaml`, in the order in which they are trained on:
  first honest ones, from which a model learns to add and subtract, then ones that are bad on
  purpose, where almost half guess without working, steps go wrong and formats break. A model that
  has seen both samples right answers, but not reliably: something for reinforcement to find;
* `base_policy-two_prompts.jsonl`: the same, where every other question stands alone, as the prompt
  `question_only` has it, and the answer is in a box: for a base policy that knows both prompts;
* `traces.jsonl`: one trace for each training question, as one would buy them: most are right, some
  guess, some are wrong, and in one of five the tags are on two lines, which the reward rejects.

What is there already is left as it is.
"""

import json
import random
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import cycle
from pathlib import Path

from trl_r1zero.data.prompts import load_prompt
from trl_r1zero.data.tasks import Example
from trl_r1zero.data.tasks.chain_arithmetic import (
    HONEST,
    ChainArithmeticTask,
    TraceNoise,
    noisy_trace,
)
from trl_r1zero.recipe import parse_recipe
from trl_r1zero.recipe.embedded_model import save_embedded_model

COMPLETE_MARKER = "inputs.json"
BOUGHT = TraceNoise(guess=0.1, step_error=0.04, bad_format=0.05)
NEWLINE_SHARE = 0.2
# Number -> prompt of that trace, by turns.
ONE_PROMPT = ("chain_arithmetic",)
TWO_PROMPTS = ("chain_arithmetic", "question_only")


@dataclass
class InputArguments:
    """Settings of the embedded task's model and traces."""

    output_dir: str = field(metadata={"help": "Folder of the model and of the traces."})
    num_base_traces: int = field(
        default=25600, metadata={"help": "Traces for the base policy, questions drawn anew."}
    )
    honest_share: float = field(
        default=0.6, metadata={"help": "Share of these, at the start, that is honest."}
    )
    num_questions: int = field(default=8192, metadata={"help": "Different training questions."})
    hidden_size: int = field(default=128, metadata={"help": "Width of the model."})
    num_layers: int = field(default=3, metadata={"help": "Layers of the model."})
    seed: int = field(default=0, metadata={"help": "Seed of weights and traces."})


def main(args: InputArguments) -> None:
    folder = Path(args.output_dir)
    if (folder / COMPLETE_MARKER).is_file():
        print(f"inputs: {folder} is there already")
        return
    parameters = save_embedded_model(
        folder / "model", args.hidden_size, args.num_layers, seed=args.seed
    )

    examples = ChainArithmeticTask(num_train=args.num_questions).load(split="train")
    write_traces(folder / "base_policy.jsonl", base_policy_traces(examples, args))
    write_traces(
        folder / "base_policy-two_prompts.jsonl", base_policy_traces(examples, args), TWO_PROMPTS
    )
    write_traces(folder / "traces.jsonl", bought_traces(examples, random.Random(args.seed + 1)))
    (folder / COMPLETE_MARKER).write_text(json.dumps(vars(args), indent=2) + "\n")
    print(f"inputs: {parameters:,} parameters, traces in {folder}")


def base_policy_traces(
    examples: list[Example], args: InputArguments
) -> Iterator[tuple[Example, str]]:
    """Honest traces, and then poor ones."""
    rng = random.Random(args.seed)
    for number in range(args.num_base_traces):
        noise = HONEST if number < args.honest_share * args.num_base_traces else TraceNoise()
        example = rng.choice(examples)
        yield example, noisy_trace(example.question, rng, noise)


def bought_traces(examples: list[Example], rng: random.Random) -> Iterator[tuple[Example, str]]:
    """One trace for each question."""
    for example in examples:
        trace = noisy_trace(example.question, rng, BOUGHT)
        if rng.random() < NEWLINE_SHARE:
            trace = trace.replace("</think> <answer>", "</think>\n<answer>")
        yield example, trace


def boxed(trace: str) -> str:
    """The trace with its answer as `question_only` wants it: in a box. A trace whose tags are not
    as the reward wants them gets no box."""
    working, think, answer = trace.partition(" </think> <answer> ")
    if think and answer.endswith(" </answer>"):
        return f"{working} \\boxed{{{answer.removesuffix(' </answer>')}}}"
    return re.sub(" </?(?:think|answer)>", "", trace)


def write_traces(
    path: Path, traces: Iterable[tuple[Example, str]], prompt_names: Sequence[str] = ONE_PROMPT
) -> None:
    """JSON lines of `prompt`, `response`, `ground_truth`; the prompts take turns."""
    prompts = [load_prompt(name) for name in prompt_names]
    with path.open("w", encoding="utf-8") as file:
        for (example, response), prompt in zip(traces, cycle(prompts), strict=False):
            row = {
                "prompt": prompt.format(example.question),
                "response": boxed(response) if prompt.answer_format == "boxed" else response,
                "ground_truth": example.ground_truth,
            }
            file.write(json.dumps(row) + "\n")


if __name__ == "__main__":
    main(*parse_recipe((InputArguments,), description=__doc__).instances)
