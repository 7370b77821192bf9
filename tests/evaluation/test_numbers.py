"""Numbers as text, with and without their errors."""

import math

from trl_r1zero.evaluation.numbers import COUNT, LENGTH, metric_rows, plus_minus, with_error

METRICS = {"safe": ("safe (share)", "{:.2f}".format), "n": ("questions", COUNT)}


def test_a_number_and_its_error():
    assert plus_minus(0.7, 0.01) == "0.7000 ± 0.0100"
    assert plus_minus(12, 3.25, LENGTH) == "12.0 ± 3.2"
    assert plus_minus(0.7, None) == plus_minus(0.7, math.nan) == "0.7000"


def test_a_metric_and_its_error():
    metrics = {"accuracy": 0.5, "accuracy_stderr": 0.25, "length": 3}
    assert with_error(metrics, "accuracy") == "0.5000 ± 0.2500"
    assert with_error(metrics, "length", LENGTH) == "3.0"
    assert with_error(metrics, "reward") == "-"


def test_rows_of_the_metrics_that_are_there():
    summary = {"n": 1234, "safe": 0.5, "safe_stderr": 0.1, "other": 1}
    assert metric_rows(summary, METRICS) == [
        ("safe (share)", "0.50 ± 0.10"),
        ("questions", "1,234"),
    ]
    assert metric_rows({"n": 2}, METRICS) == [("questions", "2")]
