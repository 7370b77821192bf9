"""What the evaluation loop adds to the time that vLLM needs for the same requests alone.

    python benchmarks/evaluation.py runs/quickstart/base_policy/final

Both sides send the same requests (prompts, sampling, seeds), equally many at a time, to one vLLM
server, in one process and in turns. The reference reads the answers and throws them away; the
evaluation parses, grades and writes them, and makes its report, all of which is timed. Each round
has both, and the one that goes first changes from round to round. A round before the first is not
timed: it fills the server's prefix cache for both.
"""

import argparse
import asyncio
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import aiohttp

from trl_r1zero.data.prompts import load_prompt
from trl_r1zero.data.rows import build_dataset
from trl_r1zero.data.tasks.chain_arithmetic import ChainArithmeticTask
from trl_r1zero.evaluation import evaluate
from trl_r1zero.generation import SamplingConfig, row_seeds
from trl_r1zero.generation.vllm_client import MAX_CONCURRENT_REQUESTS, VLLMServerEngine
from trl_r1zero.generation.vllm_server import VLLMServerConfig
from trl_r1zero.grading import Grader
from trl_r1zero.rewards import r1_zero_reward_fn


async def send_and_discard(url: str, bodies: list[dict[str, Any]]) -> None:
    connector = aiohttp.TCPConnector(limit=MAX_CONCURRENT_REQUESTS)
    timeout = aiohttp.ClientTimeout(total=None)
    async with aiohttp.ClientSession(connector=connector, timeout=timeout) as session:

        async def post(body: dict[str, Any]) -> None:
            async with session.post(url, json=body) as response:
                response.raise_for_status()
                await response.read()

        async with asyncio.TaskGroup() as group:
            for body in bodies:
                group.create_task(post(body))


def seconds_of(call: Callable[[], Any]) -> tuple[float, float]:
    """Wall-clock seconds, and this process's CPU seconds."""
    start, cpu_start = time.perf_counter(), time.process_time()
    call()
    return time.perf_counter() - start, time.process_time() - cpu_start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", help="such as runs/quickstart/base_policy/final")
    parser.add_argument("--num_prompts", type=int, default=5000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--max_tokens", type=int, default=64)
    parser.add_argument("--server_url", help="of a running server; otherwise one is started")
    arguments = parser.parse_args()

    prompt = load_prompt("chain_arithmetic")
    task = ChainArithmeticTask(num_validation=arguments.num_prompts)
    examples = build_dataset(task.load(split="validation"), prompt)
    sampling = SamplingConfig(max_tokens=arguments.max_tokens, stop=prompt.stop)
    if arguments.server_url:
        engine = VLLMServerEngine(arguments.server_url)
    else:
        config = VLLMServerConfig(dtype="float32", max_model_len=256)
        engine = VLLMServerEngine.start(arguments.model, config)
    tokens = 0

    def evaluation() -> None:
        nonlocal tokens
        with tempfile.TemporaryDirectory() as folder:
            grader = Grader(r1_zero_reward_fn)
            done = evaluate(engine, examples, grader, sampling, folder=Path(folder, "evaluation"))
            tokens = done.summary["num_tokens"]

    try:
        # The bodies of the requests are the engine's own, so that they are the same.
        ids = engine.tokenizer(list(examples["prompt"]))["input_ids"]
        seeds = row_seeds(0, "eval", 0, range(len(ids)))
        bodies = [
            engine._completion_request(one, sampling, seed)
            for one, seed in zip(ids, seeds, strict=True)
        ]
        url = f"{engine.base_url}/v1/completions"
        sides = {
            "vLLM alone": lambda: asyncio.run(send_and_discard(url, bodies)),
            "evaluation": evaluation,
        }
        for call in sides.values():
            call()
        rounds: list[dict[str, tuple[float, float]]] = []
        for number in range(arguments.rounds):
            order = list(sides) if number % 2 == 0 else list(sides)[::-1]
            rounds.append({name: seconds_of(sides[name]) for name in order})
    finally:
        engine.close()
    report(rounds, len(ids), tokens)


def report(rounds: list[dict[str, tuple[float, float]]], num_prompts: int, tokens: int) -> None:
    ratios = [seconds["evaluation"][0] / seconds["vLLM alone"][0] for seconds in rounds]
    print(
        f"\n{num_prompts:,} prompts, {tokens:,} tokens, "
        f"{platform.processor() or platform.machine()}, Python {platform.python_version()}\n"
    )
    print("| round | vLLM alone, s | evaluation, s | ratio | CPU alone, s | CPU evaluation, s |")
    print("| ----: | ------------: | ------------: | ----: | -----------: | ----------------: |")
    for number, (seconds, ratio) in enumerate(zip(rounds, ratios, strict=True), start=1):
        (alone, cpu_alone), (whole, cpu_whole) = seconds["vLLM alone"], seconds["evaluation"]
        print(
            f"| {number} | {alone:.2f} | {whole:.2f} | {ratio:.3f} "
            f"| {cpu_alone:.2f} | {cpu_whole:.2f} |"
        )
    median = statistics.median(ratios)
    spread = f"from {min(ratios):.3f} to {max(ratios):.3f}"
    print(f"\nThe evaluation takes {median:.3f} times as long (median; {spread}).")


if __name__ == "__main__":
    main()
