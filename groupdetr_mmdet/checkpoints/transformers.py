"""Read detectors of Hugging Face's transformers.

Reading a folder requires ``safetensors``, a name of the hub also ``huggingface_hub``; transformers
is not required.
"""
import json
import re
from collections import OrderedDict
from pathlib import Path
from typing import Any, Dict, List, Mapping

import torch
from mmdet.datasets import CocoDataset
from torch import Tensor, nn

from ..errors import ConfigError, first_line
from .names import COCO_IDS, recognize
from .reading import SAFETENSORS, load_from_local
from .transformers_names import (BACKBONE, DETECTORS, TIMM, Row, level_rows, resnet_rows,
                                 to_ours)

HUB = 'hf://'
CONFIG = 'config.json'
WEIGHTS = ('model.safetensors', 'pytorch_model.bin')  # or an index of several files
INDEX = '.index.json'
KINDS = {'conditional_detr': 'ConditionalDETR', 'dab-detr': 'DABDETR',
         'deformable_detr': 'DeformableDETR', 'mask2former': 'Mask2Former'}  # of `model_type`
CLASS_LAYERS = re.compile(r'bbox_head\.(fc_cls|cls_branches)\.')
# Settings without a tensor, which must equal the model's.
UNSEEN = ('encoder_attention_heads', 'decoder_attention_heads', 'activation_function',
          'temperature_height')
LOSS_WEIGHTS = 'criterion.empty_weight'  # of Mask2Former's classes
FIRST_CONV = 'backbone.conv1.weight'


def load_from_hub(name: str, map_location: Any = None) -> Dict[str, Any]:
    """Read ``hf://OWNER/NAME``, or ``hf://OWNER/NAME@REVISION``, from the hub or its cache."""
    repository, _, revision = name[len(HUB):].partition('@')
    try:
        from huggingface_hub import snapshot_download
        folder = snapshot_download(repository, revision=revision or None, allow_patterns=[
            CONFIG, f'*{SAFETENSORS}', f'*{INDEX}'])
    except Exception as error:  # network, name, or a missing library
        raise ConfigError(
            f'{name} cannot be fetched ({type(error).__name__}: {first_line(error)}): correct '
            f'the name, pip install huggingface_hub, or put {CONFIG} and {WEIGHTS[0]} of '
            f'https://huggingface.co/{repository} into a folder and name the folder.') from error
    return read_folder(folder)


def read_folder(folder: str) -> Dict[str, Any]:
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
        for name in filter(CLASS_LAYERS.search, state_dict):
            state_dict[name] = state_dict[name][COCO_IDS]
    key = 'two_stage_num_proposals' if config.get('two_stage') else 'num_queries'
    state_dict._metadata = {'': dict(num_queries=config.get(key, 300))}
    meta = dict(dataset_meta=classes) if labels else {}
    return dict(state_dict=state_dict, meta=dict(meta, transformers=config))


def read_json(path: Path) -> Dict[str, Any]:
    """Read a JSON file of a folder of transformers."""
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise ConfigError(f'{path.parent} is no folder of transformers ({path.name}: '
                          f'{first_line(error)}): name a checkpoint file, or a folder that '
                          'save_pretrained wrote.') from error


def read_tensors(folder: Path) -> Dict[str, Tensor]:
    """Read all tensors of a folder, under transformers' names, as float32."""
    files = [x for x in WEIGHTS if (folder / x).exists()][:1]
    index = next((folder / f'{x}{INDEX}' for x in WEIGHTS if (folder / f'{x}{INDEX}').exists()), 0)
    if index and not files:
        files = sorted(set(read_json(index)['weight_map'].values()))
    lacking = [x for x in files or WEIGHTS[:1] if not (folder / x).exists()]
    if lacking:
        raise ConfigError(f'{folder} has no {lacking[0]}: fetch the whole folder again.')
    tensors: Dict[str, Tensor] = {}
    for file in files:
        held = load_from_local(str(folder / file))
        tensors.update(held.get('state_dict', held))
    tensors.pop(LOSS_WEIGHTS, None)
    return {name: x.float() if x.is_floating_point() else x for name, x in tensors.items()}


def to_mmdet(tensors: Mapping[str, Tensor], kind: str) -> Dict[str, Tensor]:
    """Rename tensors of transformers as in mmdet; a shared head gets the names of all layers."""
    num_convs = sum(x.shape[-1] == 1 for name, x in tensors.items()
                    if re.fullmatch(r'model\.input_proj\.\d+\.0\.weight', name))
    rows = rows_of(kind, num_convs, f'{BACKBONE}.conv1.weight' in tensors)
    state_dict = OrderedDict((to_ours(name, rows), x) for name, x in tensors.items())
    for name in [x for x in state_dict if '.attn.q_proj.' in x]:
        parts = [state_dict.pop(name.replace('q_proj', f'{x}_proj')) for x in 'qkv']
        state_dict[name.replace('q_proj.', 'in_proj_')] = torch.cat(parts)
    layers = {int(x[1]) for x in (re.match(r'decoder\.layers\.(\d+)', y) for y in state_dict) if x}
    for name in [x for x in state_dict if re.search(r'_branches\.0\.', x)]:
        for i in layers:
            state_dict.setdefault(name.replace('branches.0', f'branches.{i}'), state_dict[name])
    return state_dict


def rows_of(kind: str, num_convs: int, is_timm: bool = False) -> List[Row]:
    """Return the rows of a detector whose neck has ``num_convs`` levels from the backbone."""
    if kind == 'Mask2Former':
        return DETECTORS[kind][1]
    levels = level_rows(num_convs) if 'Deformable' in kind else []
    return (TIMM if is_timm else resnet_rows()) + levels + DETECTORS[kind][1]


def fit_model(state_dict: Mapping[str, Tensor], model: nn.Module,
              config: Mapping[str, Any]) -> Dict[str, Tensor]:
    """Convert weights of transformers to a model's order of channels, and remove zero biases.

    Raises:
        ConfigError: If a bias that the model lacks is not zero, or a setting of the model differs
            from ``config``.
    """
    check_settings(model, config)
    fitted = in_order_of(model, state_dict)
    own = model.state_dict()
    for name in [x for x in fitted if re.match(r'neck\..*conv\.bias', x) and x not in own]:
        if fitted.pop(name).any():
            raise ConfigError(f'{name} is not zero in the weights of transformers, and the model '
                              'has no such bias: set model.neck.bias=True.')
    return fitted


def check_settings(model: nn.Module, config: Mapping[str, Any]) -> None:
    """Raise a ConfigError if a setting without a tensor differs from the model's."""
    from .transformers_out import detr_settings
    kind = recognize(model.state_dict())[1]
    if kind not in DETECTORS or kind == 'Mask2Former':
        return
    own = dict(detr_settings(model, kind), dilation=max(
        getattr(model.backbone, 'dilations', None) or [1]) > 1)
    for key in (*UNSEEN, 'dilation'):
        if key in own and config.get(key) not in (None, own[key]):
            raise ConfigError(f'The folder of transformers has {key}={config[key]!r} in {CONFIG}, '
                              f'and the model of CONFIG has {own[key]!r}: change the model.')


def in_order_of(model: nn.Module, state_dict: Mapping[str, Tensor]) -> Dict[str, Tensor]:
    """Reverse the first convolution's channels if the model reads BGR."""
    turned = OrderedDict(state_dict)
    turned._metadata = getattr(state_dict, '_metadata', {})
    if FIRST_CONV in turned and not getattr(model.data_preprocessor, '_channel_conversion', True):
        turned[FIRST_CONV] = turned[FIRST_CONV].flip(1)
    return turned
