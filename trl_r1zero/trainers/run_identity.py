"""What must stay as it is when a run goes on, and what may change.

A run's curve is labelled with its settings, so what decides the numbers cannot change in the middle
of it. What may is what does not: the number of steps, how often is validated, logged and saved,
where it runs and what memory that takes. Such changes are applied, and kept in `history.jsonl`.
"""

import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from trl_r1zero.common.run_files import todays_settings
from trl_r1zero.evaluation.files import append_line, differing

HISTORY_FILE = "history.jsonl"

_MAY_CHANGE = {
    *("n_grpo_steps", "n_ei_steps", "num_train_epochs", "max_steps"),
    # Validation and saving
    *("do_eval", "do_predict", "do_train", "eval_every", "eval_steps", "eval_strategy"),
    *("eval_on_start", "eval_delay", "eval_accumulation_steps", "metric_for_best_model"),
    *("greater_is_better", "load_best_model_at_end", "output_dir", "push_to_hub"),
    *("resume_from_checkpoint", "enable_jit_checkpoint", "on_divergence"),
    # Logging
    *("report_to", "run_name", "project", "disable_tqdm", "profile", "num_rollouts_to_log"),
    *("num_completions_to_print", "completion_entropies", "debug", "include_for_metrics"),
    # Devices, processes and memory
    *("use_cpu", "local_rank", "tf32", "deepspeed", "accelerator_config", "parallelism_config"),
    *("auto_find_batch_size", "gradient_accumulation_steps", "max_tokens_per_microbatch"),
    *("pack_rows", "share_prefixes", "fused_lm_head", "activation_offloading", "use_cache"),
    *("attn_implementation", "ref_device", "reward_workers", "cache_dir", "dataset_num_proc"),
    *("precompute_ref_log_probs", "precompute_ref_batch_size", "ds3_gather_for_generation"),
    *("vllm_group_port", "vllm_gpu_memory_utilization", "vllm_request_timeout"),
    *("vllm_tensor_parallel_size", "vllm_max_model_length", "vllm_check_syncs"),
}
# Of these no history is made: they are of how a run was started, or follow from that.
_OF_A_START = {"eval_on_start", "resume_from_checkpoint", "output_dir", "local_rank", "run_name"}
_MAY_CHANGE_BEGIN = (
    *("save_", "log_", "logging_", "hub_", "trackio_"),
    *("per_device_", "dataloader_", "ddp_", "fsdp", "gradient_checkpointing", "torch_"),
    *("vllm_server",),
)


class ChangedRunError(ValueError):
    """A run would go on with settings that decide its numbers and are not those it has had."""


def may_change(key: str) -> bool:
    """Whether a run may go on with another value of a setting, `a` or `a.b` within a mapping."""
    return any(part in _MAY_CHANGE or part.startswith(_MAY_CHANGE_BEGIN) for part in key.split("."))


def go_on_with(
    folder: Path, there: Mapping[str, Any], here: Mapping[str, Any], checkpoint: str
) -> None:
    """Let the run of a folder, whose settings so far are `there`, go on from a checkpoint with
    those `here`, and keep what changed as its history. Settings that only one of both has are of
    another version of this package, and do not count.

    A ChangedRunError, which lists all of it, if something else than what may change differs.
    """
    there, here = todays_settings(there), todays_settings(here)
    both = [key for key in there if key in here]
    old, new = (json.loads(json.dumps({k: x[k] for k in both}, default=str)) for x in (there, here))
    changes = differing(old, new)
    # Unset, the device decides.
    device = {"bf16"} if old.get("use_cpu") != new.get("use_cpu") else set()
    refused = [c for c in changes if not (may_change(key := c.partition(":")[0]) or key in device)]
    if refused:
        raise ChangedRunError(
            "\n  ".join([f"{folder} holds a run with other settings:", *refused])
            + "\nGo on with those it has had, or choose another output_dir for a new run (the "
            "number of steps, validating, logging, saving and devices may change)."
        )
    told = [change for change in changes if change.partition(":")[0] not in _OF_A_START]
    history, begins = folder / HISTORY_FILE, Path(checkpoint).name
    last = history.read_text(encoding="utf-8").splitlines()[-1:] if history.is_file() else []
    facts = json.loads(last[0]) if last else {}
    known = facts["changed"] if facts.get("from") == begins else []
    if {*told} - {*known}:  # a recipe's run has its settings here twice, the trainer's being a part
        when = time.strftime("%Y-%m-%dT%H:%M:%S%z")
        append_line(history, {"time": when, "from": begins, "changed": told})
