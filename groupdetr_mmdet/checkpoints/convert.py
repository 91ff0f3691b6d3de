"""Convert checkpoints of Conditional DETR: official, detrex, mmdet or ours -> ours or mmdet."""
import ast
import re
from collections import Counter, OrderedDict
from typing import Any, Dict, List, Mapping, NamedTuple, Optional, Tuple

import torch
from mmdet.datasets import CocoDataset
from torch import Tensor

from ..errors import ConfigError
from ..group_queries import QUERY_EMBEDDING, repeat_groups
from ..groups import check_num_query_groups, group_rows
from .architecture import Architecture, compare, expected_shapes, read_architecture
from .names import DETREX_NAMES, OFFICIAL_NAMES, Rules, rename

RULES: Dict[str, Rules] = dict(
    official=OFFICIAL_NAMES, detrex=DETREX_NAMES, mmdet=(), ours=())
# A tensor that every checkpoint of a source has and no checkpoint of another.
MARKS = dict(
    official='transformer.decoder.layers.0.sa_qcontent_proj.weight',
    detrex='transformer.decoder.layers.0.attentions.0.query_content_proj.weight',
    mmdet='decoder.layers.0.self_attn.qcontent_proj.weight')
OFFICIAL_QUERIES = 300  # of one group, in every published model of the official code and detrex
COCO_ID_ROWS = 91  # the official head has a row for every id up to 90, used or not
COCO_IDS = sorted(set(range(1, 91)) - {12, 26, 29, 30, 45, 66, 68, 69, 71, 83})
CLASS_LAYER = 'bbox_head.fc_cls.'
# Of frozen statistics and normalization, which our models take from elsewhere.
NO_WEIGHTS = re.compile(r'(^|\.)pixel_(mean|std)$|^criterion\.|^data_preprocessor\.(mean|std)$')
STOCK_WIDTH = 256
KEPT = 'kept'  # as what was done with a tensor


class Found(NamedTuple):
    """What a checkpoint file turned out to hold.

    Attributes:
        source (str): Key of ``RULES``.
        entry (str): Where in the file the tensors are.
        tensors (dict[str, Tensor]): The tensors under the file's own names.
        num_queries (int, optional): Queries of one group, N, where the file says.
        num_query_groups (int, optional): Groups K, where the file says.
        says (str): What in the file says so.
        notes (list[str]): What else the user should know.
    """
    source: str
    entry: str
    tensors: Dict[str, Tensor]
    num_queries: Optional[int]
    num_query_groups: Optional[int]
    says: str
    notes: List[str]


class Converted(NamedTuple):
    """A converted checkpoint and the report on it.

    Attributes:
        state_dict (dict[str, Tensor]): The tensors under mmdet's names.
        meta (dict): Information on the model, as mmengine saves it.
        state (dict): The training's state, where nothing changed that it depends on.
        report (list[str]): Lines on what was found.
        actions (list[tuple]): For every tensor its name in the file, its name in the result
            (each '-' where there is none) and what was done.
    """
    state_dict: Dict[str, Tensor]
    meta: Dict[str, Any]
    state: Dict[str, Any]
    report: List[str]
    actions: List[Tuple[str, str, str]]


def convert(checkpoint: Any,
            source: Optional[str] = None,
            to: str = 'ours',
            num_queries: Optional[int] = None,
            num_query_groups: Optional[int] = None,
            query_group: int = 0,
            noise: float = 0.02,
            seed: int = 0,
            publish: bool = False) -> Converted:
    """Convert a checkpoint.

    Args:
        checkpoint (Any): What the file holds, as :func:`loading.read_checkpoint` returns it.
        source (str, optional): 'official', 'detrex', 'mmdet' or 'ours'; recognized by default.
        to (str): 'ours', or 'mmdet' for the stock detector. Defaults to 'ours'.
        num_queries (int, optional): Queries of one group in the file, where it does not say.
        num_query_groups (int, optional): Groups of the result, and of a file that does not say
            its own. Defaults to those of the file.
        query_group (int): The group that the stock detector gets. Defaults to 0.
        noise (float): Relative noise on groups that are repeated, see
            :func:`checkpoints.repeat_groups`. Defaults to 0.02.
        seed (int): Seed of the noise. Defaults to 0.
        publish (bool): Take averaged weights where there are any, and leave the training's state
            out. Defaults to False.

    Returns:
        Converted: The result.

    Raises:
        ConfigError: If the file is no checkpoint of Conditional DETR, a tensor is left over,
            missing or of another shape, or a number does not fit the file.
    """
    found = inspect(checkpoint, source, publish)
    tensors, origins, actions = rename_tensors(found)
    classes = cut_classes(tensors, found.source, actions)
    arch = complete(tensors, origins, actions, found.source)
    check_layers(arch, arguments(checkpoint))
    size, file_groups, by = split_rows(arch.rows, found, num_queries, num_query_groups)
    groups = check_num_query_groups(num_query_groups or file_groups)
    rows = tensors[QUERY_EMBEDDING]
    rows = repeat_groups(rows, size, groups, noise * rows.std(), seed)
    how = ''
    if groups != file_groups:
        how = 'first groups kept' if groups < file_groups else f'groups repeated, noise {noise}'
    if to == 'mmdet':
        check_stock(arch, query_group, groups)
        rows, how = rows[group_rows(query_group, size)], f'group {query_group} kept'
    tensors[QUERY_EMBEDDING] = rows.clone()
    mark(actions, QUERY_EMBEDDING, how)
    unchanged = found.source == to == 'ours' and not how and not publish
    meta = dict(entry_of(checkpoint, 'meta'))
    if found.source != to:
        meta.pop('cfg', None)  # it builds the other class
    if classes:
        meta['dataset_meta'] = CocoDataset.METAINFO
    report = describe(found, arch, f'{file_groups} x {size}, {by}', classes)
    if to == 'mmdet':
        report.append(f'Result   : mmdet ConditionalDETR, num_queries={size}')
    else:
        report.append(f'Result   : GroupConditionalDETR, num_queries={size}, '
                      f'num_query_groups={groups}')
    return Converted(
        ordered(tensors, size if to == 'ours' else None), meta,
        training_state(checkpoint) if unchanged else {}, report, actions)


def entry_of(checkpoint: Any, key: str) -> Mapping:
    """A checkpoint's entry that should be a dictionary, empty where it is missing."""
    value = checkpoint.get(key) if isinstance(checkpoint, Mapping) else None
    return value if isinstance(value, Mapping) else {}


def training_state(checkpoint: Mapping) -> Dict[str, Any]:
    return {key: value for key, value in checkpoint.items() if key not in ('state_dict', 'meta')}


# What the file holds


def inspect(checkpoint: Any, source: Optional[str], averaged: bool) -> Found:
    """Find the tensors, and what the file says of them.

    mmengine's ``EMAHook`` puts the averaged weights under ``state_dict`` and the others under
    ``ema_state_dict``; detrex puts the averaged ones under ``ema_state``.

    Args:
        checkpoint (Any): What the file holds.
        source (str, optional): The source that the user says.
        averaged (bool): Prefer averaged weights.

    Raises:
        ConfigError: If there are no tensors, or none of the known sources has their names.
    """
    keys = ('ema_state', ) * averaged + ('model', 'state_dict')
    entry = next((key for key in keys if entry_of(checkpoint, key)), None)
    held = entry_of(checkpoint, entry) if entry else checkpoint
    if not isinstance(held, Mapping) or not held or not all(
            isinstance(value, Tensor) for value in held.values()):
        raise ConfigError('The file holds no state dict of tensors, neither as a whole nor under '
                          '"model" or "state_dict": name the file of the weights.')
    prefix = 'module.' if all(name.startswith('module.') for name in held) else ''
    tensors = {name[len(prefix):]: value for name, value in held.items()}
    metadata = getattr(held, '_metadata', {}).get(prefix[:-1], {})
    notes = [] if not averaged else [
        'averaged weights (EMA) are taken' if entry == 'ema_state' or
        'ema_state_dict' in checkpoint else 'the file has no averaged weights (EMA)'
    ]
    if arguments(checkpoint).get('dilation'):
        notes.append('trained with a dilated last stage (DC5): use a config that has it, the '
                     'tensors do not show it')
    return Found(source or recognize(tensors, metadata, checkpoint), entry or 'the file itself',
                 tensors, *said_numbers(checkpoint, metadata), notes)


def recognize(tensors: Mapping[str, Tensor], metadata: Mapping, checkpoint: Any) -> str:
    """Name the source by the tensors; ours are mmdet's with more queries.

    Raises:
        ConfigError: If it is none of the known ones.
    """
    source = next((name for name, mark in MARKS.items() if mark in tensors), None)
    if source is None:
        some = ', '.join(list(tensors)[:3])
        raise ConfigError(f'The tensors ({some}, ...) are named by none of {", ".join(RULES)}: if '
                          'the file is of a Conditional DETR of one of them, say which by --from.')
    if source != 'mmdet':
        return source
    model = model_config(checkpoint)
    if 'num_queries' in metadata or is_ours(model):
        return 'ours'
    num_rows = len(tensors.get(QUERY_EMBEDDING, ()))
    looks_like_groups = num_rows > OFFICIAL_QUERIES and num_rows % OFFICIAL_QUERIES == 0
    return 'ours' if looks_like_groups and not model else 'mmdet'


def said_numbers(checkpoint: Any, metadata: Mapping) -> Tuple[Optional[int], Optional[int], str]:
    """N and K as the file says them: ours in the state dict's metadata, official in ``args``."""
    if 'num_queries' in metadata:
        return metadata['num_queries'], None, 'as the file says'
    model = model_config(checkpoint)
    if is_ours(model):
        return model.get('num_queries'), model.get('num_query_groups'), "by the file's config"
    args = arguments(checkpoint)
    return args.get('num_queries'), args.get('group_detr'), "by the file's args"


def is_ours(model: Mapping) -> bool:
    return 'num_query_groups' in model or model.get('type') == 'GroupConditionalDETR'


def model_config(checkpoint: Any) -> Dict[str, Any]:
    """Plain values of ``model = dict(...)`` in the config that mmengine saves with the weights.

    The config is a program of the file's maker: it is read, and not run.
    """
    try:
        program = ast.parse(str(entry_of(checkpoint, 'meta').get('cfg') or ''))
    except (SyntaxError, ValueError):
        return {}
    calls = [node.value for node in program.body
             if isinstance(node, ast.Assign) and isinstance(node.value, ast.Call) and any(
                 isinstance(target, ast.Name) and target.id == 'model' for target in node.targets)]
    return {keyword.arg: keyword.value.value for call in calls for keyword in call.keywords
            if isinstance(keyword.value, ast.Constant)}


def arguments(checkpoint: Any) -> Mapping:
    """The command's arguments, which the official code saves with the weights."""
    args = checkpoint.get('args') if isinstance(checkpoint, Mapping) else None
    return args if isinstance(args, Mapping) else getattr(args, '__dict__', {})


def split_rows(rows: int, found: Found, num_queries: Optional[int],
               num_query_groups: Optional[int]) -> Tuple[int, int, str]:
    """Split the query embedding into groups.

    Returns:
        tuple[int, int, str]: N and K of the file, and what they are known by.

    Raises:
        ConfigError: If the numbers do not multiply to the rows.
    """
    said = found.num_queries, found.num_query_groups, found.says
    by_file = divide(rows, *said[:2])
    if by_file and num_queries not in (None, by_file[0]):
        raise ConfigError(f'--num-queries {num_queries}: the file has groups of {by_file[0]} '
                          f'({found.says}); leave it out.')
    if not by_file and num_queries:
        said = num_queries, None, 'by --num-queries'
    elif not by_file and num_query_groups and found.source != 'mmdet':
        said = None, num_query_groups, 'by --num-query-groups'
    elif said[:2] == (None, None) and found.source == 'mmdet':
        said = rows, 1, 'the stock detector has one group'
    elif said[:2] == (None, None):
        said = OFFICIAL_QUERIES, None, 'assumed, as in the published models'
    numbers = divide(rows, *said[:2])
    if numbers is None:
        size, groups, by = said
        parts = (f'{groups} groups' if groups else 'groups') + (
            f' of {size} queries' if size else '')
        raise ConfigError(
            f'The query embedding has {rows} rows, which do not divide into {parts} ({by}): say '
            'the numbers of the file by --num-queries or --num-query-groups.')
    return (*numbers, said[2])


def divide(rows: int, size: Optional[int], groups: Optional[int]) -> Optional[Tuple[int, int]]:
    """Return N and K, of which one may be unknown; None if they do not multiply to the rows."""
    if not size and not groups:
        return None
    size = size or rows // groups
    groups = groups or rows // size if size else 0
    return (size, groups) if size and size * groups == rows else None


# What is done with the tensors


def rename_tensors(found: Found) -> Tuple[Dict[str, Tensor], Dict[str, str], list]:
    """Give the tensors mmdet's names.

    Returns:
        tuple: The tensors; for each its name in the file; the list of actions so far.

    Raises:
        ConfigError: If two tensors get the same name.
    """
    tensors, origins, actions = {}, {}, []
    for origin, tensor in found.tensors.items():
        if NO_WEIGHTS.search(origin):
            actions.append((origin, '-', 'left out, no weight'))
            continue
        name = rename(origin, RULES[found.source])
        if name in tensors:
            raise ConfigError(f'{origins[name]} and {origin} both become {name}: --from '
                              f'{found.source} does not fit the file.')
        tensors[name], origins[name] = tensor, origin
        actions.append((origin, name, 'renamed' if name != origin else KEPT))
    return tensors, origins, actions


def cut_classes(tensors: Dict[str, Tensor], source: str, actions: list) -> bool:
    """Cut a head with a row for every COCO id, in place, and return whether it was one."""
    names = [name for name in (f'{CLASS_LAYER}weight', f'{CLASS_LAYER}bias') if name in tensors]
    if source not in ('official', 'detrex') or any(
            len(tensors[name]) != COCO_ID_ROWS for name in names):
        return False
    for name in names:
        tensors[name] = tensors[name][COCO_IDS]
        mark(actions, name, f'{COCO_ID_ROWS} rows cut to {len(COCO_IDS)}')
    return bool(names)


def mark(actions: list, name: str, what: str) -> None:
    """Add to what was done with the tensor that is now called ``name``."""
    for i, (origin, new_name, how) in enumerate(actions):
        if new_name == name and what:
            actions[i] = (origin, new_name, f'{how}, {what}')


def complete(tensors: Dict[str, Tensor], origins: Dict[str, str], actions: list,
             source: str) -> Architecture:
    """Check that all tensors are there and no other, and add BatchNorm's counters.

    Raises:
        ConfigError: If a tensor is left over, missing or of another shape; it lists them.
    """
    arch = read_architecture(tensors)
    shapes = expected_shapes(arch)
    if not arch.depth and not RULES[source]:  # names of ResNets are all that can be renamed
        shapes.update((name, tuple(tensor.shape)) for name, tensor in tensors.items()
                      if name.startswith('backbone.'))
    for name in shapes:
        if name.endswith('.num_batches_tracked') and name not in tensors:
            tensors[name] = torch.tensor(0)  # frozen statistics have none, and it is never read
            actions.append(('-', name, 'added, zero'))
    differences = compare(tensors, shapes, origins)
    if any(differences):
        raise ConfigError(f'The tensors, read as {source} ({arch}), do not fit a Conditional '
                          f'DETR; say another --from, or take a whole checkpoint:\n{differences}')
    return arch


def check_layers(arch: Architecture, args: Mapping) -> None:
    """Notice whole layers that are missing, where the file says how many there were.

    Raises:
        ConfigError: If the tensors have another number of layers.
    """
    for name in ('enc_layers', 'dec_layers'):
        layers = getattr(arch, name)
        if args.get(name, layers) != layers:
            raise ConfigError(f"The file's args say {name}={args[name]}, and its tensors are of "
                              f'{layers}: it is not whole, take another copy.')


def check_stock(arch: Architecture, query_group: int, num_query_groups: int) -> None:
    """Refuse what mmdet's own class cannot run.

    Raises:
        ConfigError: If it cannot.
    """
    if arch.width != STOCK_WIDTH:
        raise ConfigError(f'--to mmdet: the checkpoint has {arch.width} channels, and the stock '
                          f'ConditionalDETR runs with {STOCK_WIDTH} only: keep --to ours.')
    if query_group not in range(num_query_groups):
        raise ConfigError(f'--query-group {query_group} is not one of the groups: choose 0 to '
                          f'{num_query_groups - 1}.')


def ordered(tensors: Mapping[str, Tensor], num_queries: Optional[int]) -> Dict[str, Tensor]:
    """Make the state dict, with N in its metadata as our detectors save it."""
    state_dict = OrderedDict(tensors)
    if num_queries is not None:
        state_dict._metadata = OrderedDict({'': dict(version=1, num_queries=num_queries)})
    return state_dict


# What the user reads

TITLES = dict(
    official='the official code, Atten4Vis/ConditionalDETR',
    detrex='IDEA-Research/detrex',
    mmdet='mmdet, ConditionalDETR',
    ours='ours, GroupConditionalDETR')


def describe(found: Found, arch: Architecture, queries: str, classes_cut: bool) -> List[str]:
    """Say what was found."""
    classes = f'{arch.num_classes}'
    if classes_cut:
        classes = f'{COCO_ID_ROWS} rows, one for every COCO id, cut to the {classes} categories'
    lines = [
        f'Source   : {TITLES[found.source]} ({len(found.tensors)} tensors in {found.entry})',
        f'Model    : {arch}', f'Groups   : {queries}', f'Classes  : {classes}'
    ]
    if not arch.depth:
        lines.append('Note     : the names and shapes of the backbone are not checked')
    return lines + [f'Note     : {note}' for note in found.notes]


def summarize(actions: List[Tuple[str, str, str]]) -> List[Tuple[str, str, str]]:
    """Merge the actions on the tensors of a module, and of the same module in all layers.

    All tensors that are kept as they are become one entry.
    """
    kept = sum(how == KEPT for *_, how in actions)
    counts = Counter((module_pattern(origin), module_pattern(name), how)
                     for origin, name, how in actions if how != KEPT)
    rows = [(origin, name, f'{count} {how}') for (origin, name, how), count in counts.items()]
    return rows + [('all others' if rows else 'all', 'same', f'{kept} {KEPT}')] * bool(kept)


def module_pattern(name: str) -> str:
    """``encoder.layers.0.norms.1.weight`` -> ``encoder.layers.*.norms.1``."""
    module, _, tensor = name.rpartition('.')
    module = re.sub(r'(coder\.layers\.|layer\d\.|res\d\.)\d+', r'\1*', module)
    module = re.sub(r'(layer|res)\d\.', r'\1*.', module)
    if tensor == 'num_batches_tracked':
        return f'{module.split(".")[0]}.**.{tensor}'
    return module or tensor
