"""What the installed torch, mmcv and mmengine need before mmdet can be used.

``apply`` runs once in every process that imports the package, before anything of
``mmdet.models`` is imported. It is the only place that asks what is installed.
"""
import atexit
import functools
import gc
import importlib.util
import sys
import time
from importlib.machinery import ModuleSpec
from pathlib import Path
from pickle import UnpicklingError
from types import ModuleType
from typing import Any, Callable, List, Tuple

import mmcv
import mmengine
import mmengine.dist.utils as dist_utils
import numpy as np
import torch
import torch.nn.functional as F
from mmengine.config.utils import MODULE2PACKAGE
from mmengine.device import get_device
from mmengine.logging import HistoryBuffer
from mmengine.model import MMDistributedDataParallel
from mmengine.runner import checkpoint
from mmengine.utils import digit_version
from torch import Tensor

from .errors import ConfigError, warn_once
from .ops.deformable import deformable_attention
from .ops.kernels import attention_kernel

NO_COMPILED_OPS = (
    f'mmcv {mmcv.__version__} is installed without its compiled ops; to get them, install the '
    'full mmcv built for your torch and CUDA, '
    'https://mmcv.readthedocs.io/en/latest/get_started/installation.html')


@functools.cache
def apply() -> None:
    """Make the installed libraries fit together. Calling it again does nothing."""
    # `_base_ = 'groupdetr_mmdet::group_detr/NAME.py'` finds the configs of this package. mmengine
    # takes a distribution to lie in site-packages, which is wrong of an editable installation, but
    # it asks Python where a module lies.
    MODULE2PACKAGE['groupdetr_mmdet'] = 'groupdetr_mmdet.registry'
    if digit_version(torch.__version__) >= digit_version('2.6.0'):
        allow_mmengine_checkpoints()
    if get_device() == 'cpu':
        train_with_gloo()
    if importlib.util.find_spec('mmcv._ext') is None:
        replace_compiled_ops()
    save_memory_of_attention()
    if importlib.util.find_spec('torchvision') is None:
        checkpoint.get_torchvision_models = TorchvisionModels


# torchvision://, as the configs of mmdet say their backbones, without torchvision


class TorchvisionModels(dict):
    """Addresses of torchvision's weights by their names, those that mmengine itself knows."""

    def __init__(self) -> None:
        file = Path(mmengine.__path__[0], 'hub', 'torchvision_0.12.json')
        super().__init__(mmengine.load(file))

    def __missing__(self, name: str) -> str:
        raise ConfigError(f'torchvision://{name} is not known without torchvision: install it, or '
                          'write the address of the weights themselves.')


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


def save_memory_of_attention() -> None:
    """Let deformable attention in PyTorch, wherever no compiled kernel is, need less memory."""
    from mmcv.ops import multi_scale_deform_attn as module
    own = module.multi_scale_deformable_attn_pytorch

    @functools.wraps(own)
    def attention(value: Tensor, *args) -> Tensor:
        if value.is_cuda and attention_kernel() is None:
            warn_once(f'Deformable attention runs as slower PyTorch code: {NO_COMPILED_OPS}')
        return deformable_attention(own, value, *args)

    module.multi_scale_deformable_attn_pytorch = attention


def pytorch_focal_loss(py_sigmoid_focal_loss: Callable, pred: Tensor, target: Tensor,
                       gamma: float, alpha: float, weight: None, reduction: str) -> Tensor:
    """Focal loss of mmdet, of one-hot targets, with the arguments of the compiled op.

    ``pred`` are logits, shape (num_preds, num_classes), and ``target`` class indices, shape
    (num_preds, ), with ``num_classes`` for background.
    """
    one_hot = F.one_hot(target, pred.size(1) + 1)[:, :-1]
    return py_sigmoid_focal_loss(pred, one_hot, weight, gamma, alpha, reduction)


# torch >= 2.6 unpickles only what it is told to trust


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


# mmengine's launchers on a machine without CUDA


def train_with_gloo() -> None:
    """Let mmengine's launchers run on the CPU.

    mmengine selects a CUDA device and the nccl backend in any process that a launcher starts,
    and gives ``device_ids`` to the distributed model, which must have none on the CPU.
    """
    for name in ('_init_dist_pytorch', '_init_dist_mpi', '_init_dist_slurm'):
        setattr(dist_utils, name, init_on_cpu(getattr(dist_utils, name)))
    init_model = MMDistributedDataParallel.__init__

    @functools.wraps(init_model)
    def init_without_device_ids(*args, device_ids: Any = None, **kwargs) -> None:
        init_model(*args, **kwargs)

    MMDistributedDataParallel.__init__ = init_without_device_ids


def init_on_cpu(init: Callable) -> Callable:
    """Wrap a launcher's set-up to select no CUDA device, and gloo in the place of nccl."""

    @functools.wraps(init)
    def wrapper(backend: str, *args, **kwargs) -> None:
        set_device, torch.cuda.set_device = torch.cuda.set_device, lambda device: None
        try:
            init('gloo' if backend == 'nccl' else backend, *args, **kwargs)
        finally:
            torch.cuda.set_device = set_device
        atexit.register(leave_process_group)

    return wrapper


def leave_process_group() -> None:
    """End gloo's threads: one that frees a tensor when the interpreter ends aborts the process.

    They end with the last reference to the group. A distributed model holds one; if it outlives
    this call, its threads get the time to free what they hold.
    """
    if torch.distributed.is_initialized():
        gc.collect()  # models are in reference cycles
        torch.distributed.destroy_process_group()
        time.sleep(0.1)
