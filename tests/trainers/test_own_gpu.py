"""A process keeps to one device, whatever the trainer; and the CPU is no silent substitute."""

import warnings

import pytest
import torch
import yaml
from accelerate import PartialState
from datasets import Dataset
from launching import run_here
from test_launch import RECIPE
from tiny_grpo import TASK
from tiny_models import make_tiny_model
from transformers import Qwen2ForCausalLM, TrainingArguments
from trl import ModelConfig

from trl_r1zero.data.packing import PackedSFTDataset
from trl_r1zero.devices import DeviceFacts, MachineFacts, visible_devices
from trl_r1zero.devices.facts import UnusableGPUError
from trl_r1zero.recipe.loading import load_model, model_settings
from trl_r1zero.trainers import (
    ExpertIterationConfig,
    ExpertIterationTrainer,
    InstructionTuningConfig,
    R1ZeroDPOConfig,
    R1ZeroDPOTrainer,
    R1ZeroGRPOConfig,
    R1ZeroGRPOTrainer,
    R1ZeroSFTConfig,
    R1ZeroSFTTrainer,
    make_instruction_tuning_trainer,
    one_device,
)

CONFIGS = (
    R1ZeroGRPOConfig,
    R1ZeroSFTConfig,
    ExpertIterationConfig,
    R1ZeroDPOConfig,
    InstructionTuningConfig,
)


# nn.DataParallel


@pytest.mark.parametrize("config", CONFIGS)
@pytest.mark.parametrize("in_sight", [0, 1, 2])
def test_no_config_wraps_the_model_for_several_gpus(config, in_sight, tmp_path, monkeypatch):
    """transformers does so where `n_gpu` is above 1; the GPUs here are only said to be there."""
    set_up = TrainingArguments._setup_devices.func

    def sees_gpus(self):
        device = set_up(self)
        self._n_gpu = in_sight  # what transformers takes from torch.cuda.device_count()
        return device

    monkeypatch.setattr(TrainingArguments._setup_devices, "func", sees_gpus)
    args = config(output_dir=str(tmp_path))
    assert args.device.type == "cpu"  # the property has run; asking again must change nothing
    assert args.n_gpu == min(in_sight, 1)
    assert args.train_batch_size == args.per_device_train_batch_size


# device_map

PAIRS = Dataset.from_list(
    [{"instruction": f"{n} + 1", "chosen": f"{n + 1}", "rejected": "0"} for n in range(8)]
)
TRACES = Dataset.from_list(
    [
        {"prompt": row["prompt"], "response": " 1 </think> <answer> 1 </answer>"}
        for row in TASK.train_dataset
    ]
)
BATCH = {"train_batch_size": 8, "gradient_accumulation_steps": 1, "eval_every": None}
GRPO = {"n_grpo_steps": 1, "rollout_batch_size": 8, "group_size": 4, **BATCH}
EI = {"n_ei_steps": 1, "ei_batch_size": 8, **BATCH}
# Trainer, config, settings, its other arguments, models that it loads.
TRAINERS = {
    "grpo": (R1ZeroGRPOTrainer, R1ZeroGRPOConfig, GRPO, "grpo", 1),
    "grpo with a reference": (
        R1ZeroGRPOTrainer,
        R1ZeroGRPOConfig,
        {**GRPO, "beta": 0.1},
        "grpo",
        2,
    ),
    "sft": (R1ZeroSFTTrainer, R1ZeroSFTConfig, BATCH, "sft", 1),
    "ei": (ExpertIterationTrainer, ExpertIterationConfig, EI, "ei", 1),
    "dpo": (R1ZeroDPOTrainer, R1ZeroDPOConfig, BATCH, "dpo", 1),
    "dpo with a reference": (
        R1ZeroDPOTrainer,
        R1ZeroDPOConfig,
        {**BATCH, "precompute_ref_log_probs": False, "ref_device": "cpu"},
        "dpo",
        2,
    ),
}


def make(name: str, model, tokenizer, tmp_path, **settings):
    kind, config, own, data, _ = TRAINERS[name]
    rewards = {"grpo": {"reward_funcs": TASK.reward}, "ei": {"reward_fn": TASK.reward}}
    dataset = {"sft": TRACES, "dpo": PAIRS}.get(data, TASK.train_dataset)
    return kind(
        model=model,
        args=config(output_dir=str(tmp_path), report_to="none", **own, **settings),
        train_dataset=dataset,
        processing_class=tokenizer,
        **rewards.get(data, {}),
    )


@pytest.fixture
def device_maps(monkeypatch) -> list[object]:
    """How models are loaded where TRL thinks that the device is a GPU."""
    maps: list[object] = []
    load = Qwen2ForCausalLM.from_pretrained.__func__

    def from_pretrained(cls, *args, device_map=None, **kwargs):
        maps.append(device_map)
        return load(cls, *args, **kwargs)

    monkeypatch.setattr(Qwen2ForCausalLM, "from_pretrained", classmethod(from_pretrained))

    class OnGPU:
        device = torch.device("cuda")

        def __getattr__(self, name: str):
            return getattr(PartialState(), name)

    monkeypatch.setattr("trl.trainer.utils.PartialState", OnGPU)
    return maps


@pytest.mark.parametrize("name", TRAINERS)
def test_a_model_is_not_spread_over_the_gpus_in_sight(
    name, tiny_model_folder, tokenizer, tmp_path, device_maps
):
    trainer = make(name, str(tiny_model_folder), tokenizer, tmp_path)
    assert device_maps == [None] * TRAINERS[name][-1]
    assert trainer.args.model_init_kwargs is None  # as it was given


def test_a_reference_of_a_model_that_is_there_is_not_spread_either(
    tiny_model_folder, tokenizer, tmp_path, device_maps, monkeypatch
):
    model = Qwen2ForCausalLM.from_pretrained(tiny_model_folder)
    device_maps.clear()
    init = one_device.loaded_onto_one_device

    def on_gpu(args, model):
        monkeypatch.setattr(args, "use_cpu", False)
        return init(args, model)

    monkeypatch.setattr("trl_r1zero.trainers.core_trainer.loaded_onto_one_device", on_gpu)
    make("grpo with a reference", model, tokenizer, tmp_path)
    assert device_maps == [None]


def test_a_recipe_s_settings_of_the_model_arrive_beside(
    tiny_model_folder, tokenizer, tmp_path, device_maps
):
    model_args = ModelConfig(model_name_or_path=str(tiny_model_folder), dtype="bfloat16")
    config = R1ZeroSFTConfig(output_dir=str(tmp_path), report_to="none", **BATCH)
    trainer = R1ZeroSFTTrainer(
        **model_settings(config, model_args), train_dataset=TRACES, processing_class=tokenizer
    )
    assert trainer.model.dtype == torch.bfloat16
    assert device_maps == [None]


def test_instruction_tuning_loads_onto_no_gpu_by_itself(tiny_model_folder, device_maps):
    load_model(ModelConfig(model_name_or_path=str(tiny_model_folder)))
    assert device_maps == [None]


@pytest.mark.parametrize("device_map", ["auto", {"": 0}, "cuda:1"])
def test_a_device_map_is_refused(device_map, tiny_model_folder, tokenizer, tmp_path):
    settings = {"model_init_kwargs": {"device_map": device_map}}
    with pytest.raises(ValueError, match=r"has device_map: .*computes on one device; remove it"):
        make("sft", str(tiny_model_folder), tokenizer, tmp_path, **settings)


def test_a_model_that_is_spread_is_refused(tokenizer, tmp_path):
    model = make_tiny_model(tokenizer)
    model.hf_device_map = {"model.layers.0": 0, "lm_head": 1}
    with pytest.raises(ValueError, match="the model is spread over 0, 1 "):
        make("sft", model, tokenizer, tmp_path)
    args = InstructionTuningConfig(output_dir=str(tmp_path), eval_strategy="no", report_to="none")
    with pytest.raises(ValueError, match="the model is spread over 0, 1 "):
        make_instruction_tuning_trainer(model, args, PackedSFTDataset)
    model.hf_device_map = {"": "cpu"}
    make("sft", model, tokenizer, tmp_path)


# More processes than GPUs


@pytest.mark.parametrize(("rank", "holds"), [("0", True), ("1", True), ("2", False)])
def test_each_process_has_a_gpu(rank, holds, tmp_path, monkeypatch):
    args = TrainingArguments(output_dir=str(tmp_path), use_cpu=True)
    args.use_cpu = False
    monkeypatch.setenv("LOCAL_RANK", rank)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5")
    monkeypatch.setattr("torch.accelerator.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    if holds:
        one_device.settle_use_cpu(args)
        assert not args.use_cpu
        return
    with pytest.raises(ValueError, match=r"wants GPU 2, but this run sees 2 GPUs .*num_processes"):
        one_device.settle_use_cpu(args)


# The CPU, though there is a GPU


def old_driver() -> MachineFacts:
    """A machine whose driver is too old for torch."""
    return MachineFacts(
        (), visible_devices({}, 0), torch_cuda="13.0", driver="535.183.01", has_nvidia_device=True
    )


def no_gpu() -> MachineFacts:
    """A laptop with the build of torch that pip takes by default."""
    return MachineFacts((), visible_devices({}, 0), torch_cuda="13.0")


@pytest.mark.parametrize("name", ["grpo", "sft", "ei", "dpo"])
def test_no_trainer_takes_the_cpu_for_a_gpu_that_fails(
    name, tiny_model_folder, tokenizer, tmp_path, monkeypatch
):
    monkeypatch.setattr(one_device, "machine_facts", old_driver)
    with pytest.raises(UnusableGPUError, match=r"driver is 535\.183\.01; CUDA 13\.0 wants 580"):
        make(name, str(tiny_model_folder), tokenizer, tmp_path)
    make(name, str(tiny_model_folder), tokenizer, tmp_path, use_cpu=True)


def test_instruction_tuning_does_not_either(tokenizer, tmp_path, monkeypatch):
    monkeypatch.setattr(one_device, "machine_facts", old_driver)
    args = InstructionTuningConfig(output_dir=str(tmp_path), eval_strategy="no", report_to="none")
    with pytest.raises(UnusableGPUError, match="535"):
        make_instruction_tuning_trainer(make_tiny_model(tokenizer), args, PackedSFTDataset)


@pytest.mark.parametrize("asked", ["true", "1", "yes"])
def test_accelerate_launch_cpu_asks_for_the_cpu_too(asked, tmp_path, monkeypatch):
    monkeypatch.setattr(one_device, "machine_facts", old_driver)
    monkeypatch.setenv("ACCELERATE_USE_CPU", asked)
    args = R1ZeroSFTConfig(output_dir=str(tmp_path), report_to="none", **BATCH)
    one_device.check_device(args)
    assert not args.bf16


@pytest.mark.parametrize(("facts", "wrong"), [(old_driver, True), (no_gpu, False)])
def test_a_recipe_says_so_before_it_loads_anything(
    facts, wrong, tiny_model_folder, tmp_path, monkeypatch
):
    """`accelerate launch` says that the CPU is not asked for, on each machine."""
    monkeypatch.setattr(one_device, "machine_facts", facts)
    monkeypatch.setenv("ACCELERATE_USE_CPU", "False")
    recipe = {**RECIPE, "n_grpo_steps": 1, "report_to": "none", "eval_every": None}
    folder = tmp_path / "run"
    if wrong:
        with pytest.raises(UnusableGPUError, match=r"580 or newer.*set use_cpu: true"):
            run_here(recipe, folder, tiny_model_folder)
        assert not (folder / "metrics.jsonl").exists()
        folder = tmp_path / "on purpose"
        recipe["use_cpu"] = True
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*NVIDIA")
        run_here(recipe, folder, tiny_model_folder)
    assert yaml.safe_load((folder / "recipe.yaml").read_text())["use_cpu"] == wrong
    assert (folder / "metrics.jsonl").exists()


def test_a_gpu_beside_a_torch_for_cpus_is_warned_of(tmp_path, monkeypatch):
    facts = MachineFacts((), visible_devices({}, 0), has_nvidia_device=True)
    monkeypatch.setattr(one_device, "machine_facts", lambda: facts)
    args = R1ZeroSFTConfig(output_dir=str(tmp_path), report_to="none", **BATCH)
    with pytest.warns(UserWarning, match="torch is built for CPUs, so the run is on the CPU"):
        one_device.check_device(args)


def test_a_gpu_that_works_is_not_looked_at(tmp_path, monkeypatch):
    facts = MachineFacts((DeviceFacts(2**34),), visible_devices({}, 1), torch_cuda="13.0")
    monkeypatch.setattr(one_device, "machine_facts", lambda: facts)
    args = R1ZeroSFTConfig(output_dir=str(tmp_path), report_to="none", **BATCH)
    one_device.check_device(args)
