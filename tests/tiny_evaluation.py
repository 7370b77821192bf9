"""An evaluation of the untrained model, as a function and as a script that a test can kill.

python tests/tiny_evaluation.py FOLDER PAUSE
"""

import sys
import time
from pathlib import Path

from tiny_models import make_tiny_model

from trl_r1zero import SamplingConfig, get_task, load_prompt
from trl_r1zero.data.embedded_tokenizer import build_embedded_tokenizer
from trl_r1zero.data.rows import build_dataset
from trl_r1zero.evaluation import Evaluation, evaluate
from trl_r1zero.generation import Engine, TransformersEngine
from trl_r1zero.grading import Grade, Grader

PROMPT = load_prompt("chain_arithmetic")
NUM_EXAMPLES, NUM_COMPLETIONS = 12, 3
NUM_ROWS = NUM_EXAMPLES * NUM_COMPLETIONS


def tiny_engine(cls: type[TransformersEngine] = TransformersEngine) -> TransformersEngine:
    tokenizer = build_embedded_tokenizer()
    return cls(make_tiny_model(tokenizer), tokenizer, batch_size=5)


def tiny_examples() -> list[dict]:
    examples = get_task("chain_arithmetic").load(split="validation", limit=NUM_EXAMPLES)
    return list(build_dataset(examples, PROMPT))


def evaluate_tiny(
    folder: str | Path | None, engine: Engine | None = None, *, pause: float = 0.0, **settings
) -> Evaluation:
    """`pause`: seconds that grading one response takes."""

    def odd_length(response: str, ground_truth: str) -> Grade:
        time.sleep(pause)
        odd = float(len(response) % 2)
        return Grade({"reward": odd, "format_reward": 1.0, "answer_reward": odd}, "length")

    arguments = {
        "examples": tiny_examples(),
        "grader": Grader(odd_length),
        "sampling": SamplingConfig(max_tokens=12, stop=PROMPT.stop),
        "num_completions": NUM_COMPLETIONS,
        "folder": folder,
        "settings": {"model": "tiny", "task": "chain_arithmetic"},
    }
    return evaluate(engine or tiny_engine(), **{**arguments, **settings})


if __name__ == "__main__":
    evaluate_tiny(sys.argv[1], pause=float(sys.argv[2]))
