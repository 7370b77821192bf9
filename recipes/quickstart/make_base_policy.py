"""Makes the base policy of the quickstart: a 0.6M-parameter Qwen2, trained on poor traces.

    python recipes/quickstart/make_base_policy.py --output_dir runs/quickstart/base_policy

A model of the embedded task (chains of additions and subtractions) is trained from scratch by
supervised fine-tuning: first on honest traces, from which it learns to add and subtract, then on
traces that are bad on purpose, where almost half guess without working, steps go wrong and formats
break. So it samples right answers, but not reliably: something for reinforcement learning to find.
The steps are the library's own primitives; a folder that is already complete is left as it is.
"""

import json
import random
from dataclasses import dataclass, field
from pathlib import Path

import torch
from tqdm import tqdm
from transformers import Qwen2Config, Qwen2ForCausalLM

from trl_r1zero import get_response_log_probs, sft_microbatch_train_step, tokenize_prompt_and_output
from trl_r1zero.data.embedded_tokenizer import build_embedded_tokenizer
from trl_r1zero.data.prompts import load_prompt
from trl_r1zero.data.tasks.chain_arithmetic import (
    HONEST,
    ChainArithmeticTask,
    TraceNoise,
    noisy_trace,
)
from trl_r1zero.recipe import parse_recipe

COMPLETE_MARKER = "base_policy.json"


@dataclass
class BasePolicyArguments:
    """Settings of the base policy."""

    output_dir: str = field(metadata={"help": "Folder of the model."})
    num_steps: int = field(default=800, metadata={"help": "Optimizer steps."})
    honest_share: float = field(
        default=0.6, metadata={"help": "Share of the steps, at the start, with honest traces."}
    )
    batch_size: int = field(default=32, metadata={"help": "Traces per step, each drawn anew."})
    learning_rate: float = field(default=3e-3, metadata={"help": "Peak; warm-up, cosine to 0."})
    hidden_size: int = field(default=128, metadata={"help": "Width of the model."})
    num_layers: int = field(default=3, metadata={"help": "Layers of the model."})
    seed: int = field(default=0, metadata={"help": "Seed of weights and traces."})


def main(args: BasePolicyArguments) -> None:
    folder = Path(args.output_dir)
    if (folder / COMPLETE_MARKER).is_file():
        print(f"base policy: {folder} is there already")
        return
    torch.manual_seed(args.seed)
    rng = random.Random(args.seed)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")

    task, prompt = ChainArithmeticTask(), load_prompt("chain_arithmetic")
    questions = [example.question for example in task.load(split="train")]
    tokenizer = build_embedded_tokenizer()
    model = Qwen2ForCausalLM(
        Qwen2Config(
            vocab_size=len(tokenizer),
            hidden_size=args.hidden_size,
            intermediate_size=3 * args.hidden_size,
            num_hidden_layers=args.num_layers,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=1024,
            tie_word_embeddings=True,
            initializer_range=0.05,  # so narrow a model learns twice as fast as with 0.02
            bos_token_id=None,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    ).to(device)
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=args.learning_rate, betas=(0.9, 0.95), fused=True
    )
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, args.learning_rate, total_steps=args.num_steps, pct_start=0.05
    )
    progress = tqdm(range(args.num_steps), desc="Base policy (SFT)", unit="step")
    for step in progress:
        noise = HONEST if step < args.honest_share * args.num_steps else TraceNoise()
        batch = rng.choices(questions, k=args.batch_size)
        tensors = tokenize_prompt_and_output(
            [prompt.format(question) for question in batch],
            [noisy_trace(question, rng, noise) + tokenizer.eos_token for question in batch],
            tokenizer,
        )
        output = get_response_log_probs(
            model, tensors["input_ids"].to(device), tensors["labels"].to(device)
        )
        mask = tensors["response_mask"].to(device)
        # By the mean number of response tokens: the loss is nats per token.
        tokens = mask.sum().item() / args.batch_size
        loss, _ = sft_microbatch_train_step(output["log_probs"], mask, 1, normalize_constant=tokens)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        progress.set_postfix(loss=f"{loss.item():.3f}", refresh=False)

    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    (folder / COMPLETE_MARKER).write_text(json.dumps(vars(args), indent=2) + "\n")
    print(f"base policy: {sum(p.numel() for p in model.parameters()):,} parameters in {folder}")


if __name__ == "__main__":
    main(*parse_recipe((BasePolicyArguments,), description=__doc__).instances)
