"""What ``--resume`` is given and cannot go on with, or goes on with in an unusual way."""
import numpy as np
import pytest
import torch
from mmengine.config import Config
from running import run_tool
from tiny import tiny_config, write_tiny_coco


@pytest.fixture(scope='module')
def trained(tmp_path_factory):
    """A folder with a config and the work directory of its training of two epochs."""
    folder = tmp_path_factory.mktemp('trained')
    tiny_config(write_tiny_coco(folder / 'coco')).dump(folder / 'mine.py')
    assert run_tool('train', folder / 'mine.py', '--work-dir', folder / 'work') == 0
    return folder


def text(path, checkpoint):
    path.write_text('hello world')


def cut(path, checkpoint):
    torch.save(checkpoint, path)
    path.write_bytes(path.read_bytes()[:-1000])


def changed(change):
    def write(path, checkpoint):
        torch.save(change(checkpoint) or checkpoint, path)

    return write


# Checkpoint to resume, --cfg-options, and words of the error.
REFUSED = {
    'text': (text, [], '{path} cannot be read as a checkpoint'),
    'cut': (cut, [], '{path} cannot be read as a checkpoint'),
    'folder': (lambda path, _: path.mkdir(), [], '{path} is no folder of transformers'),
    'missing': (lambda path, _: None, [], '--resume: {path} does not exist'),
    'list': (changed(lambda x: [1]), [], 'holds no state dict'),
    'weights alone': (changed(lambda x: x['state_dict']), [], 'no state of a training'),
    'published weights': (changed(lambda x: x.update(meta={})), [], 'no state of a training'),
    'other N': (changed(dict), ['model.num_queries=20'], 'num_queries and num_query_groups'),
    'other K': (changed(dict), ['model.num_query_groups=2'], 'num_queries and num_query_groups'),
    'other layers': (changed(dict), ['model.decoder.num_layers=3'], 'is of another model'),
    'other optimizer': (changed(dict), ['optim_wrapper.optimizer.type=RMSprop',
                                        'train_cfg.max_epochs=3'], ''),
    'epoch a text': (changed(lambda x: x['meta'].update(epoch='x')), [], 'no state of a training'),
    'no log': (changed(lambda x: x.pop('message_hub') and None), [], ''),
    'schedules a text': (changed(lambda x: x.update(param_schedulers='x')), [], ''),
    'optimizer a list': (changed(lambda x: x.update(optimizer=[1])), [], ''),
}
ANNOUNCED = {
    'a seed of NumPy': (changed(lambda x: x['meta'].update(seed=np.int64(0))), 3, ''),
    'finished': (changed(dict), 2, 'is of a finished training, 2 of train_cfg.max_epochs=2'),
    'no optimizer': (changed(lambda x: x.pop('optimizer') and None), 3,
                     'has no state of the optimizer'),
    'progress a text': (changed(lambda x: x.update(groupdetr_progress='x')), 3,
                        'lacks the position'),
    'progress beyond': (changed(lambda x: x['groupdetr_progress'].update(batches_done=99)), 3,
                        'lacks the position'),
}


def resume(run, trained, tmp_path, write, *options):
    checkpoint = torch.load(trained / 'work/epoch_2.pth', weights_only=False)
    write(tmp_path / 'x.pth', checkpoint)
    return run('train', trained / 'mine.py', '--work-dir', tmp_path / 'work', '--resume',
               tmp_path / 'x.pth', *(['--cfg-options', *options] if options else []))


@pytest.mark.parametrize('name', REFUSED)
def test_what_cannot_be_resumed_is_refused_with_the_real_key(trained, tmp_path, last_error, name):
    write, options, words = REFUSED[name]
    last = resume(last_error, trained, tmp_path, write, *options)
    assert words.format(path=tmp_path / 'x.pth') in last


def test_other_classes_are_said_by_their_key(trained, tmp_path, last_error):
    cfg = Config.fromfile(trained / 'mine.py')
    cfg.model.bbox_head.num_classes = 2
    for mode in ('train', 'val', 'test'):
        cfg[f'{mode}_dataloader'].dataset.metainfo.classes = ('red', 'green')
    cfg.dump(tmp_path / 'other.py')
    assert 'resume with the num_classes' in last_error(
        'train', tmp_path / 'other.py', '--work-dir', tmp_path / 'work', '--resume',
        trained / 'work/epoch_2.pth')


@pytest.mark.parametrize('name', ANNOUNCED)
def test_an_unusual_resumption_is_announced(trained, tmp_path, capfd, name):
    write, epochs, words = ANNOUNCED[name]
    checkpoints = sorted((trained / 'work').glob('*.pth'))
    assert resume(run_tool, trained, tmp_path, write, f'train_cfg.max_epochs={epochs}') == 0
    assert words in ''.join(capfd.readouterr())
    assert sorted((trained / 'work').glob('*.pth')) == checkpoints  # also the best one
