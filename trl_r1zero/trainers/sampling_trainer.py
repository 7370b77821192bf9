"""What trainers that sample do alike, besides updates: a vLLM server that may be gone."""

from typing import Any

from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, TrainOutput

from trl_r1zero.generation.vllm_server import VLLMServerError

from .update_metrics import UpdateMetrics
from .validation import ValidationMixin


class SamplingTrainer(ValidationMixin):
    """Comes before TRL's trainer among the bases."""

    def _set_up(self) -> None:
        super()._set_up()
        self._update_metrics = UpdateMetrics()
        self._set_up_sampling()

    def train(
        self,
        resume_from_checkpoint: str | bool | None = None,
        trial: Any = None,
        ignore_keys_for_eval: list[str] | None = None,
    ) -> TrainOutput:
        """As `CoreTrainer.train`.

        Raises:
            VLLMServerError: The vLLM server refused a request, or is gone and not this trainer's to
                start again. The run is saved first.
        """
        try:
            return super().train(resume_from_checkpoint, trial, ignore_keys_for_eval)
        except VLLMServerError as error:
            raise VLLMServerError(f"{error}\n{self._save_stopped_run()}") from error

    def _save_stopped_run(self) -> str:
        """A checkpoint of the last complete update, unless there is one; what to tell people."""
        if self.state.global_step == 0:
            return "Nothing was trained yet; start the run again once the server works."
        folder = self.run_folder / f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}"
        if not (folder / TRAINER_STATE_NAME).is_file():
            self._save_checkpoint(self.model, trial=None)
        return (
            f"The run stopped after {self.steps_done} of {self.num_steps} "
            f"{self.step_name}s and is saved in {folder}; once the server works, go on "
            "with --resume_from_checkpoint last."
        )
