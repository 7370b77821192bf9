"""TRL's trainer comes without vLLM, and TRL's class for vLLM is there for whoever wants it."""

import importlib.util
import subprocess
import sys

import pytest
from test_structure import MODULES, module_name
from trl.generation.vllm_generation import VLLMGeneration
from trl.trainer import grpo_trainer

from trl_r1zero import R1ZeroGRPOTrainer
from trl_r1zero.trainers.trl_grpo import _VLLMGeneration

# Where our own code needs what only vLLM has.
WITH_VLLM = ("trl_r1zero.trainers.policy_weights",)


@pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="vLLM is not installed")
def test_vllm_is_imported_where_it_is_needed_only():
    names = sorted({module_name(path) for path in MODULES} - set(WITH_VLLM))
    code = "; ".join(
        [
            "import sys",
            *(f"import {name}" for name in names),
            "from trl.trainer import grpo_trainer",
            "print(type(grpo_trainer.VLLMGeneration).__name__)",
            "print('vllm' in sys.modules, 'trl.generation.vllm_generation' in sys.modules)",
            *(f"import {name}" for name in WITH_VLLM),
            "print('vllm' in sys.modules)",
            "print(trl_r1zero.trainers.policy_weights.PolicyWeights.__mro__[1].__name__)",
        ]
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == [
        "_VLLMGeneration",
        "False False",
        "True",
        "VLLMGeneration",
    ]


def test_the_trainer_is_trls():
    assert issubclass(R1ZeroGRPOTrainer, grpo_trainer.GRPOTrainer)


def test_what_stands_for_the_class_is_as_good(monkeypatch):
    stand_in = _VLLMGeneration()
    made = []
    monkeypatch.setattr(VLLMGeneration, "__init__", lambda self, *args, **kw: made.append(kw))
    assert type(stand_in(mode="colocate")) is VLLMGeneration
    assert made == [{"mode": "colocate"}]
    assert stand_in.generate is VLLMGeneration.generate
    assert isinstance(stand_in(), stand_in)
    assert not isinstance(3, stand_in)

    class Child(stand_in):
        pass

    assert issubclass(Child, VLLMGeneration)
    monkeypatch.setattr(VLLMGeneration, "generate", None)
    stand_in.generate = len
    assert VLLMGeneration.generate is len
