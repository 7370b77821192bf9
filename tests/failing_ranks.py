"""One of two trainer processes whose first one meets a strange server: what each of them learns.

Started by test_server_failures.py with the server's address, the model's folder and the file for
what was learnt.
"""

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from transformers import AutoModelForCausalLM, AutoTokenizer
from weight_server import Communicator, Wire, replace_cuda, replace_nccl

from trl_r1zero.generation import SamplingConfig
from trl_r1zero.trainers import server_weights
from trl_r1zero.trainers.server_generation import ServerGeneration
from trl_r1zero.trainers.server_setup import ServerAddress, ServerRequest, ServerSetup


class Broken(Communicator):
    """Fails in the first broadcast as NCCL does."""

    whole = False

    def broadcast(self, tensors: Any) -> None:
        if not self.whole:
            self.whole = True
            raise RuntimeError("NCCL error: unhandled cuda error")
        super().broadcast(tensors)


def main(url: str, model_folder: str, output: str) -> None:
    patch = pytest.MonkeyPatch()
    replace_cuda(patch)
    replace_nccl(patch, Wire(), Broken)
    open_weight_sync = server_weights.open_weight_sync
    patch.setattr(
        server_weights,
        "open_weight_sync",
        lambda engine, device, **settings: open_weight_sync(
            engine, torch.device("cuda"), **settings
        ),
    )
    accelerator = Accelerator(cpu=True)
    model = AutoModelForCausalLM.from_pretrained(model_folder)
    tokenizer = AutoTokenizer.from_pretrained(model_folder)

    def connect(path: str = "") -> ServerGeneration:
        setup = ServerSetup(
            ServerAddress((url + path,), wait_seconds=5),
            model_path=model_folder,
            log_path=Path(output + ".log"),
            group_port=None,
            request_timeout_seconds=20,
        )
        return ServerGeneration(model, accelerator, tokenizer, setup)

    generation = connect()
    prompts, sampling = [[5, 6]], SamplingConfig(max_tokens=4)
    learnt = {}

    def learn(name: str, action: Callable[[], object]) -> None:
        start = time.monotonic()
        try:
            action()
            said = "nothing"
        except Exception as error:
            said = f"{type(error).__name__}: {error}"
        learnt[name] = {"said": said, "seconds": time.monotonic() - start}

    learn("broken communicator", generation.sync_weights)
    learn("no world size", lambda: connect("/strange"))
    learn(
        "no JSON",
        lambda: generation.sample(prompts, sampling, [1], description="", show_progress=False),
    )
    generation.begin(ServerRequest(prompts * 2, sampling, [1, 2]))
    learn("no JSON, later", generation.finish)
    learn("a probe", lambda: generation.check_probe([5, 6, 7], torch.zeros(2), "float32"))
    Path(f"{output}.{accelerator.process_index}").write_text(json.dumps(learnt))


if __name__ == "__main__":
    main(*sys.argv[1:])
