"""What a `vllm.LLM` gives through `OfflineVLLMEngine` and `evaluate_vllm`.

vLLM is run once for all tests, in a process of its own (its import alone takes many seconds and
changes settings of torch); the tests read what it wrote. As a program:

    python tests/offline_vllm.py MODEL OUTPUT.json
"""

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from trl_r1zero.generation import SamplingConfig, row_seeds

needs_vllm = pytest.mark.skipif(find_spec("vllm") is None, reason="vLLM is not installed")

PROMPTS = [f"{number} + 1 <think>" for number in range(8)]
TRUTHS = [str(number + 1) for number in range(8)]
SEEDS = row_seeds(0, "test", 0, range(8))
SAMPLINGS = {
    "greedy": SamplingConfig(temperature=0.0, max_tokens=16),
    "sampled": SamplingConfig(temperature=0.7, max_tokens=16, min_tokens=0),
    "stopped": SamplingConfig(temperature=1.0, max_tokens=48, stop=("1", "+ 2"), min_tokens=6),
    "filtered": SamplingConfig(temperature=1.0, max_tokens=8, top_k=1),
}
# Settings of vLLM's SamplingParams that an evaluation must take, and others that it must not drop.
HANDOUT = {
    "temperature": 1.0,
    "top_p": 1.0,
    "max_tokens": 16,
    "stop": ["</answer>"],
    "include_stop_str_in_output": True,
}
ACCEPTED: dict[str, dict[str, Any]] = {
    "handout": HANDOUT,
    "n and seed": {"n": 4, "seed": 7, "max_tokens": 8},
    "filters": {"top_p": 0.9, "top_k": 20, "min_p": 0.1, "min_tokens": 2},
    "all tokens as vLLM also writes it": {"top_k": -1},
    "tokens that end it": {"stop_token_ids": [3]},
    "one stop string": {"stop": "x", "include_stop_str_in_output": True},
    "the sampled token's log-probability": {"logprobs": 0},
}
REJECTED: dict[str, dict[str, Any]] = {
    "repetition_penalty=1.1": {"repetition_penalty": 1.1},
    "ignore_eos=True": {"ignore_eos": True},
    "logprobs=5": {"logprobs": 5},
    "skip_special_tokens=False": {"skip_special_tokens": False},
    "bad_words=['no']": {"bad_words": ["no"]},
    "logit_bias={1: 2.0}": {"logit_bias": {1: 2.0}},
    "max_tokens=None": {"max_tokens": None},
    "include_stop_str_in_output=False": {"stop": ["</answer>"]},
}


def run_offline_vllm(model: Path, folder: Path) -> dict[str, Any]:
    """What `main` writes, from a process of its own."""
    output = folder / "offline_vllm.json"
    done = subprocess.run(
        [sys.executable, __file__, str(model), str(output)],
        capture_output=True,
        text=True,
        check=False,
        timeout=240,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return json.loads(output.read_text())


def main(model: str, output: str) -> None:
    import psutil
    from vllm import SamplingParams

    from trl_r1zero.evaluation.vllm import evaluate_vllm
    from trl_r1zero.generation.vllm_offline import (
        OfflineVLLMEngine,
        from_sampling_params,
        to_sampling_params,
    )
    from trl_r1zero.rewards import r1_zero_reward_fn

    engine = OfflineVLLMEngine.load(model, dtype="float32", max_model_len=128, cpu_kv_cache_gb=0.25)
    ids = engine.tokenizer(PROMPTS)["input_ids"]

    def rows(sampling: SamplingConfig, order: list[int]) -> list[list[Any]]:
        stream = engine.stream([ids[i] for i in order], sampling, [SEEDS[i] for i in order])
        return [[order[row], asdict(completion)] for row, completion in stream]

    def message(call: Callable[[], Any]) -> str:
        try:
            call()
        except (ValueError, RuntimeError) as error:
            return f"{type(error).__name__}: {error}"
        return "nothing was raised"

    def vllm_processes() -> list[str]:
        names = [child.name() for child in psutil.Process().children(recursive=True)]
        return [name for name in names if name.startswith("VLLM")]

    forwards = list(range(8))
    found: dict[str, Any] = {name: rows(sampling, forwards) for name, sampling in SAMPLINGS.items()}
    found["backwards"] = rows(SAMPLINGS["sampled"], forwards[::-1])

    # More rows than vLLM runs at a time: some are left whatever has ended.
    given_up = engine.stream(ids * 100, SAMPLINGS["sampled"], SEEDS * 100)
    next(given_up)
    found["busy"] = message(lambda: rows(SAMPLINGS["sampled"], forwards))
    given_up.close()
    found["left_after_close"] = engine.llm.llm_engine.get_num_unfinished_requests()
    found["after_close"] = rows(SAMPLINGS["sampled"], forwards)

    def refused(prompts: list[list[int]], sampling: SamplingConfig = SAMPLINGS["greedy"]) -> str:
        return message(lambda: list(engine.stream(prompts, sampling, [0])))

    found["errors"] = {
        "too long": refused([[5] * 120]),
        "empty": refused([[]]),
        "seeds": refused(ids[:2]),
        "cold": message(lambda: to_sampling_params(SamplingConfig(temperature=0.001))),
    }
    found["left_after_errors"] = engine.llm.llm_engine.get_num_unfinished_requests()

    found["accepted"] = {}
    for name, settings in ACCEPTED.items():
        sampling, n, seed = from_sampling_params(SamplingParams(**settings))
        found["accepted"][name] = [asdict(sampling), n, seed]
    found["rejected"] = {
        name: message(lambda given=settings: from_sampling_params(SamplingParams(**given)))
        for name, settings in REJECTED.items()
    }
    there_and_back = from_sampling_params(to_sampling_params(SAMPLINGS["stopped"], seed=3))
    found["there_and_back"] = [asdict(there_and_back[0]), *there_and_back[1:]]

    found["folder"] = str(Path(output).parent / "evaluated")
    for name, seed in (("evaluated", 5), ("evaluated_again", 5), ("evaluated_otherwise", 6)):
        evaluation = evaluate_vllm(
            engine.llm,
            r1_zero_reward_fn,
            PROMPTS,
            TRUTHS,
            SamplingParams(n=2, seed=seed, **HANDOUT),
            Path(output).parent / name,
        )
        found[name] = [evaluation.results, evaluation.metrics]

    # The model is the engine's that loaded it, and nobody else's.
    OfflineVLLMEngine(engine.llm).close()
    found["still_alive"] = len(rows(SAMPLINGS["greedy"], forwards))
    engine.llm.model_config.logprobs_mode = "raw_logprobs"  # as a vllm.LLM is by default
    found["raw"] = rows(SAMPLINGS["greedy"], forwards)
    found["processes"] = vllm_processes()
    engine.close()
    engine.close()
    found["processes_after_close"] = vllm_processes()
    Path(output).write_text(json.dumps(found))


if __name__ == "__main__":
    main(*sys.argv[1:])
