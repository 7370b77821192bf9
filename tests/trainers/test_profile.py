"""`profile: true` says where the time of each update went."""

import re

from tiny_grpo import make_trainer


def test_each_update_prints_its_parts(tokenizer, tmp_path, capsys):
    make_trainer(
        tokenizer, tmp_path, train_batch_size=8, loss_type="grpo_clip", profile=True
    ).train()
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("update")]
    assert [int(line[6:11]) for line in lines] == [1, 2, 3, 4]
    names = [re.findall(r"([a-z ]+) \d+\.\d\d s \(", line) for line in lines]
    parts = [" forward", " backward", " optimizer", " rest"]
    assert [set(parts) <= {*found} for found in names] == [True] * 4
    # Two updates on each rollout batch: only the first one sampled.
    assert [any("generation" in n for n in found) for found in names] == [True, False] * 2
    for line in lines:
        total = float(re.search(r": (\d+\.\d\d) s:", line)[1])
        assert sum(map(float, re.findall(r"(\d+\.\d\d) s \(", line))) < 1.1 * total + 0.1
