"""Fingerprints of models: a copy has the same one, and every change another."""

import json
import os
import shutil

import pytest
from tiny_models import hub_cache, make_tiny_model

from trl_r1zero.evaluation.environment import folder_version, model_files, model_version


@pytest.fixture
def folder(tiny_model_folder, tmp_path):
    shutil.copytree(tiny_model_folder, tmp_path / "model")
    return tmp_path / "model"


def changed(folder, before: dict) -> list[str]:
    return [part for part, value in model_files(folder).items() if before.get(part) != value]


def test_a_copy_with_other_times_is_the_same(folder, tiny_model_folder):
    for file in folder.iterdir():
        os.utime(file, (0, 0))
    prints = model_files(folder)
    assert prints == model_files(tiny_model_folder)
    assert list(prints) == ["config", "tokenizer", "weights"]
    assert all(len(value) == 16 and int(value, 16) >= 0 for value in prints.values())


def test_every_part_is_told_from_another(folder, tokenizer):
    before = model_files(folder)
    # One byte, with the same size and time: a LoRA merge or a frozen layer changes little.
    weights = folder / "model.safetensors"
    times = weights.stat().st_mtime_ns
    with weights.open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        (last,) = file.read(1)
        file.seek(-1, os.SEEK_END)
        file.write(bytes([last ^ 1]))
    os.utime(weights, ns=(times, times))
    assert changed(folder, before) == ["weights"]
    before = model_files(folder)
    (folder / "generation_config.json").write_text('{"eos_token_id": 1}')
    assert changed(folder, before) == ["config"]
    before = model_files(folder)
    tokenizer_config = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps({**tokenizer_config, "x": 1}))
    assert changed(folder, before) == ["tokenizer"]


def test_what_training_leaves_beside_a_model_does_not_count(folder):
    before = model_files(folder)
    for name in ("training_args.bin", "optimizer.pt", "trainer_state.json", "README.md"):
        (folder / name).write_text("x")
    assert model_files(folder) == before


def test_shards_count_by_name_and_content(folder, tokenizer):
    make_tiny_model(tokenizer).save_pretrained(folder, max_shard_size="20KB")
    (folder / "model.safetensors").unlink(missing_ok=True)
    first, second = sorted(folder.glob("model-0000[12]-*.safetensors"))
    before = model_files(folder)
    content = first.read_bytes()
    first.write_bytes(second.read_bytes())
    second.write_bytes(content)
    assert changed(folder, before) == ["weights"]


def test_an_adapter_depends_on_its_base(folder, tmp_path, tokenizer):
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    config = {"base_model_name_or_path": str(folder)}
    (adapter / "adapter_config.json").write_text(json.dumps(config))
    (adapter / "adapter_model.safetensors").write_bytes(b"lora")
    before = model_version(str(adapter))["model_files"]
    assert before["base"] == model_files(folder)
    make_tiny_model(tokenizer, seed=1).save_pretrained(folder)
    assert changed(adapter, before) == ["base"]


def test_a_model_of_the_hub_has_a_commit(tmp_path, monkeypatch):
    commit = hub_cache(tmp_path, monkeypatch, "org/model")
    assert model_version("org/model") == {"model_revision": commit}
    assert folder_version("org/model") == {}


@pytest.mark.parametrize("name", ["run/finale", "finale", "~/a/b"])
def test_neither_a_folder_nor_a_model_of_the_hub(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=f"model: there is no folder {name!r}, and no such model"):
        model_version(name)


def test_a_folder_without_a_model(tmp_path):
    with pytest.raises(ValueError, match=r"has no config\.json and no adapter_config\.json"):
        model_version(str(tmp_path))
