"""What rows begin with alike is computed once, and nothing else changes."""

import pytest
import torch
from tiny_grpo import LENGTHS, REWARDS, gradient_of_update, make_rollouts, make_trainer
from tiny_models import make_tiny_model
from transformers import LlamaConfig, Qwen2Config

from trl_r1zero.data.tokenization import pad_and_shift
from trl_r1zero.trainers.microbatches import PaddedRows
from trl_r1zero.trainers.shared_prefixes import check_shares_prefixes, prefix_tree


def padded(prompts, responses) -> PaddedRows:
    lengths = [len(p) + len(r) - 1 for p, r in zip(prompts, responses, strict=True)]
    return PaddedRows(**pad_and_shift(prompts, responses, 0), lengths=lengths)


def test_a_shared_prompt_stands_once_but_for_its_last_token():
    tree = prefix_tree(padded([[1, 2, 3]] * 2, [[4, 5], [6, 7, 8]]))
    # The last prompt token predicts another token in either row.
    assert tree.kept.tolist() == [[True] * 4 + [False], [False] * 2 + [True] * 3]
    assert tree.positions.tolist() == [[0, 1, 2, 3, 2, 3, 4]]
    seen = [row.nonzero().flatten().tolist() for row in tree.visible[0, 0]]
    assert seen == [[0], [0, 1], [0, 1, 2], [0, 1, 2, 3], [0, 1, 4], [0, 1, 4, 5], [0, 1, 4, 5, 6]]


def test_rows_share_as_much_as_they_have_in_common_in_any_order():
    """A tree of three levels, with rows that share most apart from one another."""
    prompts = [[1, 2, 3, 4, 9], [7, 9], [1, 2, 3, 5, 9], [1, 2, 8, 9], [1, 2, 3, 4, 9]]
    tree = prefix_tree(padded(prompts, [[6, 6]] * 5))
    # Of 6, 3, 6, 5 and 6 positions: the third has 1 2 3 from another, the fourth 1 2, the last
    # 1 2 3 4.
    assert tree.kept.sum(dim=1).tolist() == [6, 3, 3, 3, 2]
    for row, prompt in enumerate(prompts):
        last = int(tree.kept[: row + 1].sum()) - 1
        seen = tree.visible[0, 0, last]
        assert tree.positions[0, seen].tolist() == list(range(len(prompt) + 1))


def test_a_row_that_is_not_in_the_loss_keeps_a_position():
    rows = padded([[1, 2, 3]] * 2, [[4, 5]] * 2)
    rows.response_mask[1] = False
    assert prefix_tree(rows).kept[1].tolist() == [False, False, False, True]


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("fused", [False, True])
def test_the_gradient_is_that_of_padded_rows(tokenizer, tmp_path, attention, fused):
    gradients = []
    for shared in (False, True):
        model = make_tiny_model(tokenizer)
        model.config._attn_implementation_internal = attention
        trainer = make_trainer(
            tokenizer, tmp_path, model=model, gradient_accumulation_steps=2, fused_lm_head=fused,
            max_completion_length=16, rollout_batch_size=8, train_batch_size=8,
            share_prefixes=shared,
        )  # fmt: skip
        rollouts = make_rollouts(tokenizer, LENGTHS, REWARDS, 4)
        gradients.append(gradient_of_update(trainer, rollouts))
    torch.testing.assert_close(gradients[1], gradients[0], atol=1e-6, rtol=1e-4)


def test_an_attention_without_such_a_mask_is_an_error():
    flash = LlamaConfig()
    flash._attn_implementation_internal = "flash_attention_2"
    with pytest.raises(ValueError, match="'flash_attention_2' takes no mask that says which"):
        check_shares_prefixes(flash)
    sliding = Qwen2Config(num_hidden_layers=1, layer_types=["sliding_attention"])
    sliding._attn_implementation_internal = "sdpa"
    with pytest.raises(ValueError, match=r"layers \(sliding_attention\) that do not see all"):
        check_shares_prefixes(sliding)
