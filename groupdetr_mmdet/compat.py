"""What the installed torch, mmcv and mmengine need before mmdet can be used.

``apply`` runs once in every process that imports the package, before anything of
``mmdet.models`` is imported. It changes nothing of another detector's results.
"""
import functools
import importlib.util
import inspect
import sys
from importlib.machinery import ModuleSpec
from pickle import UnpicklingError
from types import ModuleType
from typing import Any, Callable, Dict, List, Tuple

import mmcv
import numpy as np
import torch
import torch.nn.functional as F
from mmengine.config.utils import MODULE2PACKAGE
from mmengine.logging import HistoryBuffer
from mmengine.model import BaseTTAModel, is_model_wrapper
from mmengine.runner import checkpoint
from mmengine.utils import digit_version
from torch import Tensor, nn

NO_COMPILED_OPS = (
    f'mmcv {mmcv.__version__} is installed without its compiled ops; to get them, install the '
    'full mmcv built for your torch and CUDA, '
    'https://mmcv.readthedocs.io/en/latest/get_started/installation.html')


@functools.cache
def apply() -> None:
    """Make the installed libraries fit together. Calling it again does nothing."""
    # Let `_base_ = 'groupdetr_mmdet::group_detr/NAME.py'` find the configs of this package:
    # mmengine looks for a distribution in site-packages, which misses an editable installation,
    # but for a module where Python finds it.
    MODULE2PACKAGE['groupdetr_mmdet'] = 'groupdetr_mmdet.registry'
    if digit_version(torch.__version__) >= digit_version('2.6.0'):
        allow_mmengine_checkpoints()
    if importlib.util.find_spec('mmcv._ext') is None:
        replace_compiled_ops()


# mmcv without its compiled half


class MissingOps(ModuleType):
    """Stands in for ``mmcv._ext``: any op can be imported, and none can be called."""

    def __getattr__(self, name: str) -> Callable:
        if name.startswith('__'):  # what Python asks every module, like __path__
            raise AttributeError(name)

        def missing_op(*args, **kwargs):
            raise ImportError(f'The op {name} cannot run: {NO_COMPILED_OPS}')

        return missing_op


def replace_compiled_ops() -> None:
    """Let mmdet import without ``mmcv._ext``, and use PyTorch code where mmdet has it.

    mmdet and mmcv take the compiled focal loss and deformable attention whenever a tensor is on
    the GPU, although both have the same computation in PyTorch.
    """
    ops = MissingOps('mmcv._ext', 'Stand-in for the compiled ops of mmcv.')
    ops.__spec__ = ModuleSpec(ops.__name__, loader=None)
    sys.modules[ops.__name__] = ops

    from mmcv.ops import multi_scale_deform_attn
    from mmdet.models.losses import focal_loss
    focal_loss._sigmoid_focal_loss = functools.partial(
        pytorch_focal_loss, focal_loss.py_sigmoid_focal_loss)
    multi_scale_deform_attn.IS_CUDA_AVAILABLE = False


def pytorch_focal_loss(py_sigmoid_focal_loss: Callable, pred: Tensor, target: Tensor,
                       gamma: float, alpha: float, weight: None, reduction: str) -> Tensor:
    """Focal loss of mmdet, of one-hot targets, with the arguments of the compiled op.

    ``pred`` are logits, shape (num_preds, num_classes), and ``target`` class indices, shape
    (num_preds, ), with ``num_classes`` for background.
    """
    one_hot = F.one_hot(target, pred.size(1) + 1)[:, :-1]
    return py_sigmoid_focal_loss(pred, one_hot, weight, gamma, alpha, reduction)


# torch >= 2.6 unpickles only what is on its list


def allow_mmengine_checkpoints() -> None:
    """Let ``torch.load`` read what mmengine's ``Runner`` saves, and nothing more."""
    torch.serialization.add_safe_globals(mmengine_globals())
    if hasattr(checkpoint, '_safe_torch_load'):
        # onedl-mmengine's own loader withdraws these classes after each file, and unpickles
        # anything once torch has refused.
        checkpoint._safe_torch_load = torch.load


def mmengine_globals() -> List[Tuple[Any, str]]:
    """What checkpoints of mmengine's ``Runner`` hold beside tensors, with the names in the files.

    That is the message hub: ``HistoryBuffer`` of numpy arrays, numpy scalars, and ``getattr`` for
    the methods that a ``HistoryBuffer`` registers. numpy 1 and 2 pickle under different module
    names, and each must read the other's files.
    """
    classes = [HistoryBuffer, np.ndarray, np.dtype,
               *(type(np.dtype(kind)) for kind in (np.float32, np.float64, np.int64))]
    reconstruct, scalar = (x.__reduce__()[0] for x in (np.zeros(1), np.float64(0)))
    return [
        *((x, f'{x.__module__}.{x.__qualname__}') for x in classes),
        (history_buffer_method, 'builtins.getattr'),
        *((reconstruct, f'numpy.{core}.multiarray._reconstruct') for core in ('core', '_core')),
        *((scalar, f'numpy.{core}.multiarray.scalar') for core in ('core', '_core')),
    ]


def history_buffer_method(owner: Any, name: str) -> Callable:
    """``getattr`` as a checkpoint may use it: for public methods of ``HistoryBuffer`` alone."""
    if owner is not HistoryBuffer or name.startswith('_'):
        raise UnpicklingError(f'A checkpoint may not read the attribute {name} of {owner}.')
    return getattr(owner, name)


def onnx_exporter() -> Dict[str, bool]:
    """Arguments with which ``torch.onnx.export`` is the exporter by TorchScript.

    Early releases, such as torch 2.1, have no other.
    """
    return dict(dynamo=False) if 'dynamo' in inspect.signature(
        torch.onnx.export).parameters else {}


def unwrapped(model: nn.Module) -> nn.Module:
    """The detector inside a distributed model, or inside one that detects in several views."""
    while is_model_wrapper(model) or isinstance(model, BaseTTAModel):
        model = model.module
    return model
