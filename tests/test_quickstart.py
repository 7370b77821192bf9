"""The quickstart's own script, two steps of it, and that a second call reuses what is there."""

import importlib.util
import json

from tiny_models import REPOSITORY
from transformers import AutoModelForCausalLM, AutoTokenizer

SCRIPT = REPOSITORY / "recipes" / "quickstart" / "make_base_policy.py"


def load_script():
    spec = importlib.util.spec_from_file_location("make_base_policy", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_make_base_policy_runs_and_reuses_a_complete_folder(tmp_path, capsys):
    script = load_script()
    args = script.BasePolicyArguments(
        output_dir=str(tmp_path / "base"), num_steps=2, batch_size=4, hidden_size=32
    )
    script.main(args)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "base")
    assert model.config.eos_token_id == tokenizer.eos_token_id
    assert json.loads((tmp_path / "base/base_policy.json").read_text())["num_steps"] == 2
    written = (tmp_path / "base/model.safetensors").stat().st_mtime_ns
    script.main(args)
    assert "is there already" in capsys.readouterr().out
    assert (tmp_path / "base/model.safetensors").stat().st_mtime_ns == written


def test_both_kinds_of_traces_are_trained_on(tmp_path, monkeypatch):
    script = load_script()
    kinds = []
    real = script.noisy_trace

    def spy(question, rng, noise):
        kinds.append(noise)
        return real(question, rng, noise)

    monkeypatch.setattr(script, "noisy_trace", spy)
    script.main(
        script.BasePolicyArguments(
            output_dir=str(tmp_path), num_steps=5, batch_size=1, hidden_size=32, honest_share=0.6
        )
    )
    assert kinds == [script.HONEST] * 3 + [script.TraceNoise()] * 2
