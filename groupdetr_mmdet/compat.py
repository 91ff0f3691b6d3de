"""Adapt the installed torch, mmcv and mmengine, so that mmdet can be imported.

:func:`apply` runs in every process that imports the package, before ``mmdet.models`` is imported.
The results of other detectors stay the same.
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
    """Adapt the installed libraries, once per process."""
    # Let `_base_ = 'groupdetr_mmdet::group_detr/NAME.py'` find the configs of an editable
    # installation, too: mmengine searches distributions in site-packages, but modules everywhere.
    MODULE2PACKAGE['groupdetr_mmdet'] = 'groupdetr_mmdet.registry'
    if digit_version(torch.__version__) >= digit_version('2.6.0'):
        allow_mmengine_checkpoints()
    if importlib.util.find_spec('mmcv._ext') is None:
        replace_compiled_ops()


# mmcv without compiled ops


class MissingOps(ModuleType):
    """Stand-in for ``mmcv._ext``: every op can be imported, and raises an error when called."""

    def __getattr__(self, name: str) -> Callable:
        if name.startswith('__'):  # Python looks for __path__ and such
            raise AttributeError(name)

        def missing_op(*args, **kwargs):
            raise ImportError(f'The op {name} cannot run: {NO_COMPILED_OPS}')

        return missing_op


def replace_compiled_ops() -> None:
    """Let mmdet import without ``mmcv._ext``, and use its PyTorch code on a GPU.

    mmdet and mmcv call the compiled focal loss and deformable attention for every tensor on a
    GPU, although both have the same computation in PyTorch.
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
    """Compute mmdet's focal loss in PyTorch, with the arguments of the compiled op.

    ``pred`` has logits, shape (num_preds, num_classes), ``target`` class indices, shape
    (num_preds, ), with ``num_classes`` for background.
    """
    one_hot = F.one_hot(target, pred.size(1) + 1)[:, :-1]
    return py_sigmoid_focal_loss(pred, one_hot, weight, gamma, alpha, reduction)


# torch >= 2.6 unpickles only the classes on a list


def allow_mmengine_checkpoints() -> None:
    """Let ``torch.load`` read checkpoints of mmengine's ``Runner``."""
    torch.serialization.add_safe_globals(mmengine_globals())
    if hasattr(checkpoint, '_safe_torch_load'):
        # onedl-mmengine's loader removes these classes from the list after each file, and
        # unpickles any class after torch has refused.
        checkpoint._safe_torch_load = torch.load


def mmengine_globals() -> List[Tuple[Any, str]]:
    """Return the classes in checkpoints of mmengine's ``Runner``, with their pickled names.

    The message hub has ``HistoryBuffer`` of numpy arrays, numpy scalars, and ``getattr`` for the
    methods that a ``HistoryBuffer`` registers. numpy 1 and 2 pickle under different module names,
    and either must read both.
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
    """``getattr`` for public methods of ``HistoryBuffer`` alone.

    Raises:
        UnpicklingError: For any other attribute.
    """
    if owner is not HistoryBuffer or name.startswith('_'):
        raise UnpicklingError(f'A checkpoint may not read the attribute {name} of {owner}.')
    return getattr(owner, name)


def onnx_exporter() -> Dict[str, bool]:
    """Return the arguments of ``torch.onnx.export`` that select the exporter by TorchScript.

    Early releases, such as torch 2.1, have no other exporter and no argument.
    """
    return dict(dynamo=False) if 'dynamo' in inspect.signature(
        torch.onnx.export).parameters else {}


def unwrapped(model: nn.Module) -> nn.Module:
    """Return the detector inside a distributed model or a model for test-time augmentation."""
    while is_model_wrapper(model) or isinstance(model, BaseTTAModel):
        model = model.module
    return model
