"""Launched with two processes whose devices have unequal memory: a GRPO step, and their limits."""

import json
import sys
from pathlib import Path

from tiny_grpo import make_trainer

from trl_r1zero.data.embedded_tokenizer import build_embedded_tokenizer
from trl_r1zero.devices.memory import GIB
from trl_r1zero.trainers import policy_forward


def main(folder: Path) -> None:
    trainer = make_trainer(
        build_embedded_tokenizer(), folder / "run", gradient_accumulation_steps=None, n_grpo_steps=1
    )
    rank = trainer.accelerator.process_index
    mine = int((1.05 + rank) * GIB)  # the first has little
    policy_forward.bytes_to_train_with = lambda device: mine
    counts = []
    forward_and_backward = trainer.forward_and_backward

    def count(model, micro_batches):
        counts.append(len(micro_batches))
        return forward_and_backward(model, micro_batches)

    trainer.forward_and_backward = count
    trainer.train()
    found = {
        "tokens": trainer.policy.limits.tokens,
        "alone": trainer.policy.memory.device_bytes == mine,
        "micro_batches": counts,
    }
    (folder / f"{rank}.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
