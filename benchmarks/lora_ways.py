"""LoRA adapters to a vLLM server by themselves, or merged into the weights: bytes, seconds, speed.

    trl-r1zero serve MODEL --dtype float32 --max_lora_rank 16 --port 8000
    python benchmarks/lora_ways.py MODEL --url http://127.0.0.1:8000 [--rank 16] [--rounds 5]

In each round, each way in turn gives the server new adapters on all linear layers, and lets it
sample. Printed are medians over rounds; of what other work on the machine does to them, the ratio
of the two ways of a round suffers least.
"""

import argparse
import statistics
import time
from pathlib import Path

import torch
from accelerate import Accelerator
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer

from trl_r1zero.generation import SamplingConfig
from trl_r1zero.trainers.policy_weights import lora_plan
from trl_r1zero.trainers.server_generation import ServerGeneration
from trl_r1zero.trainers.server_setup import ServerAddress, ServerSetup

WAYS = ("adapters", "merged")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("model")
    parser.add_argument("--url", required=True)
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--requests", type=int, default=64)
    parser.add_argument("--tokens", type=int, default=64)
    args = parser.parse_args()
    base = AutoModelForCausalLM.from_pretrained(args.model, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(args.model)
    lora = LoraConfig(r=args.rank, target_modules="all-linear", lora_dropout=0.0)
    model = get_peft_model(base, lora)
    prompt = tokenizer("Question: what is 12 + 7? Answer:")["input_ids"]
    sampling = SamplingConfig(max_tokens=args.tokens, min_tokens=args.tokens)
    servers = {
        way: ServerGeneration(
            model,
            Accelerator(cpu=True),
            tokenizer,
            ServerSetup(
                ServerAddress(args.url, wait_seconds=60.0),
                model_path=args.model,
                log_path=Path("vllm_server.log"),
                group_port=None,
                request_timeout_seconds=600.0,
                lora=lora_plan(model, way, sharded=False, versions=1),
            ),
        )
        for way in WAYS
    }
    found: dict[str, list[tuple[float, float]]] = {way: [] for way in WAYS}
    for round_number in range(args.rounds + 1):
        for way in WAYS[:: 1 if round_number % 2 else -1]:
            with torch.no_grad():
                for name, parameter in model.named_parameters():
                    if "lora_" in name:
                        parameter.add_(0.01 * torch.randn_like(parameter))
            begun = time.perf_counter()
            servers[way].sync_weights()
            sent = time.perf_counter()
            prompts, seeds = [prompt] * args.requests, list(range(args.requests))
            servers[way].sample(prompts, sampling, seeds, description=way, show_progress=False)
            sampled = time.perf_counter()
            if round_number:  # the first warms up
                found[way].append((sent - begun, args.requests * args.tokens / (sampled - sent)))
    for way, rounds in found.items():
        infos = servers[way].weights.infos()
        seconds, speed = (statistics.median(column) for column in zip(*rounds, strict=True))
        size = sum(info.num_bytes for info in infos) / 1e6
        print(f"{way}: {size:.3g} MB, {seconds:.3g} s to send, {speed:.0f} tokens/s")
    pairs = list(zip(*found.values(), strict=True))
    for what, column in (("seconds to send", 0), ("tokens/s", 1)):
        ratio = statistics.median(one[column] / other[column] for one, other in pairs)
        print(f"{what}, adapters over merged, median of rounds: {ratio:.2f}")
    for server in servers.values():
        server.close()


if __name__ == "__main__":
    main()
