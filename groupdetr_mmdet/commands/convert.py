"""Convert a checkpoint of the authors' code, detrex, Hugging Face's transformers, mmdet or this
package to the detector of a config, to mmdet's own detector, or to a folder for transformers."""
import argparse
import os.path as osp
from pathlib import Path

from mmdet.registry import MODELS
from mmengine.config import Config, ConfigDict
from mmengine.registry import init_default_scope

from ..analysis.group_metrics import choose_group, query_group
from ..checkpoints.convert import Converted, convert, summarize
from ..checkpoints.names import SOURCES
from ..checkpoints.reading import SAFETENSORS, read_checkpoint
from ..checkpoints.stock import one_group, stock_config
from ..checkpoints.transformers import push
from ..checkpoints.transformers_out import write_folder
from ..deploy.inference import class_names
from ..deploy.preprocessing import describe_preprocessing
from ..errors import ConfigError
from ..config import check_groups
from ..io import check_new_folder, check_output, check_path, write_atomically
from .common import CONFIG, add_cfg_options, check_test_data, load_trained, positive
from .model_card import model_card


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add('config', metavar='CONFIG', help=CONFIG)
    add('src', metavar='SRC', help='checkpoint: a path, best or last in the work directory of '
        'CONFIG, an address http(s)://, a folder of transformers, or hf://OWNER/NAME, a name on '
        "Hugging Face's hub")
    add('out', metavar='OUT', help=f'file to write, in the format of {SAFETENSORS} if it ends so; '
        'with --to transformers a folder')
    add('--from', dest='source', choices=SOURCES,
        help='source of SRC; recognized by the names of its tensors')
    add('--to', choices=['ours', 'mmdet', 'transformers'], default='ours', help='write a '
        "checkpoint for this package (default), a checkpoint and config of mmdet's own detector, "
        "or a folder for Hugging Face's transformers")
    add('--push-to', metavar='OWNER/NAME', help='upload the folder of --to transformers to this '
        "name on Hugging Face's hub; hf auth login logs in")
    add('--num-queries', type=positive, metavar='N',
        help='queries of one group in SRC, if the file has no or a wrong number')
    add('--query-group', type=query_group, metavar='I', help='group that --to mmdet and --to '
        'transformers keep (default: 0); best: the best group of groupdetr test --all-groups')
    add('--noise', type=float, help='noise on repeated groups, relative to the standard '
        "deviation of each tensor (default: the model's new_group_noise)")
    add('--seed', type=int, default=0, help='seed of the noise')
    add('--publish', action='store_true', help='remove the state of optimizer and hooks, take '
        'averaged weights (EMA) if there are any, and add 8 digits of the SHA-256 to the name')
    add('--trust-pickle', action='store_true',
        help='run code in SRC; only for files that you made')
    add('--verbose', action='store_true', help='list every tensor')
    add_cfg_options(parser)


def check_args(args: argparse.Namespace) -> None:
    """Raise a ConfigError for arguments that contradict each other or the files."""
    if args.source == 'transformers' and '://' not in args.src and not osp.exists(
            osp.expanduser(args.src)):
        raise ConfigError(f'SRC {args.src} is no folder: correct it, or write hf://{args.src} '
                          "for a name of Hugging Face's hub.")
    check_path('SRC', args.src, folder=None)
    if args.query_group is not None and args.to == 'ours':
        raise ConfigError(f'--query-group {args.query_group}: only --to mmdet and --to '
                          'transformers keep one group; add it, or leave --query-group out.')
    if args.push_to and args.to != 'transformers':
        raise ConfigError(f'--push-to {args.push_to} uploads the folder of --to transformers: add '
                          '--to transformers.')
    if osp.exists(args.out) and osp.exists(args.src) and osp.samefile(args.src, args.out):
        raise ConfigError(f'OUT {args.out} is SRC itself, which would be lost: name another file.')
    (check_new_folder if args.to == 'transformers' else check_output)('OUT', args.out)


def show(converted: Converted, verbose: bool) -> None:
    """Print the report, and the actions on the tensors."""
    print(*converted.report, sep='\n')
    rows = converted.actions if verbose else summarize(converted.actions)
    print('Tensors  :' + ('' if verbose else ' by module; --verbose lists every tensor'))
    width = max(len(origin) for origin, *_ in rows)
    for origin, name, how in rows:
        print(f'  {origin:<{width}} -> {"same" if name == origin else name}: {how}')


def write_transformers(args: argparse.Namespace, cfg: Config, converted: Converted,
                       group: int) -> None:
    """Write a folder for transformers, and print how to read it."""
    detector = MODELS.build(ConfigDict(one_group(cfg.model), train_cfg=None))
    detector.load_state_dict(converted.state_dict)
    classes = class_names(cfg, dict(meta=converted.meta))
    groups = converted.report[1].partition(': ')[2]
    has_masks = hasattr(detector, 'panoptic_head')
    if has_masks:
        detector.data_preprocessor.pad_size_divisor = 1  # the image processor pads by itself
    preprocessing = describe_preprocessing(cfg, detector.data_preprocessor)
    task = 'image-segmentation' if has_masks else 'object-detection'
    differences = write_folder(
        Path(args.out), detector, classes, preprocessing,
        model_card(args, cfg, task, classes, groups, group, converted.meta))
    found = ', '.join(f'{name} differ by {x:.0e}' for name, x in differences.items())
    print(f'Compared : {found} at most, in two images of noise')
    for i, step in enumerate(cfg.test_dataloader.dataset.pipeline):
        if 'scale' in step and (step['type'], step.get('backend')) != ('DETRResize', 'pillow'):
            key = f'test_dataloader.dataset.pipeline.{i}'
            print('Note     : transformers resizes by PIL; to evaluate as it does: groupdetr test '
                  f'with --cfg-options {key}.type=DETRResize {key}.backend=pillow')
    if has_masks:
        print('Note     : transformers stretches images to multiples of 32 pixels, and mmdet pads '
              'them: resize to such sizes')
    print(f'Wrote    : {args.out}; load it by transformers.pipeline({task!r}, {args.out!r})')
    if args.push_to:
        print(f'Pushed   : {push(Path(args.out), args.push_to)}')


def main(args: argparse.Namespace) -> None:
    args.checkpoint = args.src
    cfg = load_trained(args, of_this_name=True)
    args.src = args.checkpoint
    check_args(args)
    init_default_scope(cfg.get('default_scope', 'mmdet'))
    check_groups('CONFIG', cfg.model)
    if args.to == 'transformers':
        check_test_data(cfg, args)
    group = choose_group(args.query_group, args.src)
    converted = convert(
        read_checkpoint(args.src, args.trust_pickle), cfg.model, args.source, args.to,
        args.num_queries, group or 0, args.noise, args.seed, args.publish)
    show(converted, args.verbose)
    if args.to == 'transformers':
        write_transformers(args, cfg, converted, group or 0)
        return
    path, size = converted.write(Path(args.out), args.publish)
    print(f'Wrote    : {path} ({size / 2**20:.1f} MiB)')
    if args.to == 'mmdet':
        stock = stock_config(cfg, class_names(cfg, dict(meta=converted.meta))
                             if cfg.get('test_dataloader') else None)
        write_atomically(path.with_suffix('.py'), stock.pretty_text.encode())
        print(f'Wrote    : {path.with_suffix(".py")}, its config for mmdet alone')
