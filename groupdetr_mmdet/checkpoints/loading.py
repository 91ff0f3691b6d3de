"""Read checkpoints of other people without running their code, and write whole files."""
import argparse
import contextlib
import copy
import hashlib
import io
import json
import os
import pickle
import re
from collections import OrderedDict
from pathlib import Path
from typing import Any, ContextManager, Dict, Iterator, Tuple
from urllib.error import URLError

import numpy as np
import torch
from mmengine.runner import CheckpointLoader
from torch import Tensor, nn
from torch.nn.modules.utils import consume_prefix_in_state_dict_if_present

from ..errors import ConfigError
from ..host.files import write_atomically
from ..host.preflight import check_path

SAFETENSORS = '.safetensors'
PICKLE_SWITCHES = ('TORCH_FORCE_WEIGHTS_ONLY_LOAD', 'TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD')
# Beside what mmengine's checkpoints hold, which compat.py allows: the official code's arguments,
# and numpy scalars of any kind.
PLAIN_CLASSES = [
    argparse.Namespace, np.ndarray, np.dtype,
    *{type(np.dtype(kind)) for kind in '?bhilqBHILQefdgFDGSUMm'}
]


@contextlib.contextmanager
def safe_loading(trust_pickle: bool = False) -> Iterator[None]:
    """Let every ``torch.load`` inside read tensors and plain classes only.

    The environment variables are PyTorch's own switch, and the only one that reaches
    ``torch.hub``: it asks for the unsafe way, and mmengine loads every URL through it.

    Args:
        trust_pickle (bool): Run whatever the file asks for instead. Defaults to False.
    """
    before = {name: os.environ.pop(name, None) for name in PICKLE_SWITCHES}
    os.environ[PICKLE_SWITCHES[trust_pickle]] = '1'
    try:
        with allow_plain_classes():
            yield
    finally:
        del os.environ[PICKLE_SWITCHES[trust_pickle]]
        os.environ.update((name, value) for name, value in before.items() if value is not None)


def allow_plain_classes() -> ContextManager:
    """Allow ``PLAIN_CLASSES``; on its way out PyTorch's context forgets all that it was given."""
    serialization = torch.serialization
    if not hasattr(serialization, 'safe_globals'):  # before PyTorch 2.5
        return contextlib.nullcontext()
    allowed = serialization.get_safe_globals()
    return serialization.safe_globals([x for x in PLAIN_CLASSES if x not in allowed])


@contextlib.contextmanager
def readable(path: str) -> Iterator[None]:
    """Turn the faults of a checkpoint that is loaded inside into sentences.

    Args:
        path (str): Path or URL of the checkpoint.

    Raises:
        ConfigError: If the file is missing, cut short, no checkpoint, or wants to run code.
    """
    check_path('CHECKPOINT', path)
    try:
        yield
    except pickle.UnpicklingError as error:
        wanted = re.search(r"(?:GLOBAL|[Uu]nsupported class|but got <class|read the attribute) "
                           r"'?([\w.]+)", str(error))
        if not wanted:
            raise ConfigError(f'{path} is not a checkpoint of PyTorch: name the file of the '
                              'weights.') from error
        raise ConfigError(
            f'{path} holds more than tensors and plain values, it asks for {wanted[1]}, which '
            'could run any code: it is refused; get the weights alone, or, if you trust who made '
            'it, pass --trust-pickle to tools/convert_checkpoint.py.') from error
    except URLError as error:
        raise ConfigError(f'{path} cannot be fetched ({error}): correct the address, or download '
                          'the file and name its path.') from error
    except (EOFError, OSError, RuntimeError) as error:
        if isinstance(error, torch.cuda.OutOfMemoryError):
            raise
        raise ConfigError(f'{path} cannot be read as a checkpoint ({first_sentence(error)}): it '
                          'is cut short, damaged, or no checkpoint; fetch it again.') from error


def first_sentence(error: Exception) -> str:
    return re.split(r'\.\s|\n', str(error).strip() or type(error).__name__)[0].rstrip('.:')


def read_checkpoint(path: str, trust_pickle: bool = False) -> Any:
    """Read a checkpoint from a path or URL onto the CPU.

    Args:
        path (str): Local path or any address that mmengine's loader knows. ``.safetensors`` is
            read from local paths.
        trust_pickle (bool): Run the code that the file asks for. Defaults to False.

    Returns:
        Any: What the file holds. A ``.safetensors`` file gives the dictionary of
        :func:`write_checkpoint`.

    Raises:
        ConfigError: As for :func:`readable`.
    """
    path = str(path)
    if path.endswith(SAFETENSORS):
        return read_safetensors(path)
    with readable(path), safe_loading(trust_pickle):
        return CheckpointLoader.load_checkpoint(path, map_location='cpu', logger='silent')


def read_safetensors(path: str) -> Dict[str, Any]:
    safetensors = import_safetensors()
    check_path('CHECKPOINT', path)
    try:
        with safetensors.safe_open(path, 'pt') as file:
            state_dict = OrderedDict((name, file.get_tensor(name)) for name in file.keys())
            header = file.metadata() or {}
    except (safetensors.SafetensorError, OSError) as error:
        raise ConfigError(f'{path} cannot be read as {SAFETENSORS} ({first_sentence(error)}): it '
                          'is cut short, or another kind of file; fetch it again.') from error
    state_dict._metadata = {'': json.loads(header.get('model', '{}'))}
    return dict(state_dict=state_dict, meta=json.loads(header.get('meta', '{}')))


def write_checkpoint(path: Path, state_dict: Dict[str, Tensor], meta: Dict[str, Any],
                     add_hash: bool = False, **state: Any) -> Tuple[Path, int]:
    """Write a checkpoint, whole or not at all.

    Args:
        path (Path): Its name; the suffix ``.safetensors`` chooses that format, which keeps the
            tensors, the number of queries in a group, and ``dataset_meta`` of ``meta``.
        state_dict (dict[str, Tensor]): The tensors.
        meta (dict): What else the file says of the model.
        add_hash (bool): Whether the name gets the first 8 digits of the content's SHA-256, as
            mmdet's model zoo writes it. Defaults to False.
        state: Further entries, such as the optimizer's.

    Returns:
        tuple[Path, int]: The path of the file and its size in bytes.
    """
    if path.suffix == SAFETENSORS:
        data = to_safetensors(state_dict, meta)
    else:
        buffer = io.BytesIO()
        torch.save(dict(state, meta=meta, state_dict=state_dict), buffer)
        data = buffer.getvalue()
    if add_hash:
        path = path.with_name(f'{path.stem}-{hashlib.sha256(data).hexdigest()[:8]}{path.suffix}')
    write_atomically(path, data)
    return path, len(data)


def to_safetensors(state_dict: Dict[str, Tensor], meta: Dict[str, Any]) -> bytes:
    safetensors = import_safetensors()
    meta = {key: meta[key] for key in ('dataset_meta', ) if key in meta}
    model = getattr(state_dict, '_metadata', {}).get('', {})
    return safetensors.torch.save(
        {name: tensor.contiguous().clone() for name, tensor in state_dict.items()},
        metadata=dict(format='pt', meta=json.dumps(meta, default=list), model=json.dumps(model)))


def import_safetensors() -> Any:
    try:
        import safetensors.torch
    except ImportError as error:
        raise ConfigError(f'Files that end in {SAFETENSORS} need the package safetensors: run pip '
                          'install safetensors, or use a name that ends in .pth.') from error
    return safetensors


def load_weights(model: nn.Module, checkpoint: Any, path: str) -> None:
    """Load a checkpoint's weights into a model, all of them or none.

    mmengine's loaders report a tensor that does not fit in the log and go on. As in theirs, the
    prefix ``module.`` of a distributed model's tensors is left out.

    Args:
        model (nn.Module): Gets the weights.
        checkpoint (Any): What :func:`read_checkpoint` returns.
        path (str): Where it was read, for the error message.

    Raises:
        ConfigError: If a tensor is left over, missing or of another shape.
    """
    state_dict = checkpoint.get('state_dict', checkpoint) if isinstance(checkpoint, dict) else {}
    state_dict = copy.copy(state_dict)
    consume_prefix_in_state_dict_if_present(state_dict, 'module.')
    fix = 'use the config that it was trained with, or convert it by tools/convert_checkpoint.py.'
    try:
        missing, left_over = model.load_state_dict(state_dict, strict=False)
    except RuntimeError as error:
        reason = str(error).splitlines()[1].strip().rstrip('.')
        raise ConfigError(f'{path} does not fit the config ({reason}): {fix}') from error
    missing = [name for name in missing if not name.endswith('.num_batches_tracked')]
    if missing or left_over:
        names = ', '.join(([f'it has no {missing[0]}'] if missing else []) +
                          ([f'the model has no {left_over[0]}'] if left_over else []))
        raise ConfigError(f'{path} does not fit the config ({names}; {len(missing)} tensors are '
                          f'missing and {len(left_over)} left over): {fix}')
