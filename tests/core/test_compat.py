"""The package runs with the installed torch, mmcv and mmengine, and bends nothing more."""
import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from mmengine.runner import CheckpointLoader

from groupdetr_mmdet.checkpoints import reading
from groupdetr_mmdet.errors import ConfigError
from groupdetr_mmdet import compat

from mmdet.models.losses import focal_loss  # isort: skip, only after compat

ROOT = Path(__file__).resolve().parents[2]

needs_lite = pytest.mark.skipif(
    not isinstance(sys.modules.get('mmcv._ext'), compat.MissingOps),
    reason='mmcv is installed with its compiled ops')
needs_cpu = pytest.mark.skipif(torch.cuda.is_available(), reason='there is CUDA')


def run_python(code: str, **variables: str) -> str:
    """Run code in a process of its own and return the last line that it printed."""
    env = dict(os.environ, PYTHONPATH=str(ROOT), **variables)
    result = subprocess.run(
        [sys.executable, '-c', code], env=env, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return result.stdout.splitlines()[-1]


# mmcv without its compiled half


@needs_lite
def test_missing_op_says_so_when_it_is_called():
    from mmcv.ops import nms
    with pytest.raises(ImportError, match='nms.*without its compiled ops.*install the full mmcv'):
        nms(torch.rand(3, 4), torch.rand(3), 0.5)


def test_compiled_mmcv_stays_untouched(tmp_path):
    """``_ext`` here is a file where the compiled one would lie."""
    (tmp_path / '_ext.py').write_text('def __getattr__(name):\n'
                                      '    if name.startswith("__"):\n'
                                      '        raise AttributeError(name)\n'
                                      '    return "compiled"\n')
    out = run_python(f'import mmcv; mmcv.__path__.insert(0, {str(tmp_path)!r})\n'
                     'import groupdetr_mmdet, sys\n'
                     'from mmcv.ops import multi_scale_deform_attn as attention\n'
                     'from mmcv.ops import sigmoid_focal_loss\n'
                     'from mmcv.utils import IS_CUDA_AVAILABLE\n'
                     'from mmdet.models.losses import focal_loss\n'
                     'print(sys.modules["mmcv._ext"].nms,\n'
                     '      focal_loss._sigmoid_focal_loss is sigmoid_focal_loss,\n'
                     '      attention.IS_CUDA_AVAILABLE is IS_CUDA_AVAILABLE)')
    assert out.split() == ['compiled', 'True', 'True']


@needs_lite
def test_the_focal_loss_of_a_gpu_is_that_of_the_cpu():
    """With the arguments that mmdet gives the compiled op."""
    pred, target = torch.randn(6, 3), torch.tensor([0, 1, 2, 3, 3, 0])  # 3 is background
    loss = focal_loss._sigmoid_focal_loss(pred, target, 2., .25, None, 'none')
    one_hot = torch.eye(4)[target][:, :-1]
    expected = focal_loss.py_sigmoid_focal_loss(pred, one_hot, None, 2., .25, 'none')
    torch.testing.assert_close(loss, expected)


# Nothing of another detector changes


@needs_cpu
def test_importing_leaves_initializers_launchers_and_attention_as_they_are():
    out = run_python(
        'import mmengine.dist.utils as dist\n'
        'from mmengine.model import MMDistributedDataParallel as DDP, PretrainedInit\n'
        'before = dist._init_dist_pytorch, dist._init_dist_slurm, DDP.__init__\n'
        'import groupdetr_mmdet, mmdet.registry, mmdet.models, mmdet.apis\n'
        'from mmengine.runner import CheckpointLoader\n'
        'from mmcv.ops import multi_scale_deform_attn as attention\n'
        'after = dist._init_dist_pytorch, dist._init_dist_slurm, DDP.__init__\n'
        'print(before == after,\n'
        '      mmdet.registry.WEIGHT_INITIALIZERS.get("Pretrained") is PretrainedInit,\n'
        '      attention.multi_scale_deformable_attn_pytorch.__module__,\n'
        '      CheckpointLoader._schemes[""].__module__)')
    assert out.split() == ['True', 'True', 'mmcv.ops.multi_scale_deform_attn',
                           'mmengine.runner.checkpoint']


# torchvision:// without torchvision

load_checkpoint = reading.checked_readers()(CheckpointLoader.load_checkpoint)


def test_torchvision_backbones_are_found_without_torchvision(monkeypatch, tmp_path):
    file = tmp_path / 'resnet50-0676ba61.pth'
    torch.save(dict(weight=torch.ones(1)), file)
    served = {f'https://download.pytorch.org/models/{file.name}': str(file)}
    monkeypatch.setattr(importlib.util, 'find_spec', lambda name: None)
    monkeypatch.setattr(reading, 'fetch', served.__getitem__)
    assert load_checkpoint('torchvision://resnet50')['weight'] == 1
    with pytest.raises(ConfigError, match='torchvision://resnet50.imagenet1k_v2'):
        load_checkpoint('torchvision://resnet50.imagenet1k_v2')
