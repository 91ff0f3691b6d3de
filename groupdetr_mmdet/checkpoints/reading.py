"""Read checkpoints from files and addresses without running code in them.

In a run of this package these readers replace mmengine's in its ``CheckpointLoader``, for
``load_from``, ``--resume`` and ``init_cfg=dict(type='Pretrained', ...)``.
"""
import argparse
import codecs
import contextlib
import importlib.util
import io
import json
import os
import pickle
import re
import zipfile
from collections import OrderedDict
from pathlib import Path
from types import SimpleNamespace
from typing import IO, Any, Dict, Iterator, Optional, Union

import mmengine
import numpy as np
import torch
from mmengine.dist import barrier, is_main_process
from mmengine.fileio import get_file_backend
from mmengine.runner import CheckpointLoader, checkpoint
from mmengine.utils import digit_version
from torch import Tensor

from ..errors import ConfigError, first_line
from ..io import check_path
from ..compat import history_buffer_method, mmengine_globals

SAFETENSORS = '.safetensors'
# Before torch 2.6, its safe reader has holes, and refuses checkpoints of mmengine.
READS_SAFELY = digit_version(torch.__version__) >= digit_version('2.6.0')
# In addition to `mmengine_globals`: arguments of the official code, all numpy scalars.
PLAIN_CLASSES = [argparse.Namespace, np.ndarray, np.dtype,
                 *{type(np.dtype(kind)) for kind in '?bhilqBHILQefdgFDGSUMm'}]
# Text before the name of a refused class in errors of `torch.load`.
UNSAFE_CLASS = r"(?:GLOBAL|[Uu]nsupported class|but got <class|read the attribute) '?([\w.]+)"


def read_checkpoint(path: Union[str, Path], trust_pickle: bool = False) -> Any:
    """Return the content of a file, or of any address of mmengine's loader, on the CPU.

    The content of a ``.safetensors`` file is a dict of ``state_dict`` and ``meta``. With
    ``trust_pickle`` code in the file is run.

    Raises:
        ConfigError: If the file is missing, damaged, no checkpoint, or needs code to be read.
    """
    path = str(path)
    if trust_pickle:
        path = fetch(path) if path.startswith(('http://', 'https://')) else path
        return load_from_local(path, 'cpu', trust_pickle=True)
    with checked_readers():
        return CheckpointLoader.load_checkpoint(path, map_location='cpu', logger='silent')


@contextlib.contextmanager
def checked_readers() -> Iterator[None]:
    """Let mmengine's ``CheckpointLoader`` use these readers inside a ``with`` block."""
    stock = CheckpointLoader._schemes
    CheckpointLoader._schemes = {**stock, **READERS}  # the same keys, in the same order
    try:
        yield
    finally:
        CheckpointLoader._schemes = stock


# Readers of files and addresses


def load_from_local(path: str, map_location: Any = None, trust_pickle: bool = False,
                    mmap: bool = False) -> Any:
    """Read a local file, or a folder of transformers.

    With ``mmap`` the tensors stay on the disk until they are used.
    """
    path = os.path.expanduser(path)
    if os.path.isdir(path):
        from .transformers import read_folder  # imports this module
        return read_folder(path)
    check_path('CHECKPOINT', path)
    with readable(path):
        if path.endswith(SAFETENSORS):
            return read_safetensors(path)
        # PyTorch does not verify checksums. Before 1.6 it wrote no archives.
        if not mmap and zipfile.is_zipfile(path) and not is_whole(path):
            raise RuntimeError('a checksum in it is wrong')
        return unpickle(path, map_location, trust_pickle, mmap)


def load_from_http(address: str, map_location: Any = None) -> Any:
    """Download a file into ``torch.hub``'s folder, and read it."""
    path = fetch(address)
    try:
        return load_from_local(path, map_location)
    except ConfigError as error:
        Path(path).unlink(missing_ok=True)  # so that the next call downloads it again
        raise ConfigError(f'{address}: {error}') from error


def load_from_zoo(name: str, map_location: Any = None) -> Any:
    """Read weights by a name in mmengine's tables; for mmcls the backbone's weights."""
    scheme, _, model = name.partition('://')
    tables = dict(modelzoo=torchvision_models, torchvision=torchvision_models,
                  mmcls=checkpoint.get_mmcls_models)
    addresses = tables.get(scheme, checkpoint.get_external_models)()
    model = checkpoint.get_deprecated_model_names().get(model, model)
    if model not in addresses:
        raise ConfigError(f'{name} is not in the model zoo of mmengine: correct the name, or give '
                          'the address of the weights.')
    loaded = CheckpointLoader.load_checkpoint(addresses[model], map_location, logger='silent')
    return checkpoint._process_mmcls_checkpoint(loaded) if scheme == 'mmcls' else loaded


def torchvision_models() -> Dict[str, str]:
    """Return the addresses of torchvision's weights, or mmengine's list without torchvision."""
    if importlib.util.find_spec('torchvision') is not None:
        return checkpoint.get_torchvision_models()
    return mmengine.load(Path(mmengine.__path__[0], 'hub', 'torchvision_0.12.json'))


def load_from_ceph(address: str, map_location: Any = None) -> Any:
    """Read from a store of mmengine's petrel backend."""
    backend = get_file_backend(address, backend_args=dict(backend='petrel'))
    with readable(address):
        return unpickle(io.BytesIO(backend.get(address)), map_location)


READERS = {  # prefix of an address -> reader, as mmengine's schemes
    '': load_from_local, **dict.fromkeys(('http://', 'https://'), load_from_http),
    **dict.fromkeys((r'(\S+\:)?s3://', r'(\S+\:)?petrel://'), load_from_ceph),
    **dict.fromkeys(('modelzoo://', 'torchvision://', 'open-mmlab://', 'openmmlab://', 'mmcls://'),
                    load_from_zoo)}


def fetch(address: str) -> str:
    """Download a file once for all processes; return its path in ``torch.hub``'s folder."""
    path = Path(torch.hub.get_dir(), 'checkpoints', Path(re.split('[?#]', address)[0]).name)
    for turn in (is_main_process(), True):  # then the processes of another machine
        if turn and not path.is_file():
            path.parent.mkdir(parents=True, exist_ok=True)
            try:
                torch.hub.download_url_to_file(address, str(path), progress=os.isatty(0))
            except (OSError, ValueError) as error:
                raise ConfigError(f'{address} cannot be fetched ({error}): correct the address, '
                                  f'or put the file at {path}.') from error
        barrier()
    return str(path)


# Allowed content of files


def unpickle(file: Union[str, IO], map_location: Any, trust_pickle: bool = False,
             mmap: Optional[bool] = None) -> Any:
    """``torch.load`` of tensors and plain classes; with ``trust_pickle`` of any class."""
    if trust_pickle or not READS_SAFELY:
        pickle_module = None if trust_pickle else PlainPickle
        return torch.load(file, map_location, pickle_module, weights_only=False, mmap=mmap)
    allowed = torch.serialization.get_safe_globals()  # the context would remove these at its end
    with torch.serialization.safe_globals([x for x in PLAIN_CLASSES if x not in allowed]):
        return torch.load(file, map_location, weights_only=True, mmap=mmap)


class PlainUnpickler(pickle.Unpickler):
    """Unpickle tensors and plain classes alone."""

    def find_class(self, module: str, name: str) -> Any:
        """Return an allowed class or function by name, or raise an UnpicklingError."""
        if f'{module}.{name}' in PLAIN_GLOBALS:
            return PLAIN_GLOBALS[f'{module}.{name}']
        found = getattr(torch, name, None) if module == 'torch' else None
        if isinstance(found, torch.dtype) or isinstance(found, type) and name.endswith('Storage'):
            return found
        raise pickle.UnpicklingError(f'Unsupported class {module}.{name}')


PLAIN_GLOBALS = {
    '__builtin__.set': set, '__builtin__.getattr': history_buffer_method,
    '_codecs.encode': codecs.encode,
    **{name: x for x, name in mmengine_globals()},
    **{f'{x.__module__}.{x.__name__}': x for x in (
        *PLAIN_CLASSES, OrderedDict, torch.Size, torch.device, torch._utils._rebuild_tensor_v2,
        torch._utils._rebuild_parameter)}}
# Replaces the module `pickle` in `torch.load`.
PlainPickle = SimpleNamespace(
    __name__='PlainPickle', Unpickler=PlainUnpickler,
    load=lambda file, **kwargs: PlainUnpickler(file, **kwargs).load())


def is_whole(path: Union[str, Path]) -> bool:
    """Return whether a checkpoint, a zip archive, is complete and its checksums are right."""
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.testzip() is None
    except (OSError, zipfile.BadZipFile):
        return False


@contextlib.contextmanager
def readable(path: str) -> Iterator[None]:
    """Convert errors of reading a file inside the block to a ConfigError."""
    try:
        yield
    except (MemoryError, torch.cuda.OutOfMemoryError, ImportError):
        raise
    except Exception as error:  # an invalid pickle can raise any error
        unsafe = re.search(UNSAFE_CLASS, str(error))
        if unsafe and isinstance(error, pickle.UnpicklingError):
            raise ConfigError(
                f'{path} asks for {unsafe[1]}, which could run any code: get the weights alone, '
                'or, if you trust who made the file, pass --trust-pickle to groupdetr '
                'convert.') from error
        raise ConfigError(f'{path} cannot be read as a checkpoint ({first_line(error)}): it is '
                          'cut short, damaged, or no checkpoint; fetch it again.') from error


def read_safetensors(path: str) -> Dict[str, Any]:
    """Read a ``.safetensors`` file into ``state_dict`` and ``meta``."""
    import safetensors
    with safetensors.safe_open(path, 'pt') as file:
        state_dict = OrderedDict((name, file.get_tensor(name)) for name in file.keys())
        header = file.metadata() or {}
    state_dict._metadata = {'': json.loads(header.get('model', '{}'))}
    return dict(state_dict=state_dict, meta=json.loads(header.get('meta', '{}')))


def to_safetensors(state_dict: Dict[str, Tensor], meta: Dict[str, Any]) -> bytes:
    """Return the bytes of a ``.safetensors`` file with weights, N and ``dataset_meta``."""
    import safetensors.torch
    meta = {key: meta[key] for key in ('dataset_meta', ) if key in meta}
    model = getattr(state_dict, '_metadata', {}).get('', {})
    return safetensors.torch.save(
        {name: tensor.contiguous().clone() for name, tensor in state_dict.items()},
        metadata=dict(format='pt', meta=json.dumps(meta, default=list), model=json.dumps(model)))
