"""docs/gpu.md: that what it names is there, and that a figure in it has a date."""

import re
import shlex

import pytest
from tiny_models import REPOSITORY

TEXT = (REPOSITORY / "docs" / "gpu.md").read_text(encoding="utf-8")
# Rows of the second table: claim, decided in, test, command, status.
CLAIMS = [
    [cell.strip() for cell in line.strip("|").split("|")]
    for line in TEXT.partition("## What is claimed")[2].splitlines()
    if line.startswith("| ") and not line.startswith(("| claim", "| ---"))
]
COMMANDS = [
    line
    for block in re.findall(r"```bash\n(.*?)```", TEXT, re.DOTALL)
    for line in block.replace("\\\n", " ").splitlines()
]


def part_names() -> list[str]:
    source = (REPOSITORY / "tests" / "gpu" / "check.py").read_text(encoding="utf-8")
    return re.findall(r'PartKind\(\s*"(\w+)"', source)


def test_every_part_of_the_check_is_explained_and_confirms_something():
    parts = part_names()
    assert len(parts) == 6
    explained = re.findall(r"^\| `(\w+)` \|", TEXT, re.MULTILINE)
    assert explained == parts
    confirming = {name for row in CLAIMS for name in re.findall(r"--only (\w+)", row[3])}
    assert confirming == set(parts)


def test_every_claim_has_a_command():
    letters = set(re.findall(r"^([A-Z]), .*:$", TEXT, re.MULTILINE))
    used = set()
    for claim, _, _, command, _ in CLAIMS:
        named = set(re.findall(r"\b([A-Z])\b(?!_)", re.sub(r"`[^`]*`|GPUs?", "", command)))
        assert named <= letters, claim
        assert named or "check.py --only" in command or "pytest tests/gpu" in command, claim
        used |= named
    assert used == letters


@pytest.mark.parametrize("claim", CLAIMS, ids=lambda claim: claim[0][:40])
def test_a_claim_names_files_that_are_there_and_a_figure_has_a_date(claim):
    assert len(claim) == 5
    _, decided, test, command, status = claim
    for path in re.findall(r"`((?:tests|benchmarks)/[\w/.]+)`", decided + test + command):
        assert (REPOSITORY / path).exists(), path
    assert status == "not yet measured" or re.search(r"\b20\d\d-\d\d-\d\d\b", status)


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_names_files_that_are_there(command):
    words = shlex.split(command, comments=True)
    for word in words:
        if re.fullmatch(r"[\w./-]+\.(py|yaml)", word):
            assert (REPOSITORY / word).is_file(), word
