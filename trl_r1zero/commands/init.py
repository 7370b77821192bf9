"""A project of one's own, to edit: `trl-r1zero init`.

trl-r1zero init my_project
cd my_project && trl-r1zero grpo --config grpo.yaml    # on a CPU
"""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .errors import command_line, exit_on

# Of the model that a project begins with: the share of its answers that is right, and how close, in
# nats, it has to come to answering so.
RIGHT = 0.4
CLOSE_ENOUGH = 0.02
MOST_STEPS = 600
TEMPLATES = Path(__file__).parent / "project"
SUFFIX = ".template"


def main(argv: Sequence[str] | None = None, program: str = "trl-r1zero init") -> None:
    """Write a project: data, task, prompt, reward, recipe, test, and a tiny model to begin with."""
    parser = command_line(program, __doc__)
    parser.add_argument("folder", metavar="FOLDER", help="a new one, or an empty one")
    args = parser.parse_args(argv)
    folder = Path(args.folder)
    with exit_on(program, ValueError, OSError):
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise ValueError(f"{folder} is there already, and not empty; name a new folder")
        write_project(folder)
    print(
        f"{folder} is a project. Its README.md says what is where. To begin:\n"
        f"  cd {folder}\n  trl-r1zero grpo --config grpo.yaml"
    )


def write_project(folder: Path) -> None:
    """Write the project's files into a folder, which is made if need be."""
    from trl_r1zero.recipe.embedded_model import save_embedded_model

    folder.mkdir(parents=True, exist_ok=True)
    model = folder / "model"
    number = save_embedded_model(model, hidden_size=64, num_layers=2)
    for template in sorted(TEMPLATES.glob(f"*{SUFFIX}")):
        text = template.read_text(encoding="utf-8")
        if template.name.startswith(("README", "grpo")):
            text = text.format(name=folder.resolve().name, parameters=number)
        (folder / template.name.removesuffix(SUFFIX)).write_text(text, encoding="utf-8")
    _teach(folder, model)


def _teach(folder: Path, model_folder: Path) -> None:
    """Teach the project's model a digit to each of its questions, the right one in `RIGHT` of all
    cases: something for reinforcement to find. An untrained one would never answer."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from trl_r1zero.data.prompts import load_prompt
    from trl_r1zero.data.tokenization import tokenize_prompt_and_output
    from trl_r1zero.functional import get_response_log_probs

    lines = (folder / "data.jsonl").read_text(encoding="utf-8").splitlines()
    prompt = load_prompt(str(folder / "prompt.txt"))
    wrong = (1 - RIGHT) / 9
    prompts, outputs, shares = [], [], []
    for row in map(json.loads, lines):
        for digit in "0123456789":
            prompts.append(prompt.format(row["question"]))
            outputs.append(f" {digit}.")
            shares.append(RIGHT if digit == row["answer"] else wrong)
    tokenizer = AutoTokenizer.from_pretrained(model_folder)
    model: Any = AutoModelForCausalLM.from_pretrained(model_folder)
    batch = tokenize_prompt_and_output(prompts, outputs, tokenizer)
    share_B = torch.tensor(shares) / len(lines)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    # The least that the loss can be: the entropy of such an answer.
    least = -RIGHT * math.log(RIGHT) - 9 * wrong * math.log(wrong)
    for _ in range(MOST_STEPS):
        log_probs_BT = get_response_log_probs(model, batch["input_ids"], batch["labels"])
        response_B = (log_probs_BT["log_probs"] * batch["response_mask"]).sum(dim=1)
        loss = -(share_B * response_B).sum()
        if loss.item() < least + CLOSE_ENOUGH:
            break
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    model.save_pretrained(model_folder)
