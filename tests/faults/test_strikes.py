"""A sample of the fault campaign; `make faults` runs all of it (TRL_R1ZERO_STRIKES=all)."""

import os

import pytest
from faults.kinds import Inputs, make_pairs, make_traces
from faults.strikes import FAULTS, Campaign, num_blows, sample, strikes
from leaderboard_runs import make_board_model
from tiny_models import REPOSITORY

STRUCK = list(strikes()) if os.environ.get("TRL_R1ZERO_STRIKES") == "all" else sample()


@pytest.fixture(scope="module")
def campaign(tiny_model_folder, tmp_path_factory) -> Campaign:
    folder = tmp_path_factory.mktemp("campaign")
    inputs = Inputs(
        model=tiny_model_folder,
        board_model=make_board_model(folder / "board"),
        traces=make_traces(folder / "traces.jsonl"),
        pairs=make_pairs(folder / "pairs"),
    )
    return Campaign(inputs, folder / "whole")


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("one", STRUCK, ids=str)
def test_a_run_that_was_struck_ends_as_if_nothing_had_been(one, campaign, tmp_path):
    campaign.strike(one, tmp_path)


def test_the_campaign_strikes_often_enough_and_its_page_has_each_fault():
    every = list(strikes())
    assert num_blows(every) >= 60
    assert num_blows(one for one in every if one.fault == "signal") >= 40
    page = (REPOSITORY / "docs" / "reliability.md").read_text()
    for name, fault in FAULTS.items():
        assert f"| {name} | {fault.where} | {fault.holds} |" in page
