"""`trl-r1zero serve`: its command line; a real server is started in generation/test_vllm_server."""

from dataclasses import fields

import pytest

from trl_r1zero.commands import serve as serve_command
from trl_r1zero.generation import vllm_server
from trl_r1zero.generation.vllm_server import VLLMServerConfig


def test_help_lists_every_setting(capsys):
    with pytest.raises(SystemExit) as caught:
        serve_command.main(["--help"])
    assert caught.value.code == 0
    shown = capsys.readouterr().out
    assert "usage: trl-r1zero serve MODEL" in shown
    for one in fields(VLLMServerConfig):
        assert f"--{one.name}: " in shown
        assert one.metadata["help"].split()[0] in shown


def test_settings_and_flags_of_vllm():
    model, config = serve_command._parse(
        ["owner/model", "--port", "8000", "--devices", "2,3", "--", "--seed", "3"]
    )
    assert model == "owner/model"
    assert config == VLLMServerConfig(port=8000, devices="2,3", extra_args=["--seed", "3"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "the model comes first"),
        (["--port", "8000"], "the model comes first"),
        (["m", "--prot", "8000"], "unknown key 'prot'; did you mean 'port'?"),
        (["m", "--port", "http"], "port: got http, expected int or null"),
        (["m", "--weight_transfer", "rdma"], "weight_transfer must be one of auto, nccl"),
    ],
)
def test_a_command_line_that_cannot_be_read(arguments, message, capsys):
    with pytest.raises(SystemExit) as caught:
        serve_command.main(arguments)
    assert caught.value.code == 2
    assert message in capsys.readouterr().err


def test_a_server_that_does_not_start(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(vllm_server, "version", lambda name: "0.31.0+cpu")
    assert serve_command.main([str(tmp_path / "gone")]) == 1
    assert "there is no folder" in capsys.readouterr().err
