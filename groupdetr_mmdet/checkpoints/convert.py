"""Convert checkpoints between codebases, numbers of groups, and our and mmdet's detectors.

The config determines the result: the model is built from it on the meta device, and an error lists
tensors that do not fit.
"""
import argparse
import ast
import hashlib
import io
import re
from collections import Counter, OrderedDict
from pathlib import Path
from typing import Any, Dict, List, Mapping, NamedTuple, Optional, Tuple

import torch
from mmdet.datasets import CocoDataset
from mmengine.config import ConfigDict
from torch import Tensor, nn

from ..errors import ConfigError
from ..io import write_atomically
from .loading import CLASS_LAYERS, copy_tensors, count_classes
from .names import COCO_IDS, CONFIGS, SOURCES, recognize, rename, rules_of
from .reading import SAFETENSORS, to_safetensors
from .stock import build_without_memory, one_group, stock_model
from .transformers import fit_model

COCO_ID_ROWS = (91, 92)  # official heads have a row for every category id, 0 to 90
LABEL_EMBEDDING = '.label_embedding.'  # of noisy labels
# Constants of normalization and losses, which our models take from the config.
NO_WEIGHTS = re.compile(r'(^|\.)pixel_(mean|std)$|^criterion\.|^data_preprocessor\.(mean|std)$')
OWN_NAMES = ('transformers', 'mmdet', 'ours')  # sources read under mmdet's tensor names
EMA_KEYS = ('ema_state', 'ema_model', 'model_ema')  # averaged weights in other codebases
KEPT = 'kept'  # action on a tensor


class Found(NamedTuple):
    """Content of a checkpoint file."""
    source: str  # a key of SOURCES
    detector: str  # a key of CONFIGS, or the class of another detector
    entry: str  # the file's entry with the tensors
    tensors: Dict[str, Tensor]  # under the file's own names
    num_queries: Optional[int]  # N, if the file has it
    notes: List[str]  # remarks for the user


class Converted(NamedTuple):
    """A converted checkpoint and the report on it."""
    state_dict: Dict[str, Tensor]  # under mmdet's names
    meta: Dict[str, Any]  # mmengine's ``meta``
    state: Dict[str, Any]  # of the training, if the model is unchanged
    report: List[str]  # lines on source and result
    actions: List[Tuple[str, str, str]]  # of each tensor: old name, new name, action

    def write(self, path: Path, add_hash: bool = False) -> Tuple[Path, int]:
        """Write the checkpoint, whole or not at all; return its path and its size in bytes.

        A path that ends in ``.safetensors`` chooses that format, which keeps tensors, N and the
        classes. ``add_hash`` adds 8 digits of the SHA-256 to the name, as in mmdet's model zoo.
        """
        if path.suffix == SAFETENSORS:
            data = to_safetensors(self.state_dict, self.meta)
        else:
            buffer = io.BytesIO()
            torch.save(dict(self.state, meta=self.meta, state_dict=self.state_dict), buffer)
            data = buffer.getvalue()
        if add_hash:
            path = path.with_name(
                f'{path.stem}-{hashlib.sha256(data).hexdigest()[:8]}{path.suffix}')
        write_atomically(path, data)
        return path, len(data)


def convert(checkpoint: Any, model: ConfigDict, source: Optional[str] = None, to: str = 'ours',
            num_queries: Optional[int] = None, query_group: int = 0,
            noise: Optional[float] = None, seed: int = 0, publish: bool = False) -> Converted:
    """Convert a checkpoint for the detector of a config.

    Args:
        checkpoint (Any): Content of the file, from :func:`reading.read_checkpoint`.
        model (ConfigDict): Config of a detector with groups.
        source (str, optional): A key of ``SOURCES``. Defaults to the source that the names of the
            tensors show.
        to (str): 'ours'; 'mmdet', the stock detector; or 'transformers', our detector with one
            group. Defaults to 'ours'.
        num_queries (int, optional): Queries of one group, if the file has no or a wrong number.
        query_group (int): Group of the file to keep in a detector without groups. Defaults to 0.
        noise (float, optional): ``new_group_noise`` of :class:`GroupQueries`. Defaults to the
            model's.
        seed (int): Seed of the noise. Defaults to 0.
        publish (bool): Take averaged weights if there are any, and drop the training's state.
            Defaults to False.

    Returns:
        Converted: The checkpoint and the report.

    Raises:
        ConfigError: If the file is of another detector or has numbers that are not finite, a
            tensor is left over, missing or of another shape, or the numbers of queries differ.
    """
    target = build_without_memory(
        model if noise is None else dict(model, new_group_noise=noise))
    found = find_tensors(checkpoint, target, source, publish, num_queries)
    num_queries = target.num_queries
    tensors, history, left_out = rename_tensors(found, target)
    classes_cut = cut_classes(tensors, target, history, found.source)
    saved = {name: tensors[name] for name, _ in target.group_parameters() if name in tensors}
    groups, new_groups = target.count_saved_groups(saved), target.num_query_groups
    noise = target.new_group_noise
    if to != 'ours':  # all groups of the file, to choose one
        target = build_without_memory(dict(one_group(model), num_query_groups=groups))
    adapted = target.adapt_groups(saved, dict(num_queries=found.num_queries), seed)
    how = 'first groups kept' if groups > new_groups else f'groups repeated, noise {noise}'
    if to != 'ours':
        if query_group not in range(groups):
            raise ConfigError(f'--query-group {query_group} is not one of the groups: choose 0 to '
                              f'{groups - 1}.')
        adapted = {name: x.chunk(groups)[query_group].clone() for name, x in adapted.items()}
        kept = stock_model(model) if to == 'mmdet' else one_group(model)
        how, target = f'group {query_group} kept', build_without_memory(kept)
    same_groups = to == 'ours' and groups == new_groups
    for name in adapted:
        tensors[name] = adapted[name]
        history[name] += [how] * (not same_groups)
    check_tensors(tensors, history, target, found)
    meta = dict(entry_of(checkpoint, 'meta'))
    meta.pop('transformers', None)  # fit_model has used it
    if found.source != to or not same_groups:
        meta.pop('cfg', None)  # the config of another model
    if classes_cut:
        meta['dataset_meta'] = CocoDataset.METAINFO
    state_dict = OrderedDict((name, tensors[name]) for name in target.state_dict())
    state_dict._metadata = target.state_dict()._metadata
    state = {}
    if found.source == 'ours' and same_groups and not publish:
        state = {key: x for key, x in checkpoint.items() if key not in ('state_dict', 'meta')}
    report = describe(found, target, groups, num_queries, classes_cut)
    actions = [(origin, name, ', '.join(how)) for name, (origin, *how) in history.items()]
    return Converted(state_dict, meta, state, report, actions + left_out)


# The content of the file


def entry_of(checkpoint: Any, key: str) -> Mapping:
    """Return a checkpoint's entry as a mapping, empty if it is missing or something else."""
    value = checkpoint.get(key) if isinstance(checkpoint, Mapping) else None
    value = vars(value) if isinstance(value, argparse.Namespace) else value
    return value if isinstance(value, Mapping) else {}


def find_tensors(checkpoint: Any, target: nn.Module, source: Optional[str], averaged: bool,
                 num_queries: Optional[int]) -> Found:
    """Find a checkpoint's tensors, with ``averaged`` the averaged weights, and their metadata.

    mmengine's ``EMAHook`` puts the averaged weights under ``state_dict`` and the trained weights
    under ``ema_state_dict``; other codebases put the averaged weights under ``EMA_KEYS``.
    """
    keys = EMA_KEYS * averaged + ('model', 'state_dict')
    entry = next((key for key in keys if entry_of(checkpoint, key)), None)
    tensors = copy_tensors(entry_of(checkpoint, entry) if entry else checkpoint, 'SRC')
    marked, detector = recognize_for(target, tensors, source)
    if config := entry_of(checkpoint, 'meta').get('transformers'):
        marked, tensors = 'transformers', fit_model(tensors, target, config)
    cfg, args = model_config(checkpoint), entry_of(checkpoint, 'args')
    metadata = getattr(tensors, '_metadata', {}).get('', {})
    is_ours = 'num_query_groups' in cfg or str(cfg.get('type')).startswith('Group')
    if marked == 'mmdet' and ('num_queries' in metadata or is_ours):
        marked = 'ours'
    num_queries = check_queries(target.num_queries, {
        '--num-queries': num_queries, 'in the file': metadata.get('num_queries'),
        "by the file's args": None if is_ours else args.get('num_queries'),
        "by the file's config": cfg.get('num_queries')})
    notes = []
    if averaged:
        has_any = entry in EMA_KEYS or 'ema_state_dict' in checkpoint
        notes.append('averaged weights (EMA) are taken' if has_any else
                     'the file has no averaged weights (EMA)')
    if args.get('dilation'):
        notes.append('trained with a dilated last stage (DC5): use a config that has it, the '
                     'tensors do not show it')
    return Found(source or marked, detector, entry or 'the file itself', tensors, num_queries,
                 notes)


def recognize_for(target: nn.Module, tensors: Mapping[str, Tensor],
                  source: Optional[str]) -> Tuple[Optional[str], str]:
    """Return codebase and detector of the tensors.

    Raises:
        ConfigError: If they are unknown, or of another detector than ``target``.
    """
    marked, detector = recognize(tensors)
    expected = recognize(target.state_dict())[1] or type(target).__name__
    if not (marked or source):
        raise ConfigError(f'The tensors ({", ".join(list(tensors)[:3])}, ...) have the names of '
                          f'none of {", ".join(SOURCES)}: name the right file, or add --from.')
    if marked and detector != expected:
        raise ConfigError(f'SRC holds a {detector} and CONFIG builds a {expected}: name a config '
                          f'such as {CONFIGS[detector]}, or another SRC.')
    return marked, expected


def check_queries(expected: int, recorded: Dict[str, Optional[int]]) -> Optional[int]:
    """Return the first N in ``recorded``, which has a number or None for each source.

    Raises:
        ConfigError: If it differs from the config's N, ``expected``.
    """
    by, number = next(((by, x) for by, x in recorded.items() if x), ('', None))
    if number not in (None, expected):
        raise ConfigError(
            f'SRC has groups of {number} queries ({by}), CONFIG has model.num_queries={expected}: '
            f'add --cfg-options model.num_queries={number}, or the right --num-queries.')
    return number


def model_config(checkpoint: Any) -> Dict[str, Any]:
    """Return the constants of ``model = dict(...)`` in the config that mmengine saves.

    The config is code of the file's author: it is parsed, never run. If parts of the model have
    equal names, the outermost counts; Mask2Former has N in ``panoptic_head``.
    """
    try:
        program = ast.parse(str(entry_of(checkpoint, 'meta').get('cfg') or ''))
    except (SyntaxError, ValueError):
        return {}
    models = [node.value for node in program.body
              if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == 'model']
    return {x.arg: x.value.value for model in models for x in reversed([*ast.walk(model)])
            if isinstance(x, ast.keyword) and isinstance(x.value, ast.Constant)}


# Changes of the tensors


def rename_tensors(found: Found,
                   target: nn.Module) -> Tuple[Dict[str, Tensor], Dict[str, List[str]], list]:
    """Rename the tensors as in mmdet.

    Returns:
        tuple[dict, dict, list]: Tensors by name; by name a list of the old name and the actions;
        and the actions on tensors left out.

    Raises:
        ConfigError: If two different tensors get the same name.
    """
    num_convs = sum(bool(re.fullmatch(r'neck\.convs\.\d+\.conv\.weight', name))
                    for name in target.state_dict())
    rules = [] if found.source in OWN_NAMES else rules_of(
        found.source, found.detector, num_convs, target.decoder.num_layers)
    tensors, history, left_out = {}, {}, []
    for origin, tensor in found.tensors.items():
        name = rename(origin, rules)
        if NO_WEIGHTS.search(origin):
            left_out.append((origin, '-', 'left out, no weight'))
        elif name not in tensors:
            tensors[name], history[name] = tensor, [origin, 'renamed' if name != origin else KEPT]
        elif torch.equal(tensor, tensors[name]):
            left_out.append((origin, '-', 'left out, held twice'))
        else:
            raise ConfigError(f'{history[name][0]} and {origin} both become {name}: --from '
                              f'{found.source} does not fit the file.')
    return tensors, history, left_out


def cut_classes(tensors: Dict[str, Tensor], target: nn.Module, history: Dict[str, List[str]],
                source: str) -> bool:
    """Keep the rows of the 80 categories in layers with a row for every COCO id, in place.

    Label embeddings have one more row, of no class; DN-DETR uses it. Returns whether any layer
    was cut.

    Raises:
        ConfigError: If the number of classes then differs from the detector's.
    """
    own = target.state_dict()
    num_classes, was_cut = count_classes(own), False
    layers = [] if source in OWN_NAMES else [
        name for name in tensors if name in own and CLASS_LAYERS.search(name)]
    for name in layers:
        rows = tensors[name]
        no_class = LABEL_EMBEDDING in name and len(own[name]) > num_classes
        if num_classes == len(COCO_IDS) and len(rows) in COCO_ID_ROWS:
            tensors[name], was_cut = rows[COCO_IDS + [-1] * no_class], True
        elif LABEL_EMBEDDING in name:
            tensors[name] = rows[:len(own[name])]
        if len(tensors[name]) != len(rows):
            history[name].append(f'{len(rows)} rows cut to {len(tensors[name])}')
    saved = count_classes(tensors)
    if saved and num_classes and saved != num_classes:
        raise ConfigError(f'SRC has {saved} classes and CONFIG {num_classes}: set num_classes to '
                          f'{saved}, or train with load_from=SRC, which starts new '
                          'classification layers.')
    return was_cut


def check_tensors(tensors: Dict[str, Tensor], history: Dict[str, List[str]], target: nn.Module,
                  found: Found) -> None:
    """Check that the tensors are exactly the model's; add missing BatchNorm counters.

    Raises:
        ConfigError: If a tensor is missing, left over or of another shape, or the names of a
            shared parameter have different tensors.
    """
    expected = target.state_dict()
    for name in [x for x in expected if x not in tensors]:
        if name.endswith('.num_batches_tracked'):
            tensors[name] = torch.tensor(0)  # never read: statistics are frozen
            history[name] = ['-', 'added, zero']
    differences = {
        'left over': [history[name][0] for name in tensors if name not in expected],
        'missing': [name for name in expected if name not in tensors],
        'of another shape': [
            f'{history[name][0]}: {tuple(tensors[name].shape)}, should be {tuple(x.shape)}'
            for name, x in expected.items() if name in tensors and x.shape != tensors[name].shape]}
    if any(differences.values()):
        lists = '\n'.join(f'  {len(lines)} {kind}:\n    ' + '\n    '.join(lines)
                          for kind, lines in differences.items() if lines)
        raise ConfigError(f'SRC, read as {found.source}, does not fit the {type(target).__name__} '
                          f'of CONFIG: take another config, or another --from.\n{lists}')
    names: Dict[nn.Parameter, str] = {}
    for name, parameter in target.named_parameters(remove_duplicate=False):
        first = names.setdefault(parameter, name)
        if not torch.equal(tensors[first], tensors[name]):
            raise ConfigError(f'SRC has different numbers in {first} and {name}, which share a '
                              'layer in the detector of CONFIG: if SRC refines boxes, set '
                              'model.with_box_refine=True.')


# The report


def describe(found: Found, target: nn.Module, groups: int, num_queries: int,
             classes_cut: bool) -> List[str]:
    """Return the lines of the report on source and result."""
    classes = str(count_classes(target.state_dict()))
    if classes_cut:
        classes = f'rows of {COCO_ID_ROWS[0]} COCO ids, cut to the {classes} categories'
    new_groups = getattr(target, 'num_query_groups', None)
    kind, kept = ('', f', num_query_groups={new_groups}') if new_groups else ('mmdet ', '')
    return [
        f'Source   : {found.detector} of {SOURCES[found.source]} ({found.source}), '
        f'{len(found.tensors)} tensors in {found.entry}',
        f'Groups   : {groups} x {num_queries}', f'Classes  : {classes}',
        *(f'Note     : {note}' for note in found.notes),
        f'Result   : {kind}{type(target).__name__}, num_queries={num_queries}{kept}']


def summarize(actions: List[Tuple[str, str, str]]) -> List[Tuple[str, str, str]]:
    """Merge rows whose names differ in numbers alone, and all rows of kept tensors."""
    kept = sum(how == KEPT for *_, how in actions)
    counts = Counter((*(re.sub(r'\d+', '*', x.rpartition('.')[0] or x) for x in names), how)
                     for *names, how in actions if how != KEPT)
    rows = [(origin, name, f'{count} {how}') for (origin, name, how), count in counts.items()]
    return rows + [('all others' if rows else 'all', 'same', f'{kept} {KEPT}')] * bool(kept)
