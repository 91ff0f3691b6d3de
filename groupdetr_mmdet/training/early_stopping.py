"""Early stopping that waits until a metric has risen."""
from typing import Any, Dict

from mmengine.hooks import EarlyStoppingHook
from mmengine.registry import HOOKS
from mmengine.runner import Runner

STATE = 'groupdetr_early_stopping'  # key in a checkpoint


@HOOKS.register_module()
class RisenEarlyStoppingHook(EarlyStoppingHook):
    """``EarlyStoppingHook`` that starts to count once the metric has reached ``risen``.

    A DETR stays near AP 0 in its first epochs, up to .006 in the runs of the documentation. If the
    metric never reaches ``risen``, the training is not stopped.

    Args:
        risen (float): Value of the metric above noise. Defaults to 0.02.
        min_delta (float): Least gain of a better result. Defaults to 0.001.
        kwargs: As for the parent.
    """

    def __init__(self, *args: Any, risen: float = 0.02, min_delta: float = 0.001,
                 **kwargs: Any) -> None:
        super().__init__(*args, rule='greater', min_delta=min_delta, **kwargs)
        self.risen = risen

    def before_run(self, runner: Runner) -> None:
        """Do nothing: the parent's check fails in a test, which has no training loop."""

    def before_train(self, runner: Runner) -> None:
        """Check that the training loop can be stopped."""
        super().before_run(runner)

    def before_save_checkpoint(self, runner: Runner, checkpoint: Dict[str, Any]) -> None:
        """Save the best result and the number of validations since."""
        checkpoint[STATE] = dict(best_score=float(self.best_score), wait_count=self.wait_count)

    def after_load_checkpoint(self, runner: Runner, checkpoint: Dict[str, Any]) -> None:
        """Restore both in a resumed run."""
        if runner._resume:
            vars(self).update(checkpoint.get(STATE) or {})

    def after_val_epoch(self, runner: Runner, metrics: Dict[str, float]) -> None:
        """Stop the training after ``patience`` validations without a better result."""
        value = metrics.get(self.monitor, self.risen)
        if self.best_score >= self.risen or not value < self.risen:
            super().after_val_epoch(runner, metrics)
