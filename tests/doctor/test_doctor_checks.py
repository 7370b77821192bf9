"""Versions, reward, memory, disk and settings."""

from dataclasses import replace

import pytest
from doctor_runs import levels, make_run, qwen_math_model

from trl_r1zero.devices.memory import GIB, training_memory
from trl_r1zero.doctor.data import Split
from trl_r1zero.doctor.examine import (
    check_beta2,
    check_entropies,
    check_learning_rate,
    check_reward,
    spacing,
)
from trl_r1zero.doctor.launch import Launch, check_versions
from trl_r1zero.doctor.machine import place_server
from trl_r1zero.doctor.memory import (
    bytes_for_training,
    check_disk,
    check_rollouts,
    check_server,
    check_trainer,
    cut_microbatches,
    has_reference,
    kept_while_sampling,
    make_setup,
)
from trl_r1zero.rewards import r1_zero_reward_fn

BF16 = "--dtype=bfloat16"
SERVER = ("--use_vllm=true", "--vllm_server={}")


# Versions


def test_versions_out_of_range_and_missing():
    needed = {"trl": ">=1.16,<1.17", "vllm": ">=0.28,<0.32", "torch": ">=2.11"}
    installed = {"trl": "1.17.0", "vllm": None, "torch": "2.13.0+cpu"}
    findings = check_versions(installed, needed)
    assert levels(findings) == {"installed": "ok", "trl": "problem", "vllm": "problem"}
    assert findings[1].found == "trl 1.17.0 is installed"
    assert findings[1].needed == "trl >=1.16,<1.17"


@pytest.mark.parametrize(
    ("settings", "package"),
    [
        (SERVER, "vllm"),
        (["--attn_implementation=kernels-community/flash-attn2"], "kernels"),
        (["--attn_implementation=flash_attention_2"], "kernels"),
        (["--optim=adamw_bnb_8bit"], "bitsandbytes"),
        (["--optim=adamw_torch_4bit"], "torchao"),
    ],
)
def test_what_a_run_needs_besides(settings, package):
    assert package not in make_run().needed_packages()
    assert package in make_run("80GB", *settings).needed_packages()


def test_what_a_launch_needs_besides():
    launch = Launch(num_processes=2, distributed_type="DEEPSPEED")
    assert "deepspeed" in make_run("2x80GB", launch=launch).needed_packages()


# Reward


def graded(reward_fn, truths, answer_format="tags", first=1):
    lines = range(first, first + len(truths))
    return list(
        check_reward(reward_fn, Split("train_data", truths=truths, lines=lines), answer_format)
    )


def test_a_reward_accepts_right_answers():
    findings = graded(r1_zero_reward_fn, ["4", "1/2", ["7", "7.0"]])
    assert levels(findings) == {"gold": "ok", "seconds": "ok"}
    assert findings[0].found.startswith("3 of 3 answers are accepted")


def test_a_reward_that_does_not_fit_the_prompt_is_a_problem():
    findings = graded(r1_zero_reward_fn, ["4", "5"], "boxed")
    assert levels(findings)["gold"] == "problem"
    assert "row 1: '4'" in findings[0].found


def test_a_reward_that_rejects_some_names_them_by_line():
    def no_fives(response, truth):
        return {"reward": float(truth != "5")}

    findings = graded(no_fives, ["4", "5", "6"], first=11)
    assert findings[0].level == "warning"
    assert "row 12: '5'" in findings[0].found


def test_a_reward_that_raises_is_a_problem():
    def broken(response, truth):
        raise KeyError("answer")

    (finding,) = graded(broken, ["4"])
    assert (finding.level, finding.found) == (
        "problem",
        "the reward raised, row 1: KeyError: 'answer'",
    )


@pytest.mark.parametrize(("truth", "answer_format"), [({"numbers": [1]}, "tags"), ("free", "text")])
def test_answers_that_are_not_spelled_out_are_not_asked(truth, answer_format):
    (finding,) = graded(r1_zero_reward_fn, [truth], answer_format)
    assert (finding.level, finding.found.split(":")[0]) == ("ok", "not asked")


# Memory


def examined(run, model, row=1300):
    setup = make_setup(run, model, row)
    server = None
    if run.own_server:
        server = place_server(run, kept_while_sampling(run, model.shape, setup))
    return setup, server


def trainer(run, model=None, host_bytes=None):
    model = model or qwen_math_model()
    return check_trainer(run, model.shape, *examined(run, model), host_bytes)


def tokens(run):
    """Of a micro-batch, and what there is to train with."""
    setup, server = examined(run, qwen_math_model())
    device_bytes = bytes_for_training(run, server)
    cut, _ = cut_microbatches(run, qwen_math_model().shape, setup, device_bytes)
    return cut.tokens, device_bytes


def test_float32_fits_80_gb_and_not_24():
    assert trainer(make_run("80GB")).level == "ok"
    finding = trainer(make_run("24GB"))
    assert finding.level == "problem"
    assert "set dtype: bfloat16" in finding.do


def test_a_run_on_cpus_wants_room_in_the_machines_memory():
    run = make_run("cpu")
    setup, _ = examined(run, qwen_math_model())
    needed = training_memory(qwen_math_model().shape, replace(setup, tokens=2 * 1300)).total
    assert trainer(run).level == "ok"  # of a machine not known
    assert trainer(run, host_bytes=needed).level == "ok"
    finding = trainer(run, host_bytes=needed - GIB)
    assert finding.level == "problem"
    assert "this machine has" in finding.found


def test_one_24_gb_card_trains_and_samples_in_bfloat16_with_checkpointing():
    run = make_run("24GB", *SERVER, BF16, "--gradient_checkpointing=true")
    model = qwen_math_model("bfloat16")
    _, server = examined(run, model)
    assert trainer(run, model).level == "ok"  # a tenth stays free
    findings = check_server(run, model.shape, model.dtype, server, longest_text=1300)
    assert levels(findings) == {"server": "ok", "phases": "ok"}
    # Asleep, the server leaves the trainer all but its context.
    assert bytes_for_training(run, server) == 24 * 10**9 - GIB


def test_a_server_on_a_24_gb_card_of_its_own_has_room():
    run = make_run("2x24GB", *SERVER)
    model = qwen_math_model()
    _, server = examined(run, model)
    assert server.config.gpu_memory_utilization == 0.9
    findings = check_server(run, model.shape, model.dtype, server, longest_text=1300)
    assert levels(findings) == {"server": "ok"}


def test_a_server_with_too_small_a_share_is_a_problem():
    run = make_run("2x24GB", "--use_vllm=true", "--vllm_server={gpu_memory_utilization: 0.15}")
    model = qwen_math_model()
    _, server = examined(run, model)
    findings = check_server(run, model.shape, model.dtype, server, 1300)
    assert levels(findings)["server"] == "problem"


def test_a_micro_batch_that_the_recipe_sets_too_large_is_a_problem():
    run = make_run("80GB", "--max_tokens_per_microbatch=60000")
    assert tokens(run)[0] == 60000
    assert trainer(run).level == "problem"
    assert "unset" in trainer(run).do


def test_micro_batches_are_cut_as_the_trainers_cut_them():
    assert tokens(make_run("80GB"))[0] > 4 * 1300
    assert tokens(make_run("80GB", "--gradient_accumulation_steps=128"))[0] == 2 * 1300
    assert tokens(make_run("cpu")) == (2 * 1300, None)


def test_autocast_follows_from_the_machine_that_is_assumed():
    model = qwen_math_model()
    assert make_setup(make_run("80GB"), model, 1000).autocast
    assert not make_setup(make_run("cpu"), model, 1000).autocast
    assert not make_setup(make_run("80GB", "--bf16=false"), model, 1000).autocast


def test_who_keeps_a_reference_model():
    model = qwen_math_model()
    assert not has_reference(make_run(), model)
    assert has_reference(make_run("80GB", "--beta=0.1"), model)
    assert not has_reference(make_run(method="dpo"), model)  # its log-probabilities are kept
    kept = make_run("80GB", "--precompute_ref_log_probs=false", method="dpo")
    assert has_reference(kept, model)
    adapters = replace(model, trainable_parameters=1000)
    assert not has_reference(make_run("80GB", "--beta=0.1"), adapters)


def test_rollouts_by_transformers_that_do_not_fit():
    model = qwen_math_model()
    run = make_run("40GB", "--per_device_eval_batch_size=1024")
    setup = make_setup(run, model, 1300)
    (finding,) = check_rollouts(run, model.shape, setup, text=1300)
    assert finding.level == "problem"
    assert "use_vllm: true" in finding.do
    unset = make_run("40GB")
    assert levels(check_rollouts(unset, model.shape, setup, 1300)) == {"rollouts": "warning"}
    assert list(check_rollouts(make_run("40GB", *SERVER), model.shape, setup, 1300)) == []


# Disk


def disk_of(run, free_gb):
    model = qwen_math_model()
    return check_disk(run, model.shape, make_setup(run, model, 1000), free_gb * 10**9)


def test_checkpoints_of_the_default_recipe_need_near_50_gb():
    short, enough = disk_of(make_run(), 40), disk_of(make_run(), 60)
    assert (short.level, short.needed, enough.level) == ("problem", "49.4 GB", "ok")
    assert "up to 49.4 GB: 2 x 18.5 GB of checkpoints" in enough.found
    assert "2 x 6.2 GB of models (best, final); 60.0 GB are free" in enough.found


def test_without_checkpoints_only_models_are_kept():
    run = make_run("80GB", "--save_every=null", "--save_best=false")
    assert "up to 6.2 GB: 0 x 18.5 GB of checkpoints" in disk_of(run, 60).found


def test_all_checkpoints_are_counted_without_a_limit():
    settings = ("--save_total_limit=null", "--save_every=20", "--n_grpo_steps=200")
    assert "11 x 18.5 GB of checkpoints" in disk_of(make_run("80GB", *settings), 60).found


# Settings


def test_the_spacing_of_bfloat16_is_torchs():
    import torch

    one = torch.tensor(0.02, dtype=torch.bfloat16)
    neighbour = torch.nextafter(one, torch.tensor(1.0, dtype=torch.bfloat16))
    assert spacing("bfloat16", 0.02) == pytest.approx((neighbour - one).item())


def test_a_small_rate_with_bfloat16_weights_is_a_warning_with_numbers():
    finding = check_learning_rate(1e-5, "bfloat16", "none")
    assert finding.level == "warning"
    assert "a change below 6.1e-05 rounds to nothing" in finding.found
    assert check_learning_rate(1e-4, "bfloat16", "none").level == "ok"
    assert check_learning_rate(1e-5, "float32", "none").level == "ok"
    assert check_learning_rate(1e-5, "bfloat16", "zero3").level == "ok"


def test_the_warning_is_true():
    """A weight of typical size does not move; one below the bound that is named does."""
    import torch

    typical = torch.tensor(0.02, dtype=torch.bfloat16)
    small = torch.tensor(0.0024, dtype=torch.bfloat16)
    assert typical - 1e-5 == typical
    assert small - 1e-5 != small


def test_beta2_that_bfloat16_rounds_away_is_a_problem():
    (finding,) = check_beta2("adamw_torch_fused", 0.999, "bfloat16", "NO")
    assert (finding.check, finding.level) == ("adam_beta2", "problem")
    assert check_beta2("adamw_torch_fused", 0.95, "bfloat16", "NO") == []
    assert check_beta2("adamw_torch_fused", 0.999, "bfloat16", "FSDP") == []


def test_what_validation_costs_besides_is_named():
    assert levels(check_entropies(make_run("80GB", *SERVER))) == {"completion_entropies": "ok"}
    assert check_entropies(make_run("80GB", *SERVER, "--completion_entropies=false")) == []
    assert check_entropies(make_run("80GB")) == []


def test_ddp_keeps_gradients_twice():
    launch = Launch(num_processes=4, distributed_type="MULTI_GPU")
    run = make_run("8x80GB", launch=launch)
    setup = make_setup(run, qwen_math_model(), 1000)
    lone_run = make_run("8x80GB")
    alone = make_setup(lone_run, qwen_math_model(), 1000)
    shape = qwen_math_model().shape
    assert kept_while_sampling(run, shape, setup) > kept_while_sampling(lone_run, shape, alone)
