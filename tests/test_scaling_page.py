"""docs/scaling.md: its table is what the calculation gives."""

import importlib

import pytest
from tiny_models import REPOSITORY

from trl_r1zero.evaluation.markdown import table


@pytest.fixture
def arithmetic(monkeypatch):
    monkeypatch.syspath_prepend(REPOSITORY / "benchmarks")
    return importlib.import_module("scaling_arithmetic")


def test_the_page_has_the_calculation(arithmetic):
    header, *body = arithmetic.rows()
    expected = "\n".join(table(header, body))
    page = (REPOSITORY / "docs" / "scaling.md").read_text(encoding="utf-8")
    assert expected in page, f"the table should be:\n{expected}"


def test_the_parts_of_a_step_worked_by_hand(arithmetic):
    gpu = arithmetic.Gpu(1e3, 1e3, 100.0, 10.0, training_share=0.5, reading_share=1.0)
    model = arithmetic.Model(parameters=10.0, cache_bytes=3.0)
    layout = arithmetic.Layout(trainers=2, samplers=1, machines=1, rollouts=4, prompt=1, longest=6)
    parts = arithmetic.parts_of(layout, gpu, model)
    # 6 tokens x 20 bytes of weights; 4 rows x (1 x 6 / 2 + 36 / 6) cached tokens x 3 bytes
    assert parts.sampling == pytest.approx((120 + 4 * 9 * 3) / 1e3)
    assert parts.sending == pytest.approx(20 / 100)
    # 4 x (1 + 3) tokens x 60 operations on 2 GPUs at half of 1,000 a second
    assert parts.training == pytest.approx(16 * 60 / 1e3)
    assert parts.reducing == pytest.approx(2 * 0.5 * 40 / 100)
    step, trainers, samplers = parts.idle(overlapping=False)
    assert step == pytest.approx(0.228 + 0.2 + 0.96 + 0.4)
    assert (trainers, samplers) == pytest.approx((0.428 / step, 1.56 / step))
    assert parts.idle(overlapping=True)[0] == pytest.approx(0.2 + 1.36)
