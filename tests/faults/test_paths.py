"""What is no file in the place of one: refused before a reader waits for it for ever."""
import os

import pytest

from groupdetr_mmdet.checkpoints.reading import read_checkpoint
from groupdetr_mmdet.errors import ConfigError
from groupdetr_mmdet.config import find_config
from groupdetr_mmdet.io import check_output, check_path

PLACES = {
    'folder': (lambda path: path.mkdir(), 'a folder'),
    'pipe': (os.mkfifo, 'a pipe'),
    'zero': (lambda path: path.symlink_to('/dev/zero'), 'a device'),
    'null': (lambda path: path.symlink_to('/dev/null'), 'a device'),
    'loop': (lambda path: path.symlink_to(path), 'does not exist'),
    'dangling': (lambda path: path.symlink_to('nowhere'), 'does not exist'),
    'nothing': (lambda path: None, 'does not exist'),
}
READERS = {
    'ann_file': lambda path: check_path('val_evaluator.ann_file', path),
    'checkpoint': read_checkpoint,
    'config': find_config,
}


@pytest.mark.parametrize('name', PLACES)
@pytest.mark.parametrize('reader', READERS)
def test_what_is_no_file_is_refused(tmp_path, name, reader):
    make, words = PLACES[name]
    path = tmp_path / f'{name}.pth'
    make(path)
    with pytest.raises(ConfigError) as error:
        READERS[reader](str(path))
    assert words in str(error.value) and str(path) in str(error.value)


def test_a_file_in_the_place_of_a_folder_is_refused(tmp_path):
    (tmp_path / 'a').write_text('')
    with pytest.raises(ConfigError, match='is a file and not a folder'):
        check_path('data_prefix.img', str(tmp_path / 'a'), folder=True)
    check_path('data_prefix.img', str(tmp_path), folder=True)
    with pytest.raises(ConfigError, match='cannot be written'):
        check_output('--out', tmp_path / 'a/b.png')
    for path in ('', '/dev/null'):  # which it would replace
        with pytest.raises(ConfigError, match=f'--out {path} is a .* and must be a file'):
            check_output('--out', path)
