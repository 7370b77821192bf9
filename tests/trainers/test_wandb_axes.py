"""Runs logged to Weights & Biases without a network: which axis each curve has."""

import importlib.util
import struct
from pathlib import Path

import pytest
from tiny_sft import make_sft_trainer

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("wandb") is None, reason="wandb is not installed"
)


def read_records(path: Path) -> list:
    """The records of a .wandb file: LevelDB's log format behind a header of 7 bytes."""
    from wandb.proto.wandb_internal_pb2 import Record

    block, header = 32768, struct.Struct("<IHB")  # checksum, length, and which part of a record
    data = path.read_bytes()
    position, parts, records = 7, [], []
    while position + header.size <= len(data):
        left = block - position % block
        if left < header.size:  # filled up with zeros
            position += left
            continue
        _, length, kind = header.unpack_from(data, position)
        position += header.size
        parts.append(data[position : position + length])
        position += length
        if kind in (1, 4):  # a whole record, or its last part
            records.append(Record.FromString(b"".join(parts)))
            parts = []
    return records


@pytest.fixture
def records(tokenizer, tmp_path, monkeypatch):
    """The records of a run of five updates and three validations, as wandb wrote them."""
    import wandb

    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    monkeypatch.setenv("WANDB_SILENT", "true")
    make_sft_trainer(tokenizer, tmp_path / "run", eval_every=3, report_to="wandb").train()
    wandb.teardown()  # its service writes the file, and ends once that is done
    (path,) = tmp_path.glob("wandb/offline-run-*/*.wandb")
    return read_records(path)


def test_training_and_validation_have_their_own_axes(records):
    axes = {
        r.metric.name: r.metric.step_metric
        for r in records
        if r.WhichOneof("record_type") == "metric"
    }
    assert axes["train/nll"] == "train_step"
    assert axes["train/grad_norm"] == "train_step"
    assert axes["eval/accuracy"] == "eval_step"
    assert axes["eval/entropy"] == "eval_step"
    assert axes["train_step"] == axes["eval_step"] == ""
    rows = [
        {item.key or item.nested_key[0]: item.value_json for item in r.history.item}
        for r in records
        if r.WhichOneof("record_type") == "history"
    ]
    trained = [row["train_step"] for row in rows if "train/nll" in row]
    validated = [row["eval_step"] for row in rows if "eval/accuracy" in row]
    assert trained == ["1", "2", "3", "4", "5"]
    assert validated == ["0", "3", "5"]
