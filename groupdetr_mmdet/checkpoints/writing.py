"""Write checkpoints, whole or not at all."""
import hashlib
import io
import json
from pathlib import Path
from typing import Any, Dict, Tuple

import torch
from torch import Tensor

from ..host.files import write_atomically
from .reading import SAFETENSORS, import_safetensors


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
    """Return the bytes of a ``.safetensors`` file of weights."""
    safetensors = import_safetensors()
    meta = {key: meta[key] for key in ('dataset_meta', ) if key in meta}
    model = getattr(state_dict, '_metadata', {}).get('', {})
    return safetensors.torch.save(
        {name: tensor.contiguous().clone() for name, tensor in state_dict.items()},
        metadata=dict(format='pt', meta=json.dumps(meta, default=list), model=json.dumps(model)))
