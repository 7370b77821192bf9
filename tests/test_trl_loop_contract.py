"""How the training loop of transformers and TRL's `SFTTrainer` behave, as ours rely on it.

If a test here fails after an upgrade, read the new version of what it names before changing the
test.
"""

import inspect

import pytest
import torch
from datasets import Dataset
from tiny_models import make_tiny_model
from torch.utils.data import DataLoader, IterableDataset
from transformers import Trainer, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_callback import CallbackHandler, DefaultFlowCallback, ProgressCallback
from trl import GRPOTrainer, SFTConfig, SFTTrainer
from trl.trainer.utils import add_fused_lm_head

from trl_r1zero.functional import get_response_log_probs
from trl_r1zero.trainers.policy_weights import PolicyWeights

# The training loop


def lines_of(function: object) -> list[str]:
    return [line.strip() for line in inspect.getsource(function).splitlines()]


def stand_in_this_order(lines: list[str], *wanted: str) -> bool:
    rest = iter(lines)
    return all(line in rest for line in wanted)


def test_contract_of_the_training_loop_of_grpo():
    # A process draws its whole share of a rollout batch at a time, from our sampler ...
    loader = inspect.getsource(GRPOTrainer.get_train_dataloader)
    assert "batch_size=self._train_batch_size * self.args.steps_per_generation" in loader
    assert "sampler_fn=self._get_train_sampler" in loader
    # ... the loss of a micro-batch is ours ...
    assert "return self._compute_loss(model, inputs)" in inspect.getsource(GRPOTrainer.compute_loss)
    # ... rewards come back from all processes, and their parts through log_extra.
    rewards = inspect.getsource(GRPOTrainer._calculate_rewards)
    assert "rewards_per_func = gather(rewards_per_func)" in rewards
    assert 'reward_kwargs["log_extra"] = self._log_completion_extra' in rewards
    extra = inspect.getsource(GRPOTrainer._log_completion_extra)
    assert "self._pending_extra_logs[column].extend(values)" in extra


def test_contract_of_the_progress_bar():
    assert "training_bar" in inspect.getsource(ProgressCallback)


def test_contract_of_the_training_loop_of_sft():
    """The loop takes our loader as it is, and a resumed run begins at its first batch."""
    loop = lines_of(Trainer._inner_training_loop)
    assert stand_in_this_order(
        loop, "train_dataloader = self.get_train_dataloader()", "self._run_epoch("
    )
    # It is not prepared by accelerate, whose loaders draw one batch ahead and put it on a device.
    prepare = inspect.getsource(Trainer._prepare_for_training)
    replaced = [line.strip() for line in prepare.splitlines() if " train_dataloader = " in line]
    assert replaced == [
        "train_dataloader = self.accelerator.deepspeed_ulysses_dl_adapter(train_dataloader, model)"
    ]  # for sequence parallelism alone
    # The run is one epoch of max_steps updates, since our loader has no length ...
    assert stand_in_this_order(
        lines_of(Trainer.set_initial_training_values),
        "len_dataloader = len(dataloader) if has_length(dataloader) else None",
        "num_train_epochs = sys.maxsize",
        "num_update_steps_per_epoch = max_steps",
    )
    # ... in which a resumed run skips nothing, and has the random numbers of its checkpoint back
    # before anything is drawn.
    assert stand_in_this_order(
        lines_of(Trainer._init_training_state),
        "epochs_trained = int(self.state.global_step // num_update_steps_per_epoch)",
        "if not self.args.ignore_data_skip:",
        "steps_trained_in_current_epoch = self.state.global_step % num_update_steps_per_epoch",
    )
    assert stand_in_this_order(
        lines_of(Trainer._run_epoch),
        "if steps_trained_in_current_epoch > 0 and not self.args.ignore_data_skip:",
        "elif steps_trained_in_current_epoch == 0:",
        "self._load_rng_state(resume_from_checkpoint)",
        "epoch_iterator = iter(train_dataloader)",
        "batch_samples, num_items_in_batch = self.get_batch_samples(epoch_iterator, num_batches, "
        "self.args.device)",
        "tr_loss_step = self.training_step(model, inputs, num_items_in_batch)",
        "self.state.global_step += 1",
        "self.control = self.callback_handler.on_step_end(self.args, self.state, self.control)",
        "self._maybe_log_save_evaluate(",
        "if step < 0:",
        "self.control.should_training_stop = True",
        "self.control = self.callback_handler.on_epoch_end(self.args, self.state, self.control)",
        "self._maybe_log_save_evaluate(",
    )
    assert stand_in_this_order(
        lines_of(Trainer.get_batch_samples),
        "for _ in range(num_batches):",
        "batch_samples.append(next(epoch_iterator))",
        "except StopIteration:",
    )


class _Counting(Trainer):
    """Notes how many updates were done whenever the loop asks for a batch."""

    def get_train_dataloader(self) -> DataLoader:
        trainer, self.asked = self, []

        class Batches(IterableDataset):
            def __iter__(self):
                while trainer.state.global_step < 3:
                    trainer.asked.append(trainer.state.global_step)
                    yield ["no tensor"]

        return DataLoader(Batches(), batch_size=None, collate_fn=lambda batch: batch)

    def training_step(self, model, inputs, num_items_in_batch=None):
        assert inputs == ["no tensor"]
        loss = next(model.parameters()).sum()
        loss.backward()
        return loss.detach()


def test_contract_of_what_the_loop_asks_for(tokenizer, tmp_path):
    """A batch is asked for when the update before it is done, as it came, and no further one; a
    loader may end before max_steps, and a resumed run is at its update when it asks first."""
    settings = {"report_to": "none", "disable_tqdm": True, "use_cpu": True, "logging_steps": 1}
    settings |= {"output_dir": str(tmp_path), "max_steps": 5, "save_strategy": "steps"}
    args = TrainingArguments(**settings, save_steps=2, ignore_data_skip=True)
    trainer = _Counting(make_tiny_model(tokenizer), args)
    trainer.train()
    assert trainer.asked == [0, 1, 2]
    assert trainer.state.global_step == 3
    resumed = _Counting(make_tiny_model(tokenizer), args)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert resumed.asked == [2]


def test_contract_of_the_control_flags(tmp_path):
    """What asks for validation and checkpoints, at the end of a step and at the end of the loop."""
    assert stand_in_this_order(
        lines_of(Trainer._maybe_log_save_evaluate),
        "if self.control.should_evaluate:",
        "metrics = self._evaluate(trial, ignore_keys_for_eval)",
        "is_new_best_metric = self._determine_best_metric(metrics=metrics, trial=trial)",
        "if self.control.should_save:",
        "self._save_checkpoint(model, trial)",
    )
    args = TrainingArguments(output_dir=str(tmp_path), eval_strategy="no", save_strategy="no")
    handler = CallbackHandler([DefaultFlowCallback()], None, None, None, None)
    state, control = TrainerState(global_step=5, max_steps=5), TrainerControl()
    # The last update of all ends the loop; validation and checkpoints are left to us.
    handler.on_step_end(args, state, control)
    assert control.should_training_stop
    assert (control.should_evaluate, control.should_save) == (False, False)
    # What is asked for once the loop has its last batch is still asked for after it.
    control.should_evaluate = control.should_save = True
    handler.on_epoch_end(args, state, control)
    assert (control.should_evaluate, control.should_save) == (True, True)
    handler.on_step_begin(args, state, control)
    assert (control.should_evaluate, control.should_save) == (False, False)


# TRL's SFTTrainer


@pytest.fixture
def sft_trainer(tokenizer, tmp_path) -> SFTTrainer:
    """TRL's own, as ours calls it."""
    args = SFTConfig(
        output_dir=str(tmp_path),
        dataset_kwargs={"skip_prepare_dataset": True},
        use_cpu=True,
        bf16=False,
        report_to="none",
    )
    rows = Dataset.from_dict({"prompt": ["1 + 2"], "response": [" 3"], "ground_truth": ["3"]})
    return SFTTrainer(
        model=make_tiny_model(tokenizer),
        args=args,
        train_dataset=rows,
        eval_dataset=rows,
        processing_class=tokenizer,
    )


def test_contract_the_data_set_is_left_alone(sft_trainer):
    for dataset in (sft_trainer.train_dataset, sft_trainer.eval_dataset):
        assert dataset.to_list() == [
            {"prompt": "1 + 2", "response": " 3", "ground_truth": "3"},
        ]


def test_contract_of_the_metrics_of_sft(sft_trainer, monkeypatch):
    """Lists of numbers by mode and name: a line has their means, and begins them anew."""
    lines = []
    monkeypatch.setattr(Trainer, "log", lambda self, logs, start_time=None: lines.append(logs))
    sft_trainer.model.train()
    sft_trainer._metrics["train"]["nll"] += [1.0, 2.0]
    sft_trainer.log({"loss": 0.5})
    sft_trainer.log({"loss": 0.25})
    assert lines == [{"loss": 0.5, "nll": 1.5}, {"loss": 0.25}]


def test_contract_of_the_weights_for_a_server(tokenizer, sft_trainer):
    """TRL's class for vLLM, whose engine is left out, gives the names and values of a model."""
    model = sft_trainer.model
    source = PolicyWeights(model, sft_trainer.accelerator, tokenizer)
    weights = dict(source.tensors())
    # The head is tied to the embedding, and is not named besides it.
    assert set(weights) == {name for name, _ in model.named_parameters()}
    assert all(torch.equal(weights[name], value) for name, value in model.named_parameters())


# The fused head


def agree_with_plain_log_probs(model, tokenizer, add_head, temperature):
    ids = torch.randint(0, len(tokenizer), (2, 9), generator=torch.Generator().manual_seed(0))
    inputs, labels = ids[:, :-1], ids[:, 1:]
    plain = get_response_log_probs(model, inputs, labels, True, temperature=temperature)
    add_head()
    fused = model(input_ids=inputs, shift_labels=labels, fused_lm_head=True)
    torch.testing.assert_close(fused.log_probs, plain["log_probs"], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(fused.entropy, plain["token_entropy"], atol=1e-5, rtol=1e-5)
    return inputs, labels, plain


def test_contract_of_the_fused_head(tokenizer):
    """It takes shifted labels and gives the log-probabilities and entropies of the plain way."""
    model = make_tiny_model(tokenizer)

    def add_head():
        add_fused_lm_head(model, temperature=0.7, outputs=("log_probs", "entropy"))

    agree_with_plain_log_probs(model, tokenizer, add_head, temperature=0.7)


def test_contract_of_the_fused_head_of_sft(tokenizer, sft_trainer):
    """TRL's SFTTrainer adds one with both, at temperature 1, beside the plain way."""
    model = sft_trainer.model
    inputs, labels, plain = agree_with_plain_log_probs(model, tokenizer, lambda: None, 1.0)
    # Before and after the head is used, `get_response_log_probs` sees the model's own forward.
    untouched = get_response_log_probs(make_tiny_model(tokenizer), inputs, labels)
    assert torch.equal(plain["log_probs"], untouched["log_probs"])


@pytest.mark.parametrize("num_ignored", [3, 8])
def test_contract_ignored_labels_are_zeros_with_a_graph(tokenizer, sft_trainer, num_ignored):
    """Also where all labels are: rows that only fill up a process's share have to come back."""
    model = sft_trainer.model
    ids = torch.randint(0, len(tokenizer), (1, 9), generator=torch.Generator().manual_seed(0))
    labels = ids[:, 1:].clone()
    labels[:, :num_ignored] = -100
    output = model(input_ids=ids[:, :-1], shift_labels=labels, fused_lm_head=True)
    assert torch.equal(output.log_probs == 0, labels == -100)
    assert torch.equal(output.entropy == 0, labels == -100)
    output.log_probs.sum().backward()
    gradients = [parameter.grad for parameter in model.parameters()]
    assert all(gradient is not None and gradient.isfinite().all() for gradient in gradients)
    assert any(gradient.any() for gradient in gradients) == (num_ignored < 8)
