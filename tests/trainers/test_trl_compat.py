"""TRL's trainer comes without vLLM, and TRL's use of vLLM works all the same."""

import importlib.util
import subprocess
import sys

import pytest
from test_structure import MODULES, module_name
from trl.trainer import grpo_trainer

from trl_r1zero import R1ZeroGRPOTrainer

needs_vllm = pytest.mark.skipif(
    importlib.util.find_spec("vllm") is None, reason="vLLM is not installed"
)


def output_of(*lines: str) -> list[str]:
    code = "\n".join(lines)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return done.stdout.splitlines()


@needs_vllm
def test_no_module_of_ours_imports_vllm():
    assert output_of(
        "import sys",
        # But for the one that vLLM itself loads.
        *(f"import {module_name(path)}" for path in MODULES if path.stem != "vllm_engine"),
        "print('vllm' in sys.modules)",
    ) == ["False"]


@needs_vllm
def test_trl_finds_vllm_once_it_asks_for_it():
    """In the same process, through the class that its trainers have already."""
    assert output_of(
        "import sys",
        "from trl_r1zero.trainers import R1ZeroGRPOTrainer",
        "from trl import import_utils",
        "from trl.trainer.grpo_trainer import VLLMGeneration",
        "names = VLLMGeneration.__init__.__globals__",
        "print('SamplingParams' in names, 'vllm' in sys.modules)",
        "print(names['is_vllm_available']())",
        "print(names['SamplingParams'].__module__.split('.')[0])",
        "print(names['is_vllm_available'] is import_utils.is_vllm_available)",
    )[-4:] == ["False False", "True", "vllm", "True"]


def test_the_trainer_is_trls():
    assert issubclass(R1ZeroGRPOTrainer, grpo_trainer.GRPOTrainer)
