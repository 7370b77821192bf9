"""Two groups of runs and their comparison, for the tests of its numbers and of its pages."""

import json

import pytest
from report_runs import answered_run

from trl_r1zero.reports.comparison import write_comparison

# Two seeds, of 8 questions: base ends at 4 and 5 of 8, the variant at 6 and 7 of 8.
BASE = [
    {0: "10000000", 2: "11000000", 4: "11110000"},
    {0: "10000000", 2: "11000000", 4: "11111000"},
]
VARIANT = [
    {0: "10000000", 2: "11110000", 4: "11111100"},
    {0: "10000000", 2: "11110000", 4: "11111110"},
]


def two_groups(folder, **more):
    """Labels -> the folders of two seeds each."""
    return {
        name: [
            answered_run(folder / f"{name}-{seed}", seed, right, lr=lr, **more)
            for seed, right in enumerate(runs)
        ]
        for name, runs, lr in (("base", BASE, 1e-4), ("faster", VARIANT, 2e-4))
    }


def compare_groups(groups, folder, **more):
    """Text for a terminal, the Markdown and the results, which are JSON without NaN."""
    text = write_comparison(groups, folder, **({"title": "An experiment"} | more))
    results = json.loads((folder / "results.json").read_text(), parse_constant=pytest.fail)
    return text, (folder / "report.md").read_text(), results
