"""A real model's speed on this machine: sampling by transformers, and training in three dtypes.

    python benchmarks/real_model.py generation --model FOLDER_OR_NAME --dtype bfloat16
    python benchmarks/real_model.py training --model FOLDER_OR_NAME --rows 2 8

`generation`: tokens of completions for each second with `model.generate`, and with
`TransformersEngine`, in turns; GSM8K-like prompts in groups, as GRPO samples them. Completions have
all the same length, which is what `model.generate` is best at.

`training`: forward and backward of one micro-batch with weights in float32, in float32 under
bfloat16 autocast, and in bfloat16, in turns; tokens are those of prompts and responses.

Seconds are wall-clock and CPU (of all threads), which are steadier on a shared machine.
"""

import argparse
import json
import resource
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch
from paired import Seconds, Spread, now
from transformers import AutoModelForCausalLM, AutoTokenizer

from trl_r1zero.data.prompts import load_prompt
from trl_r1zero.functional import get_response_log_probs
from trl_r1zero.generation import SamplingConfig, TransformersEngine, in_order, row_seeds

QUESTION = (
    "{name} has {a} boxes with {b} pencils each and gives {c} pencils to a friend, who has {d} "
    "already. How many pencils do they have together, and how many more does {name} have?"
)
NAMES = ("Ann", "Bartholomew", "Chi", "Dora", "Emeka", "Fatima", "Gus", "Hildegard")


def prompts(tokenizer: Any, rows: int, group: int) -> list[list[int]]:
    """Token ids of `rows` prompts, each question `group` times."""
    prompt = load_prompt("r1_zero")
    questions = [
        QUESTION.format(name=NAMES[n % 8], a=3 + n, b=7 + n % 5, c=n % 11, d=10**n % 9973)
        for n in range(-(-rows // group))
    ]
    ids = [tokenizer(prompt.format(question))["input_ids"] for question in questions]
    return [ids[row // group] for row in range(rows)]


def timed(device: torch.device, work: Callable[[], object]) -> Seconds:
    start = now(device)
    work()
    return now(device) - start


def in_turns(sides: dict[str, Callable[[], object]], pairs: int, device: torch.device) -> dict:
    """Seconds of each side, pair by pair; which of them goes first changes."""
    seconds: dict[str, list[Seconds]] = {name: [] for name in sides}
    for pair in range(pairs):
        for name in list(sides) if pair % 2 else list(sides)[::-1]:
            seconds[name].append(timed(device, sides[name]))
    return seconds


def show(seconds: dict[str, list[Seconds]], tokens: int) -> None:
    """A line of JSON for each side; ratios are the first side's seconds over this one's."""
    first = next(iter(seconds.values()))
    for name, of_side in seconds.items():
        line: dict[str, Any] = {"side": name, "tokens": tokens}
        for clock in ("wall", "cpu"):
            values = [getattr(one, clock) for one in of_side]
            rate = Spread.of([tokens / value for value in values])
            ratio = Spread.of([getattr(f, clock) / v for f, v in zip(first, values, strict=True)])
            line[f"tokens_per_{clock}_second"] = round(rate.median, 1)
            line[f"{clock}_ratio"] = [
                round(x, 2) for x in (ratio.median, min(ratio.values), max(ratio.values))
            ]
        print(json.dumps(line), flush=True)


def autocast(device: torch.device, active: bool) -> Any:
    return torch.autocast(device.type, torch.bfloat16) if active else nullcontext()


def generation(arguments: argparse.Namespace) -> None:
    device = torch.device(arguments.device)
    tokenizer = AutoTokenizer.from_pretrained(arguments.model, padding_side="left")
    dtype = torch.bfloat16 if arguments.dtype == "bfloat16" else torch.float32
    model: Any = AutoModelForCausalLM.from_pretrained(arguments.model, dtype=dtype).to(device)
    (rows,), length = arguments.rows, arguments.tokens
    ids = prompts(tokenizer, rows, arguments.group)
    sampling = SamplingConfig(max_tokens=length, min_tokens=length)
    engine = TransformersEngine(model, tokenizer)

    def ours() -> None:
        with autocast(device, arguments.dtype == "autocast"):
            in_order(engine.stream(ids, sampling, row_seeds(0, "rollout", 0, range(rows))))

    def stock() -> None:
        tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
        batch = tokenizer.pad({"input_ids": ids}, return_tensors="pt").to(device)
        with torch.no_grad(), autocast(device, arguments.dtype == "autocast"):
            lengths = {"min_new_tokens": length, "max_new_tokens": length}
            model.generate(**batch, **lengths, do_sample=True, top_k=0, top_p=1.0, temperature=1.0)

    model.eval()
    sides = {"model.generate": stock, "TransformersEngine": ours}
    show(in_turns(sides, arguments.pairs, device), rows * length)


def training(arguments: argparse.Namespace) -> None:
    device = torch.device(arguments.device)
    kinds = {
        "float32": (torch.float32, False),
        "autocast": (torch.float32, True),
        "bfloat16": (torch.bfloat16, False),
    }
    prompt, length = arguments.prompt_tokens, arguments.tokens
    for rows in arguments.rows:
        sides: dict[str, Callable[[], object]] = {}
        for name in arguments.kinds:
            dtype, casts = kinds[name]
            model: Any = AutoModelForCausalLM.from_pretrained(arguments.model, dtype=dtype)
            model.train().to(device)
            generator = torch.Generator().manual_seed(0)
            shape = (rows, prompt + length)
            ids = torch.randint(0, model.config.vocab_size, shape, generator=generator).to(device)
            positions = torch.arange(prompt, prompt + length, device=device)

            def step(model: Any = model, casts: bool = casts, ids: Any = ids, p: Any = positions):
                with autocast(device, casts):
                    output = get_response_log_probs(
                        model, ids, ids.roll(-1, 1), True, positions=p, use_cache=False
                    )
                (-output["log_probs"].sum() / ids.numel()).backward()

            sides[name] = step
        print(json.dumps({"rows": rows}), flush=True)
        show(in_turns(sides, arguments.pairs, device), rows * (prompt + length))
    if len(arguments.kinds) == 1:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        print(json.dumps({"peak_gib_of_process": round(peak, 2)}))


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("what", choices=("generation", "training"))
    parser.add_argument("--model", required=True, help="Folder, or name on the hub.")
    parser.add_argument("--rows", type=int, nargs="+", default=[64], help="Of a batch.")
    parser.add_argument("--group", type=int, default=8, help="Completions of a prompt.")
    parser.add_argument("--tokens", type=int, default=64, help="Of a completion.")
    parser.add_argument("--prompt_tokens", type=int, default=150, help="In training.")
    parser.add_argument("--pairs", type=int, default=2)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32", choices=("float32", "autocast", "bfloat16"))
    parser.add_argument("--kinds", nargs="+", default=["float32", "autocast", "bfloat16"])
    arguments = parser.parse_args(argv)
    {"generation": generation, "training": training}[arguments.what](arguments)


if __name__ == "__main__":
    main()
