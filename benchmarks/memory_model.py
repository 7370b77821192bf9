"""The memory model beside the peak of real training steps.

    python benchmarks/memory_model.py [--model embedded|smollm2|qwen2.5-math-1.5b] [--dtype ...]
                                      [--device cuda]

A child process makes the model with random weights, does two updates of AdamW of two micro-batches
each (so that gradients and states are there when the peak comes), and says how much memory it took:
on a GPU torch's peak, on a CPU the peak of its resident memory over that before the model, with
an allocator that gives memory back at once (MALLOC_MMAP_THRESHOLD_), as resident memory would
otherwise be what was once used. One JSON line each: predicted and measured, in MiB.
"""

import argparse
import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedConfig, Qwen2Config

from trl_r1zero.devices.memory import MemoryParts, ModelShape, TrainingSetup, training_memory
from trl_r1zero.functional import get_response_log_probs
from trl_r1zero.functional.microbatch import sft_microbatch_loss

MIB = 2**20
MODELS = {
    # The quickstart's.
    "embedded": Qwen2Config(
        hidden_size=128,
        intermediate_size=384,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=320,
        tie_word_embeddings=True,
    ),
    "smollm2": LlamaConfig(
        architectures=["LlamaForCausalLM"],
        hidden_size=576,
        intermediate_size=1536,
        num_hidden_layers=30,
        num_attention_heads=9,
        num_key_value_heads=3,
        vocab_size=49152,
        max_position_embeddings=8192,
        tie_word_embeddings=True,
        dtype="bfloat16",
    ),
    "qwen2.5-math-1.5b": Qwen2Config(
        architectures=["Qwen2ForCausalLM"],
        hidden_size=1536,
        intermediate_size=8960,
        num_hidden_layers=28,
        num_attention_heads=12,
        num_key_value_heads=2,
        vocab_size=151936,
        max_position_embeddings=4096,
        tie_word_embeddings=True,
        dtype="bfloat16",
    ),
}


@dataclasses.dataclass(frozen=True)
class Case:
    """A training step to measure; `dtype` is float32, bfloat16 or mixed (autocast over float32)."""

    model: str
    dtype: str
    rows: int
    length: int
    gradient_checkpointing: bool = False
    fused_lm_head: bool = False
    transformers_loss: bool = False
    attention: str = "sdpa"
    device: str = "cpu"

    @property
    def config(self) -> PreTrainedConfig:
        config = MODELS[self.model]
        config._attn_implementation = self.attention
        return config

    @property
    def setup(self) -> TrainingSetup:
        return TrainingSetup(
            weights_dtype="bfloat16" if self.dtype == "bfloat16" else "float32",
            autocast=self.dtype == "mixed",
            gradient_checkpointing=self.gradient_checkpointing,
            fused_lm_head=self.fused_lm_head,
            transformers_loss=self.transformers_loss,
            attention="eager" if self.attention == "eager" else "sdpa",
            on_cuda=self.device != "cpu",
            tokens=self.rows * self.length,
            longest_row=self.length,
        )

    def predicted(self) -> MemoryParts:
        return training_memory(ModelShape.from_config(self.config), self.setup)


CASES = (
    Case("embedded", "float32", 64, 256),
    Case("embedded", "mixed", 64, 256),
    Case("embedded", "float32", 64, 256, attention="eager"),
    Case("smollm2", "float32", 2, 512),
    Case("smollm2", "mixed", 2, 512),
    Case("smollm2", "bfloat16", 2, 512),
    Case("smollm2", "bfloat16", 2, 512, gradient_checkpointing=True),
    Case("smollm2", "bfloat16", 2, 512, fused_lm_head=True),
    Case("smollm2", "bfloat16", 2, 512, transformers_loss=True),
)


def measure(case: Case) -> int:
    """Bytes that a child process needs for the steps of a case, at its peak."""
    # The files of a child are its own, but not its modules: it is this script with one argument.
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "0"}
    done = subprocess.run(
        [sys.executable, __file__, "--case", json.dumps(dataclasses.asdict(case))],
        env=environment,
        check=True,
        stdout=subprocess.PIPE,
        text=True,
    )
    return int(done.stdout.split()[-1])


def train(case: Case) -> int:
    """The steps themselves, and the bytes at their peak."""
    device = torch.device(case.device)
    _train_two_steps(Case("embedded", case.dtype, 2, 8, device=case.device))
    before = _start_peak(device)
    _train_two_steps(case)
    return _peak(device) - before


def _train_two_steps(case: Case) -> None:
    torch.manual_seed(0)
    dtype = torch.bfloat16 if case.dtype == "bfloat16" else torch.float32
    with torch.device(case.device):
        model = AutoModelForCausalLM.from_config(case.config, dtype=dtype).train()
        ids = torch.randint(case.config.vocab_size, (case.rows, case.length))
    if case.gradient_checkpointing:
        model.gradient_checkpointing_enable()
    if case.fused_lm_head:
        from trl.trainer.utils import add_fused_lm_head

        add_fused_lm_head(model, outputs=("log_probs", "entropy"))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, fused=True)
    labels, mask = ids.roll(-1, 1), torch.ones_like(ids, dtype=torch.bool)
    for _ in range(2):
        for _ in range(2):
            with torch.autocast(case.device, torch.bfloat16, enabled=case.dtype == "mixed"):
                loss = _loss(case, model, ids, labels, mask)
            loss.backward()
            del loss  # its graph
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()


def _loss(case: Case, model: Any, ids: Tensor, labels: Tensor, mask: Tensor) -> Tensor:
    """Of a micro-batch, with its graph."""
    if case.transformers_loss:
        return model(input_ids=ids, labels=labels, use_cache=False).loss
    if case.fused_lm_head:
        log_probs = model(input_ids=ids, shift_labels=labels, fused_lm_head=True).log_probs
    else:
        log_probs = get_response_log_probs(
            model,
            ids,
            labels,
            return_token_entropy=True,
            positions=torch.arange(case.length, device=ids.device),
            use_cache=False,
        )["log_probs"]
    return sft_microbatch_loss(log_probs, mask, num_sequences=2 * case.rows)[0]


def _start_peak(device: torch.device) -> int:
    """Begin a new peak; what is taken at its start."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return torch.cuda.memory_allocated(device)
    Path("/proc/self/clear_refs").write_text("5")  # Linux: the peak of resident memory begins anew
    return _of_status("VmRSS")


def _peak(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return _of_status("VmHWM")


def _of_status(key: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(key + ":"))


def report(case: Case) -> dict[str, object]:
    """What was predicted and measured, in MiB; CUDA's context, which torch does not see, left out.

    The ratio is predicted over measured.
    """
    parts = case.predicted()
    predicted, measured = parts.total - parts.reserved, measure(case)
    return {
        **dataclasses.asdict(case),
        "predicted_mib": round(predicted / MIB),
        "measured_mib": round(measured / MIB),
        "ratio": round(predicted / measured, 3),
        "parts_mib": {name: round(n / MIB) for name, n in dataclasses.asdict(parts).items()},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", choices=sorted(MODELS))
    parser.add_argument("--dtype", choices=("float32", "mixed", "bfloat16"))
    parser.add_argument("--rows", type=int)
    parser.add_argument("--length", type=int)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--case", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.case:
        print(train(Case(**json.loads(arguments.case))))
        return
    given = {
        name: value
        for name in ("rows", "length", "device")
        if (value := getattr(arguments, name)) is not None
    }
    wanted = [
        dataclasses.replace(case, **given)
        for case in CASES
        if arguments.model in (None, case.model) and arguments.dtype in (None, case.dtype)
    ]
    for case in wanted or [Case(arguments.model, arguments.dtype or "bfloat16", 2, 1024, **given)]:
        print(json.dumps(report(case)), flush=True)


if __name__ == "__main__":
    main()
