"""Read detectors of Hugging Face's transformers, and reach its hub.

Reading a folder requires ``safetensors``, a name of the hub also ``huggingface_hub``; transformers
is not required.
"""
import contextlib
import json
import re
from collections import OrderedDict
from pathlib import Path
from typing import Any, Dict, Iterator, List, Mapping, Sequence, Tuple

import torch
from mmdet.datasets import CocoDataset
from torch import Tensor, nn

from ..errors import ConfigError
from .names import COCO_IDS, recognize, rename, rules_of
from .reading import SAFETENSORS, load_from_local

HUB = 'hf://'
CONFIG = 'config.json'
WEIGHTS = ('model.safetensors', 'pytorch_model.bin')  # or an index of several files
INDEX = '.index.json'
KINDS = {'conditional_detr': 'ConditionalDETR', 'dab-detr': 'DABDETR',
         'deformable_detr': 'DeformableDETR', 'mask2former': 'Mask2Former'}  # of `model_type`
# Must equal the model's.
SETTINGS_WITHOUT_TENSOR = (
    'encoder_attention_heads', 'decoder_attention_heads', 'num_attention_heads',
    'activation_function', 'temperature_height', 'dilation')
LOSS_WEIGHTS = 'criterion.empty_weight'  # of Mask2Former's classes
FIRST_CONV = 'backbone.conv1.weight'


@contextlib.contextmanager
def reaching_hub(name: str, what: str, instead: str) -> Iterator[None]:
    """Turn errors of ``huggingface_hub``, or of its absence, into a ConfigError."""
    try:
        yield
    except Exception as error:
        reason = ' '.join(str(error).split())[:300].rstrip(' .')
        raise ConfigError(f'{name} cannot be {what} ({type(error).__name__}: {reason}): correct '
                          f'the name, pip install huggingface_hub, or {instead}.') from error


def fetch(name: str, files: Sequence[str]) -> Path:
    """Return the folder of files of ``hf://OWNER/NAME[@REVISION]``, from the hub or its cache."""
    repository, _, revision = name[len(HUB):].partition('@')
    with reaching_hub(name, 'fetched', f'put {CONFIG} and {WEIGHTS[0]} of '
                      f'https://huggingface.co/{repository} into a folder and name the folder'):
        from huggingface_hub import snapshot_download
        return Path(snapshot_download(repository, revision=revision or None, allow_patterns=files))


def load_from_hub(name: str, map_location: Any = None) -> Dict[str, Any]:
    """Read a detector of the hub."""
    return read_folder(fetch(name, [CONFIG, f'*{SAFETENSORS}', f'*{INDEX}']))


def push(folder: Path, name: str) -> str:
    """Upload a folder to ``OWNER/NAME`` of the hub, create that if missing, return its address."""
    with reaching_hub(f'{HUB}{name}', 'written', f'upload {folder}, which is complete, later: hf '
                      f'upload {name} {folder}'):
        from huggingface_hub import HfApi
        place = HfApi().create_repo(name, exist_ok=True)
        HfApi().upload_folder(repo_id=place.repo_id, folder_path=folder)
    return str(place)


def read_folder(folder: Path) -> Dict[str, Any]:
    """Read a folder of transformers into ``state_dict``, under mmdet's names, and ``meta``.

    Heads with a row for every id of COCO keep the rows of the 80 categories.

    Raises:
        ConfigError: If a file is missing, or the folder has another detector than ``KINDS``.
    """
    config = read_json(Path(folder, CONFIG))
    kind = KINDS.get(config.get('model_type'))
    if kind is None:
        raise ConfigError(f'{folder} holds a {config.get("model_type")} of transformers: name a '
                          f'folder of {", ".join(KINDS)}.')
    state_dict = to_mmdet(read_tensors(Path(folder)), kind)
    labels = {int(i): name for i, name in (config.get('id2label') or {}).items()}
    classes = dict(classes=tuple(name for _, name in sorted(labels.items())))
    if (labels.get(COCO_IDS[0]), labels.get(COCO_IDS[-1])) == ('person', 'toothbrush'):
        classes = CocoDataset.METAINFO
        for name in [x for x in state_dict if re.search(r'\.(fc_cls|cls_branches)\.', x)]:
            state_dict[name] = state_dict[name][COCO_IDS]
    state_dict._metadata = {'': dict(num_queries=num_queries_of(config))}
    meta = dict(dataset_meta=classes) if labels else {}
    return dict(state_dict=state_dict, meta=dict(meta, transformers=config))


def num_queries_of(config: Mapping[str, Any]) -> int:
    """Return the number of queries in a ``config.json``."""
    return config.get('two_stage_num_proposals' if config.get('two_stage') else 'num_queries', 300)


def read_json(path: Path) -> Dict[str, Any]:
    """Read a JSON file of a folder of transformers."""
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise ConfigError(f'{path.parent} is no folder of transformers ({path.name}: {error}): '
                          'name a checkpoint file, or a folder that save_pretrained '
                          'wrote.') from error


def read_tensors(folder: Path) -> Dict[str, Tensor]:
    """Read all tensors of a folder, under transformers' names, as float32."""
    weights = next((x for x in WEIGHTS if [*folder.glob(f'{x}*')]), WEIGHTS[0])
    index = folder / f'{weights}{INDEX}'
    files = {*read_json(index)['weight_map'].values()} if index.exists() else {weights}
    tensors: Dict[str, Tensor] = {}
    for file in files:
        held = load_from_local(str(folder / file))
        tensors.update(held.get('state_dict', held))
    tensors.pop(LOSS_WEIGHTS, None)
    return {name: x.float() if x.is_floating_point() else x for name, x in tensors.items()}


def rules_for(tensors: Mapping[str, Tensor], kind: str) -> List[Tuple[str, str]]:
    """Return the rules from transformers' names of a detector's tensors to mmdet's."""
    return rules_of('transformers', kind, sum(
        x.shape[-1] == 1 for name, x in tensors.items()
        if re.fullmatch(r'model\.input_proj\.\d+\.0\.weight', name)))


def to_mmdet(tensors: Mapping[str, Tensor], kind: str) -> Dict[str, Tensor]:
    """Rename tensors of transformers as in mmdet; a shared head gets the names of all layers."""
    rules = rules_for(tensors, kind)
    state_dict = OrderedDict((rename(name, rules), x) for name, x in tensors.items())
    for name in [x for x in state_dict if '.attn.q_proj.' in x]:
        parts = [state_dict.pop(name.replace('q_proj', f'{x}_proj')) for x in 'qkv']
        state_dict[name.replace('q_proj.', 'in_proj_')] = torch.cat(parts)
    layers = {int(x[1]) for x in (re.match(r'decoder\.layers\.(\d+)', y) for y in state_dict) if x}
    for name in [x for x in state_dict if '_branches.0.' in x]:
        for i in layers:
            state_dict.setdefault(name.replace('branches.0', f'branches.{i}'), state_dict[name])
    return state_dict


def fit_model(state_dict: Mapping[str, Tensor], model: nn.Module,
              config: Mapping[str, Any]) -> Dict[str, Tensor]:
    """Convert weights of transformers to a model's order of channels, and remove zero biases.

    Raises:
        ConfigError: If a bias that the model lacks is not zero, or a setting of the model differs
            from ``config``.
    """
    from .transformers_out import settings_of
    for key, x in settings_of(model, recognize(model.state_dict())[1]).items():
        if key in SETTINGS_WITHOUT_TENSOR and config.get(key) not in (None, x):
            raise ConfigError(f'The folder of transformers has {key}={config[key]!r} in {CONFIG}, '
                              f'and the model of CONFIG has {x!r}: change the model.')
    fitted = in_order_of(model, state_dict)
    own = model.state_dict()
    for name in [x for x in fitted if re.match(r'neck\..*conv\.bias', x) and x not in own]:
        if fitted.pop(name).any():
            raise ConfigError(f'{name} is not zero in the weights of transformers, and the model '
                              'has no such bias: set model.neck.bias=True.')
    return fitted


def in_order_of(model: nn.Module, state_dict: Mapping[str, Tensor]) -> Dict[str, Tensor]:
    """Reverse the first convolution's channels if the model reads BGR."""
    turned = OrderedDict(state_dict)
    turned._metadata = getattr(state_dict, '_metadata', {})
    if FIRST_CONV in turned and not getattr(model.data_preprocessor, '_channel_conversion', True):
        turned[FIRST_CONV] = turned[FIRST_CONV].flip(1)
    return turned
