"""What a terminal shows of a run."""
import io
from types import SimpleNamespace

from mmengine.logging import MessageHub
from rich.console import Console
from rich.progress import Progress

from groupdetr_mmdet.training.options import AP
from groupdetr_mmdet.training.progress import ProgressHook


def test_a_validation_has_the_place_of_its_loop():
    console, hub = Console(file=io.StringIO()), MessageHub('progress')
    hub.update_scalar('train/loss', 1.)
    for epoch, place in ((0, 'iteration 40'), (3, 'epoch 3')):
        hook = ProgressHook(Progress(console=console))
        hook.evaluation = hook.progress.add_task('validating')
        hook.after_val_epoch(SimpleNamespace(epoch=epoch, iter=40, message_hub=hub), {AP: .25})
        line = console.file.getvalue().splitlines()[-1]
        assert line.startswith(f'{place}: loss 1.000  AP 0.250')
