from pathlib import Path

import pytest
import torch
from tiny import tiny_config, write_tiny_coco


@pytest.fixture
def tiny_coco(tmp_path: Path) -> Path:
    """A folder with ``images/``, ``train.json`` (8 images) and ``val.json`` (4 images)."""
    return write_tiny_coco(tmp_path / 'coco')


@pytest.fixture
def tiny_config_file(tiny_coco: Path, tmp_path: Path) -> Path:
    """A config file of a small detector and two epochs on ``tiny_coco``."""
    config_file = tmp_path / 'tiny.py'
    tiny_config(tiny_coco).dump(config_file)
    return config_file


@pytest.fixture
def two_threads():
    """As the official numbers were made: other sums of the same terms move some gradients 3e-4."""
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(threads)
