"""What the metrics of runs are called in reports, and how figures draw them."""

from dataclasses import dataclass, replace

# Okabe and Ito's colours, which the colour-blind tell apart as well.
BLUE, GREEN, ORANGE, GREY = "#0072B2", "#009E73", "#D55E00", "#777777"
PURPLE, SKY, AMBER = "#CC79A7", "#56B4E9", "#E69F00"


@dataclass(frozen=True)
class Series:
    """One curve: a logged metric, in a band of its standard error if it `has_band`.

    `x_shift` steps are added to those logged. `@k` in the metric and in the label stands for the
    largest k that was logged.
    """

    metric: str
    label: str
    colour: str
    has_band: bool = False
    x_shift: float = 0.0


@dataclass(frozen=True)
class Panel:
    """Axes with their curves; those of which nothing was logged are left out.

    `over_time`: against the wall-clock time, not against steps. `may_be_log`: the y-axis is
    logarithmic where values differ much.
    """

    title: str
    y_label: str
    series: tuple[Series, ...]
    over_time: bool = False
    may_be_log: bool = False

    def at_k(self, k: int | None) -> tuple[Series, ...]:
        """Its curves with this k for `@k`."""
        return tuple(
            replace(s, metric=s.metric.replace("@k", f"@{k}"), label=s.label.replace("@k", f"@{k}"))
            for s in self.series
        )


def _panel(title: str, y_label: str, *series: Series, may_be_log: bool = False) -> Panel:
    return Panel(title, y_label, series, may_be_log=may_be_log)


def _training(metric: str, label: str = "training") -> Series:
    return Series(metric, label, GREY)


# Panels


_VALIDATION = Series("eval_accuracy", "validation", BLUE, has_band=True)
_EVAL_LOSS = Series("eval_loss", "validation", BLUE, has_band=True)
_ACCURACY = _panel("Validation accuracy, ± 1 standard error", "accuracy", _VALIDATION)
_ACCURACY_OVER_TIME = replace(_ACCURACY, over_time=True)
_REWARD = _panel("Training reward", "mean reward of the rollouts", _training("reward"))
_NLL = _panel("Negative log-likelihood of the responses", "nats per token", _training("nll"))
_GRAD_NORM = _panel(
    "Gradient norm before clipping", "L2 norm", _training("grad_norm"), may_be_log=True
)
_CLIPPED = _panel("Clipped tokens", "share of tokens", _training("clip_fraction"))
_LENGTH = _panel(
    "Response length", "tokens",
    _training("length/mean", "training, all"),
    Series("eval_length", "validation, all", BLUE),
    Series("eval_length_correct", "correct", GREEN),
    Series("eval_length_incorrect", "incorrect", ORANGE),
)  # fmt: skip
_ENTROPY = _panel(
    "Token entropy", "nats per token",
    _training("entropy"), Series("eval_entropy", "validation", BLUE),
)  # fmt: skip
_MARGIN = _panel(
    "Margin of implicit rewards", "nats",
    _training("margin"), Series("eval_margin", "validation", BLUE, has_band=True),
)  # fmt: skip

GRPO_PANELS = (_ACCURACY, _ACCURACY_OVER_TIME, _REWARD, _LENGTH, _ENTROPY, _GRAD_NORM, _CLIPPED)
SFT_PANELS = (_ACCURACY, _ACCURACY_OVER_TIME, _NLL, _LENGTH, _ENTROPY, _GRAD_NORM)
EI_PANELS = (
    # The rollouts of EI step k are of the policy that validation sees after k - 1 steps.
    _panel(
        "Accuracy, ± 1 standard error\n(rollouts of EI step k at k - 1)", "accuracy",
        _VALIDATION,
        Series("rollout_accuracy", "rollouts", ORANGE, has_band=True, x_shift=-1.0),
        Series("rollout_pass@k", "rollouts, pass@k", GREEN, has_band=True, x_shift=-1.0),
    ),
    _ACCURACY_OVER_TIME,
    _panel(
        "Kept rollouts", "share",
        Series("rollout_kept_share", "of rollouts", ORANGE),
        Series("rollout_questions_kept_share", "of questions, any kept", PURPLE),
    ),
    *SFT_PANELS[2:],
)  # fmt: skip
DPO_PANELS = (
    _panel(
        "Accuracy on validation pairs, ± 1 standard error", "share of pairs",
        Series("eval_accuracy", "implicit reward", BLUE, has_band=True),
        Series("eval_log_prob_accuracy", "log-probability", ORANGE, has_band=True),
    ),
    _panel("Loss", "nats per pair", _training("loss"), _EVAL_LOSS),
    _MARGIN,
    _panel(
        "Implicit reward, validation", "nats",
        Series("eval_chosen_reward", "chosen", GREEN, has_band=True),
        Series("eval_rejected_reward", "rejected", ORANGE, has_band=True),
    ),
    _GRAD_NORM,
)  # fmt: skip
TUNING_PANELS = (
    _panel("Loss", "nats per token", _training("loss"), _EVAL_LOSS),
    _panel("Learning rate", "per update", _training("learning_rate")),
    _GRAD_NORM,
)
# Of groups of runs the first curve of each is drawn. The loss is for kinds that log little else.
GROUP_PANELS = (
    _REWARD,
    _panel("Accuracy of the rollouts", "share of rollouts", _training("rollout_accuracy")),
    _panel("Kept rollouts", "share of rollouts", _training("rollout_kept_share")),
    _panel("Format reward", "share of rollouts", _training("format_reward")),
    _panel("Negative log-likelihood", "nats per token", _training("nll")),
    _MARGIN,
    _ENTROPY,
    _LENGTH,
    _GRAD_NORM,
    _CLIPPED,
)
GROUP_LOSS_PANEL = _panel("Training loss", "nats", _training("loss"))
# The columns of a table of groups' training.
GROUP_TRAINING = {panel.series[0].metric: panel.title for panel in GROUP_PANELS} | {"loss": "Loss"}

# Rows of a report's tables: metric -> label, format of the number (`DURATION`: h:mm:ss).


Rows = dict[str, tuple[str, str]]
DURATION = "h:mm:ss"

_TIME: Rows = {"elapsed_seconds": ("time since the start (h:mm:ss)", DURATION)}
_RESPONSES: Rows = {
    "length/mean": ("mean length (tokens)", ".1f"),
    "entropy": ("entropy (nats per token)", ".3f"),
}
_UPDATES: Rows = {"loss": ("loss", ".3g"), "grad_norm": ("gradient norm", ".3g")}
_SPEED: Rows = {"tokens_per_second": ("tokens per second", ".0f")}
_PREFERENCES: Rows = {
    "accuracy": ("accuracy (implicit reward)", ".3f"),
    "log_prob_accuracy": ("accuracy (log-probability)", ".3f"),
    "margin": ("margin (nats)", ".3f"),
    "chosen_reward": ("implicit reward, chosen (nats)", ".3f"),
    "rejected_reward": ("implicit reward, rejected (nats)", ".3f"),
}

VALIDATION_ROWS: Rows = {
    **_TIME,
    "eval_num_examples": ("questions", ".0f"),
    "eval_accuracy": ("accuracy", ".3f"),
    "eval_format_reward": ("format rate", ".3f"),
    "eval_length": ("mean length (tokens)", ".1f"),
    "eval_length_correct": ("mean length, correct", ".1f"),
    "eval_length_incorrect": ("mean length, incorrect", ".1f"),
    "eval_entropy": ("entropy (nats per token)", ".3f"),
    "eval_truncated": ("truncated share", ".3f"),
}
DPO_VALIDATION_ROWS: Rows = {
    **_TIME,
    "eval_num_pairs": ("pairs", ".0f"),
    **{f"eval_{name}": row for name, row in _PREFERENCES.items()},
    "eval_loss": ("loss", ".3f"),
}
TUNING_VALIDATION_ROWS: Rows = {**_TIME, "eval_loss": ("loss (nats per token)", ".3f")}
GRPO_ROWS: Rows = {
    "reward": ("reward", ".3f"),
    "format_reward": ("format reward", ".3f"),
    "answer_reward": ("answer reward", ".3f"),
    **_RESPONSES,
    "truncated": ("truncated share", ".3f"),
    "zero_advantage_groups": ("groups without advantage (share)", ".3f"),
    **_UPDATES,
    "ratio": ("ratio of policy to sampling policy", ".3f"),
    "clip_fraction": ("clipped tokens (share)", ".3f"),
}
TUNING_ROWS: Rows = {**_UPDATES, "learning_rate": ("learning rate", ".3g")}
SFT_ROWS: Rows = {
    "nll": ("negative log-likelihood (nats per token)", ".3f"),
    **_RESPONSES,
    **TUNING_ROWS,
    **_SPEED,
}
DPO_ROWS: Rows = {**_PREFERENCES, **_UPDATES, **_SPEED}
# Columns of the table of an EI run's rollouts; pass@k, whose k is the run's, follows the accuracy.
ROLLOUT_COLUMNS: Rows = {
    "rollout_accuracy": ("accuracy", ".3f"),
    "rollout_kept": ("kept", ".0f"),
    "rollout_kept_share": ("share", ".3f"),
    "rollout_length": ("length", ".1f"),
    "rollout_entropy": ("entropy", ".3f"),
}
# These are absent where they have no meaning: no such answers, no off-policy updates.
OPTIONAL = {"eval_length_correct", "eval_length_incorrect", "ratio", "clip_fraction"}
