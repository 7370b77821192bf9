"""The kinds of runs, one row each. A new kind is a row here, a trainer and a script in recipes/."""

from dataclasses import dataclass

from trl import ModelConfig

from trl_r1zero import trainers
from trl_r1zero.recipe.instruction_arguments import InstructionArguments
from trl_r1zero.recipe.preference_arguments import PreferenceArguments
from trl_r1zero.recipe.task_arguments import TaskArguments
from trl_r1zero.recipe.trace_arguments import TraceArguments
from trl_r1zero.trainers.instruction_tuning import STEP_KEY, STEP_NAME

from . import metrics

__all__ = ["KINDS", "METHODS", "RunKind"]


@dataclass(frozen=True)
class RunKind:
    """What is particular to a kind of run.

    Attributes:
        method: Its script is recipes/<method>.py, and its recipes are <method>[-variant].yaml.
        step_key: What counts its steps in a line of metrics; `step_name`: what a step is called.
        dataclasses: Of its recipes.
        panels: Of a run's figure.
        training_rows: Of the report's table of training; `validation_rows`: of validation.
        own_setting: A setting of config.json that no other kind has; None: it has none of theirs.
        planned: The setting that says how many steps a run is to have.
        best: The metric of validation that says which one is the best.
        higher_is_better: Whether its highest value is.
        samples_training: Whether training samples answers.
        samples_validation: Whether a validation does, and writes a table of them.
    """

    method: str
    step_key: str
    step_name: str
    dataclasses: tuple[type, ...]
    panels: tuple[metrics.Panel, ...]
    training_rows: metrics.Rows
    validation_rows: metrics.Rows
    own_setting: str | None = None
    planned: str = "max_steps"
    best: str = "eval_accuracy"
    higher_is_better: bool = True
    samples_training: bool = False
    samples_validation: bool = True


_KINDS = (
    RunKind(
        method="grpo",
        step_key=trainers.R1ZeroGRPOTrainer.step_key,
        step_name=trainers.R1ZeroGRPOTrainer.step_name,
        dataclasses=(trainers.R1ZeroGRPOConfig, TaskArguments, ModelConfig),
        panels=metrics.GRPO_PANELS,
        training_rows=metrics.GRPO_ROWS,
        validation_rows=metrics.VALIDATION_ROWS,
        own_setting="n_grpo_steps",
        planned="n_grpo_steps",
        samples_training=True,
    ),
    RunKind(
        method="sft",
        step_key=trainers.R1ZeroSFTTrainer.step_key,
        step_name=trainers.R1ZeroSFTTrainer.step_name,
        dataclasses=(trainers.R1ZeroSFTConfig, TraceArguments, ModelConfig),
        panels=metrics.SFT_PANELS,
        training_rows=metrics.SFT_ROWS,
        validation_rows=metrics.VALIDATION_ROWS,
    ),
    RunKind(
        method="expert_iteration",
        step_key=trainers.ExpertIterationTrainer.step_key,
        step_name=trainers.ExpertIterationTrainer.step_name,
        dataclasses=(trainers.ExpertIterationConfig, TaskArguments, ModelConfig),
        panels=metrics.EI_PANELS,
        training_rows=metrics.SFT_ROWS,
        validation_rows=metrics.VALIDATION_ROWS,
        own_setting="n_ei_steps",
        planned="n_ei_steps",
        samples_training=True,
    ),
    RunKind(
        method="instruction_tuning",
        step_key=STEP_KEY,
        step_name=STEP_NAME,
        dataclasses=(trainers.InstructionTuningConfig, InstructionArguments, ModelConfig),
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
        step_key=trainers.R1ZeroDPOTrainer.step_key,
        step_name=trainers.R1ZeroDPOTrainer.step_name,
        dataclasses=(trainers.R1ZeroDPOConfig, PreferenceArguments, ModelConfig),
        panels=metrics.DPO_PANELS,
        training_rows=metrics.DPO_ROWS,
        validation_rows=metrics.DPO_VALIDATION_ROWS,
        own_setting="precompute_ref_log_probs",
        samples_validation=False,
    ),
)
KINDS = {kind.step_key: kind for kind in _KINDS}
METHODS = {kind.method: kind.dataclasses for kind in _KINDS}
