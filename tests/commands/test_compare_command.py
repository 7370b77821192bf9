"""`trl-r1zero compare` through its command line."""

import pytest
from judging import graded_folder

from trl_r1zero import cli


def test_the_command_line(tmp_path, capsys):
    a, b = graded_folder(tmp_path / "a", [0, 1]), graded_folder(tmp_path / "b", [1, 1])
    output = tmp_path / "tables" / "comparison.md"
    arguments = [str(a), str(b), "--baseline", str(b), "--output", str(output)]
    assert cli.main(["compare", *arguments]) == 0
    shown = capsys.readouterr().out
    assert "## math" in shown and "-0.5000 ± 0.5000" in shown
    assert output.read_text() == f"# Comparison\n\n{shown[:-1]}"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "the following arguments are required: FOLDER"),
        (["{tmp_path}"], "trl-r1zero compare: error: {tmp_path} has no evaluation.json"),
        (["{tmp_path}", "--baselines", "a"], "unrecognized arguments: --baselines"),
    ],
)
def test_a_command_line_that_cannot_be_read(arguments, message, tmp_path, capsys):
    with pytest.raises(SystemExit) as caught:
        cli.main(["compare", *(argument.format(tmp_path=tmp_path) for argument in arguments)])
    assert caught.value.code == 2
    assert message.format(tmp_path=tmp_path) in capsys.readouterr().err
