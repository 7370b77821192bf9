"""The kinds of runs, one row each. A new kind is a row here, a trainer, a line of
`commands/methods.py` and a script in recipes/. No row needs torch before its dataclasses do."""

from dataclasses import dataclass
from importlib import import_module
from typing import Any

from . import metrics

__all__ = ["KINDS", "METHODS", "RunKind"]  # noqa: F822


@dataclass(frozen=True)
class RunKind:
    """What is particular to a kind of run."""

    method: str  # its script is recipes/<method>.py, and its recipes are <method>[-variant].yaml
    step_key: str  # what counts its steps in a line of metrics; `step_name`: what a step is called
    step_name: str
    # Its settings of training, in `trainers`; `arguments`: those of what it is trained on, as
    # module and name in `recipe`. With TRL's `ModelConfig` they are the `dataclasses` of its
    # recipes.
    config: str
    arguments: tuple[str, str]
    panels: tuple[metrics.Panel, ...]  # of a run's figure
    # Of the report's table of training; `validation_rows`: of validation.
    training_rows: metrics.Rows
    validation_rows: metrics.Rows
    # A setting of config.json that no other kind has; None: it has none of theirs.
    own_setting: str | None = None
    planned: str = "max_steps"  # the setting that says how many steps a run is to have
    best: str = "eval_accuracy"  # the metric of validation that says which one is the best
    higher_is_better: bool = True  # whether its highest value is
    samples_training: bool = False  # whether training samples answers
    samples_validation: bool = True  # whether a validation does, and writes a table of them

    @property
    def dataclasses(self) -> tuple[type, ...]:
        """Those whose fields are the keys of its recipes."""
        from trl import ModelConfig

        from trl_r1zero import trainers

        module, name = self.arguments
        of_data = getattr(import_module(f"trl_r1zero.recipe.{module}"), name)
        return getattr(trainers, self.config), of_data, ModelConfig


_KINDS = (
    RunKind(
        method="grpo",
        step_key="grpo_step",
        step_name="GRPO step",
        config="R1ZeroGRPOConfig",
        arguments=("task_arguments", "TaskArguments"),
        panels=metrics.GRPO_PANELS,
        training_rows=metrics.GRPO_ROWS,
        validation_rows=metrics.VALIDATION_ROWS,
        own_setting="n_grpo_steps",
        planned="n_grpo_steps",
        samples_training=True,
    ),
    RunKind(
        method="sft",
        step_key="train_step",
        step_name="update",
        config="R1ZeroSFTConfig",
        arguments=("trace_arguments", "TraceArguments"),
        panels=metrics.SFT_PANELS,
        training_rows=metrics.SFT_ROWS,
        validation_rows=metrics.VALIDATION_ROWS,
    ),
    RunKind(
        method="expert_iteration",
        step_key="ei_step",
        step_name="EI step",
        config="ExpertIterationConfig",
        arguments=("task_arguments", "TaskArguments"),
        panels=metrics.EI_PANELS,
        training_rows=metrics.SFT_ROWS,
        validation_rows=metrics.VALIDATION_ROWS,
        own_setting="n_ei_steps",
        planned="n_ei_steps",
        samples_training=True,
    ),
    RunKind(
        method="instruction_tuning",
        step_key="tuning_step",
        step_name="update",
        config="InstructionTuningConfig",
        arguments=("data_arguments", "InstructionArguments"),
        panels=metrics.TUNING_PANELS,
        training_rows=metrics.TUNING_ROWS,
        validation_rows=metrics.TUNING_VALIDATION_ROWS,
        own_setting="total_batch_size",
        best="eval_loss",
        higher_is_better=False,
        samples_validation=False,
    ),
    RunKind(
        method="dpo",
        step_key="dpo_step",
        step_name="update",
        config="R1ZeroDPOConfig",
        arguments=("data_arguments", "PreferenceArguments"),
        panels=metrics.DPO_PANELS,
        training_rows=metrics.DPO_ROWS,
        validation_rows=metrics.DPO_VALIDATION_ROWS,
        own_setting="precompute_ref_log_probs",
        samples_validation=False,
    ),
)
KINDS = {kind.step_key: kind for kind in _KINDS}


def __getattr__(name: str) -> Any:
    """`METHODS`: method -> the dataclasses of its recipes."""
    if name != "METHODS":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return {kind.method: kind.dataclasses for kind in _KINDS}
