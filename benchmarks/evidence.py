"""Train the detectors of docs/choose-k.md: AP by K, learning rate, loss and augmentation.

Small detectors on small images, several seeds each. Each finished training is written into a JSON
file, so the command continues where it was stopped; ``benchmarks.evidence_report`` reads the file.
Set OMP_NUM_THREADS=1, and start a process on each core with other --studies.
"""
import argparse
import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any, Dict, Iterator, List, NamedTuple, Optional

import mmcv
import numpy as np
import torch
import torch.nn.functional as F
from mmdet.visualization import DetLocalVisualizer
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.runner import Runner
from torch import nn

from groupdetr_mmdet.checkpoints.named import find_checkpoint
from groupdetr_mmdet.commands.cli import end_in_one_line
from groupdetr_mmdet.config import iter_dicts, read_config
from groupdetr_mmdet.data.layouts import read_dataset, to_coco
from groupdetr_mmdet.data.shapes import make_shapes
from groupdetr_mmdet.io import write_atomically
from groupdetr_mmdet.training import options
from groupdetr_mmdet.training.recipe import complete_splits
from groupdetr_mmdet.training.runner import build_runner

from .measure import describe_machine

RESULTS = Path(__file__).with_name('evidence.json')
Results = Dict[str, Dict[str, Any]]
LIGHT, STRONG = 'demo/group_cond_detr_demo', 'demo/group_cond_detr_strong_demo'
DINO, SMALL = 'demo/group_dino_demo', 'group_cond_detr_mbv2_30e'
QUERIES = 'query_embedding.weight'
SHAPES = 'shapes'
REAL = 'bccd', 'raccoon', 'boxhead'
SIZE = 128  # pixels of the longer side of an image
LONGER = dict(boxhead=3)  # times the epochs, for it is learned more slowly
PRETRAINED = dict(detector='pretraining/shapes/K = 1/0', backbone='pretraining/shapes/K = 1/0',
                  groups='pretraining/shapes/K = 3/0',
                  dino='pretraining/shapes/DINO/0')  # what a training begins with
ON_SHAPES = 'pretraining', 'from-scratch'  # studies, the first with one seed


class Cell(NamedTuple):
    """The training of a row of a table, repeated for each data set and seed."""
    num_groups: int = 1  # K
    epochs: int = 30
    settings: Dict[str, Any] = {}  # what else is set in the config
    start: str = 'detector'  # what is loaded, of PRETRAINED, 'imagenet' or 'nothing'
    anew: bool = False  # whether the queries of further groups are drawn anew
    config: str = LIGHT
    ema: Optional[Dict[str, Any]] = None  # what differs from --ema; None averages no weights
    query_dropout: float = 0.


LR = 8e-4  # of the demo, for 8 images a step
EQUAL = {1: 20, 3: 15, 6: 10}  # epochs of equal time, by K
FROM_BACKBONE = {1: 30, 3: 22, 6: 16}
FROM_IMAGENET = {1: 20, 3: 13, 6: 8, 11: 5}
FEW = {'train_dataloader.batch_size': 4}
HALF = {**FEW, 'model.new_group_noise': .5}
LOSSES = {loss: {'model.bbox_head.loss_cls': dict(_delete_=True, type=f'{loss}Loss',
                                                  use_sigmoid=True)} for loss in ('IABCE', 'MA')}
SHORT_EMA = dict(momentum=.02, gamma=50)  # averages about 50 steps
SCRATCH = {'model.num_queries': 16}
STUDIES: Dict[str, Dict[str, Cell]] = {
    'pretraining': {'K = 1': Cell(1, 20, start='nothing'), 'K = 3': Cell(3, 12, start='nothing'),
                    'DINO': Cell(1, 6, start='nothing', config=DINO)},
    'from-scratch': {
        **{f'K = {k}': Cell(k, n, SCRATCH, 'nothing')
           for k, n in ((1, 11), (3, 10), (6, 8), (11, 6))},
        **{f'K = 3, {loss}': Cell(3, 10, {**SCRATCH, **LOSSES[loss]}, 'nothing')
           for loss in LOSSES},
        'K = 3, EMA': Cell(3, 10, SCRATCH, 'nothing', ema={}),
        'K = 3, strong': Cell(3, 10, SCRATCH, 'nothing', config=STRONG)},
    'lr': {f'lr x {x}{note}': Cell(1, epochs, {'train_dataloader.batch_size': 2,
                                               'optim_wrapper.optimizer.lr': x * LR / 4})
           for x, epochs, note in ((1, 15, ''), (2, 15, ''), (4, 15, ''), (8, 15, ''),
                                   (2, 45, ', 45 epochs'))},
    'fine-tuning': {
        'K = 1': Cell(1, EQUAL[1], FEW),
        **{f'K = {k}, noise {x:g}': Cell(k, EQUAL[k], {**FEW, 'model.new_group_noise': x})
           for k, x in ((3, .02), (3, .5), (3, 1.), (6, .5))},
        'K = 3, attention dropout': Cell(3, EQUAL[3], {
            **HALF, 'model.decoder.layer_cfg.self_attn_cfg.attn_drop': .1}),
        'K = 3, query dropout': Cell(3, EQUAL[3], HALF, query_dropout=.1),
        'K = 3, drawn anew': Cell(3, EQUAL[3], FEW, anew=True),
        'K = 1, epochs of K = 3': Cell(1, EQUAL[3], FEW),
        **{f'K = {k}, three times as long': Cell(k, 3 * EQUAL[k], HALF) for k in (1, 3)},
        **{f'K = {k}, {loss}': Cell(k, EQUAL[k], {**HALF, **LOSSES[loss]})
           for k in (1, 3, 6) for loss in LOSSES},
        **{f'K = {k}, strong': Cell(k, EQUAL[k], HALF, config=STRONG) for k in (1, 3, 6)},
        **{f'K = {k}, {loss}, strong': Cell(k, EQUAL[k], {**HALF, **LOSSES[loss]}, config=STRONG)
           for k in (1, 3, 6) for loss in LOSSES},
        **{f'K = {k}, EMA': Cell(k, EQUAL[k], HALF, ema={}) for k in (1, 3)},
        **{f'K = {k}, short EMA': Cell(k, EQUAL[k], HALF, ema=SHORT_EMA) for k in (1, 3)}},
    'dino': {'K = 1': Cell(1, 8, FEW, 'dino', config=DINO), **{
        f'K = 3, noise {x:g}': Cell(3, 6, {**FEW, 'model.new_group_noise': x}, 'dino',
                                    config=DINO) for x in (.02, .5)}},
    'from-groups': {f'K = {k}': Cell(k, EQUAL[k], FEW, 'groups') for k in (1, 3)},
    'backbone': {f'K = {k}': Cell(k, n, FEW, 'backbone') for k, n in FROM_BACKBONE.items()},
    'imagenet': {
        **{f'K = {k}': Cell(k, n, FEW, 'imagenet', config=SMALL)
           for k, n in FROM_IMAGENET.items()},
        **{f'K = {k}, three times as long': Cell(k, 3 * FROM_IMAGENET[k], FEW, 'imagenet',
                                                 config=SMALL) for k in (1, 3)}},
}


class Training(NamedTuple):
    """One training."""
    study: str  # the question that it is for
    data: str  # name of a data set
    label: str  # of its row; trainings of one row and data set differ in their seeds
    seed: int  # of the weights, the order of the images and their augmentation

    @property
    def name(self) -> str:
        return f'{self.study}/{self.data}/{self.label}/{self.seed}'

    @property
    def cell(self) -> Cell:
        cell = STUDIES[self.study][self.label]
        return cell._replace(epochs=cell.epochs * LONGER.get(self.data, 1))


class Recorder(Hook):
    """Record the CPU seconds of each step, and (epoch, AP, AP50) of each validation."""
    priority = 'VERY_LOW'

    def __init__(self) -> None:
        self.seconds: List[float] = []
        self.curve: List[List[float]] = []

    def before_train_iter(self, runner: Runner, *args: Any, **kwargs: Any) -> None:
        self.start = time.process_time()

    def after_train_iter(self, runner: Runner, *args: Any, **kwargs: Any) -> None:
        self.seconds.append(time.process_time() - self.start)

    def after_val_epoch(self, runner: Runner, metrics: Optional[dict] = None) -> None:
        self.curve.append([runner.epoch, metrics[options.AP], metrics[f'{options.AP}_50']])


class QueryDropoutHook(Hook):
    """Drop numbers of the queries' positions, other ones in each group and image."""

    def __init__(self, p: float) -> None:
        self.p = p

    def before_train(self, runner: Runner) -> None:
        runner.model.decoder.register_forward_pre_hook(self.drop, with_kwargs=True)

    def drop(self, decoder: nn.Module, args: tuple, kwargs: Dict[str, Any]) -> tuple:
        query_pos = F.dropout(kwargs['query_pos'], self.p, decoder.training)
        return args, dict(kwargs, query_pos=query_pos)


def shrink(source: Path, out: Path) -> None:
    """Write a data set with images of ``SIZE`` pixels, and ``train.json`` and ``val.json``."""
    dataset = read_dataset(source)
    dataset.splits = dict(train=sum(dataset.splits.values(), []))  # some have 14 for validation
    complete_splits(dataset, 0.3, seed=0)
    for split, images in dataset.splits.items():
        for i, image in enumerate(images):
            pixels, factor = mmcv.imrescale(mmcv.imread(image.path), (SIZE, SIZE),
                                            return_scale=True, interpolation='area')
            path = out / split / f'{i}.png'
            mmcv.imwrite(pixels, str(path))
            boxes = [replace(box, xyxy=tuple(factor * x for x in box.xyxy)) for box in image.boxes]
            images[i] = replace(image, path=path, width=pixels.shape[1], height=pixels.shape[0],
                                boxes=boxes)
        coco = to_coco(images, dataset.classes, out)
        write_atomically(out / f'{split}.json', json.dumps(coco).encode())


def data_settings(name: str, args: argparse.Namespace) -> Dict[str, Any]:
    """Settings of the config for a data set, which is made where it is not there."""
    root, prefix = args.work_dir / 'data' / name, ''
    if name == SHAPES:
        make_shapes(str(root))
    elif not (root / 'val.json').exists():
        shrink(args.data / name, root)
    categories = json.loads((root / 'val.json').read_text())['categories']
    classes = tuple(x['name'] for x in categories)
    found: Dict[str, Any] = {'model.bbox_head.num_classes': len(classes)}
    for mode, split in (('train', 'train'), ('val', 'val'), ('test', 'val')):
        prefix = f'{split}/' if name == SHAPES else ''
        found.update({f'{mode}_dataloader.dataset.{key}': value for key, value in dict(
            data_root=f'{root}/', ann_file=f'{split}.json', data_prefix=dict(img=prefix),
            metainfo=dict(classes=classes)).items()})
        found.update({f'{mode}_dataloader.num_workers': 0,
                      f'{mode}_dataloader.persistent_workers': False})
    return dict(found, **{f'{x}_evaluator.ann_file': str(root / 'val.json')
                          for x in ('val', 'test')})


def training_config(training: Training, args: argparse.Namespace) -> Config:
    """Config of a training, with data, weights and work directory as the arguments name."""
    cell = training.cell
    cfg = read_config(cell.config)
    for _, part in iter_dicts(cfg._cfg_dict, ''):
        if part.get('type') in ('Resize', 'DETRResize'):
            part.backend = 'cv2'  # for Mosaic's crops, as in all trainings before
            if training.data != SHAPES:
                part.scale = SIZE, SIZE
        elif part.get('type') == 'RandomFlip' and training.data != SHAPES:
            part.update(prob=.5, direction='horizontal')  # the shapes alone may be upside down
    cfg.merge_from_dict(data_settings(training.data, args))
    cfg.merge_from_dict({'model.num_queries': 40, 'model.num_query_groups': cell.num_groups,
                         'randomness.seed': training.seed, 'log_level': 'WARNING',
                         'default_hooks.checkpoint.interval': -1, **cell.settings})
    options.set_epochs(cfg, cell.epochs)
    cfg.train_cfg.val_interval = max(1, cell.epochs // 6)
    cfg.work_dir = str(args.work_dir / training.name)
    if cell.start == 'imagenet':
        cfg.model.backbone.init_cfg.checkpoint = str(args.imagenet)
    elif cell.start != 'nothing':
        cfg.load_from = write_start(cell, cfg.work_dir, args)
        options.add_hook(cfg, type='OtherClassesHook')
    cfg.allow_missing = cell.start == 'backbone'
    if cell.ema is not None:
        options.average_weights(cfg)
        cfg.custom_hooks[-1].update(cell.ema)
    return cfg


def write_start(cell: Cell, work_dir: str, args: argparse.Namespace) -> str:
    """Write the weights that a training begins with; return their file."""
    saved = torch.load(find_checkpoint('last', str(args.work_dir / PRETRAINED[cell.start])),
                       weights_only=False)
    weights = saved['state_dict']
    if cell.start == 'backbone':
        weights = {key: x for key, x in weights.items() if key.startswith('backbone')}
    if cell.anew:  # each number of a query is drawn from those that all queries have there
        torch.manual_seed(0)
        rows = weights[QUERIES]
        weights[QUERIES] = torch.cat([rows, *(
            torch.stack([x[torch.randperm(len(x))] for x in rows.T], dim=1)
            for _ in range(1, cell.num_groups))])
    file = Path(work_dir, 'start.pth')
    file.parent.mkdir(parents=True, exist_ok=True)
    torch.save(dict(state_dict=weights), file)
    return str(file)


def train(training: Training, args: argparse.Namespace) -> Dict[str, Any]:
    """Run a training; ``seconds_per_step`` is CPU time without loading and validation."""
    cfg, recorder = training_config(training, args), Recorder()
    DetLocalVisualizer._instance_dict.clear()  # or it writes where the last training did
    runner = build_runner(cfg)
    runner.register_hook(recorder)
    if training.cell.query_dropout:
        runner.register_hook(QueryDropoutHook(training.cell.query_dropout))
    runner.train()
    machine = describe_machine(torch.device('cpu'))
    return dict(
        num_groups=training.cell.num_groups, epochs=training.cell.epochs, seed=training.seed,
        cpu=machine['cpu'], torch=machine['torch'],
        seconds_per_step=round(float(np.median(recorder.seconds)), 5),
        steps_per_epoch=len(recorder.seconds) / training.cell.epochs, curve=recorder.curve)


def chosen_trainings(args: argparse.Namespace) -> Iterator[Training]:
    """The trainings that the arguments name, seed by seed: all cells get a first training soon."""
    for seed in args.seeds:
        for study in args.studies:
            for data in (SHAPES, ) if study in ON_SHAPES else args.sets:
                for label in STUDIES[study]:
                    if label in (args.rows or [label]) and (study != ON_SHAPES[0] or not seed):
                        yield Training(study, data, label, seed)


def read_results(file: Path) -> Results:
    return json.loads(file.read_text()) if file.exists() else {}


def add_result(file: Path, name: str, result: Dict[str, Any]) -> None:
    """Add a result to what is in the file now, by name, a line each."""
    results = dict(read_results(file), **{name: result})
    lines = (f'{json.dumps(key)}: {json.dumps(results[key])}' for key in sorted(results))
    write_atomically(file, ('{\n' + ',\n'.join(lines) + '\n}\n').encode())


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog='benchmarks.evidence', description=__doc__)
    add = parser.add_argument
    add('--studies', nargs='+', choices=STUDIES, default=list(STUDIES))
    add('--rows', nargs='+', help='rows of the tables, such as "K = 3" (default: all)')
    add('--sets', nargs='+', choices=(SHAPES, *REAL), default=list(REAL), help='data sets')
    add('--seeds', nargs='+', type=int, default=[0, 1])
    add('--data', type=Path, default=Path('data'), help=f'folder with {", ".join(REAL)}')
    add('--imagenet', default='open-mmlab://mmdet/mobilenet_v2',
        help='weights of MobileNetV2 (default: %(default)s)')
    add('--work-dir', type=Path, default=Path('work_dirs/evidence'))
    add('--results', type=Path, default=RESULTS, help='JSON file to which results are added')
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    for training in chosen_trainings(args):
        if training.name not in read_results(args.results):
            start = time.time()
            result = train(training, args)
            add_result(args.results, training.name, result)
            print(f'{training.name}: AP {result["curve"][-1][1]:.3f}, '
                  f'{time.time() - start:.0f} seconds', flush=True)


if __name__ == '__main__':
    end_in_one_line(main)
