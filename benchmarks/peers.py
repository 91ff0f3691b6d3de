"""Measure our criterion beside the criteria of RF-DETR (``pip install rfdetr``) and of LW-DETR in
``transformers`` on identical tensors: CPU time of forward and backward, and peak memory. A library
that is not installed is left out. Then peak memory of a training step by number of objects."""
import argparse
import functools
import importlib.util
import itertools
import statistics
import sys
import time
import types
from pathlib import Path
from typing import Any, Callable, Dict, List, NamedTuple, Sequence, Tuple

import torch
from mmdet.registry import MODELS
from mmdet.structures.bbox import bbox_xyxy_to_cxcywh
from torch import Tensor

from groupdetr_mmdet.commands.cli import end_in_one_line
from groupdetr_mmdet.commands.common import positive

from .arguments import load_config
from .cases import Benchmark, Case, Shapes, build_model, make_samples
from .measure import CPU, describe_machine, peak_memory, take_turns
from .report import describe, print_table, write_record

NUM_CLASSES, NUM_QUERIES = 80, 300
COSTS = LOSSES = (2., 5., 2.)  # weights of class, L1 and GIoU, in matching and in the loss
Terms = Callable[[Tensor, Tensor], Tensor]  # logits, boxes -> losses, shape (3, num_layers)


class Size(NamedTuple):
    """Number of layers, groups and objects an image, and the classification loss."""
    layers: int
    groups: int
    objects: int
    loss: str  # one of CLASS_LOSSES


CLASS_LOSSES = dict(
    focal=dict(type='FocalLoss', use_sigmoid=True, alpha=.25, gamma=2., loss_weight=LOSSES[0]),
    iabce=dict(type='IABCELoss', loss_weight=LOSSES[0]))


def our_terms(size: Size, samples: list) -> Terms:
    """Return our losses, by the head of the shipped Conditional DETR."""
    cfg = load_config('group_cond_detr_r50_12e').model
    head = MODELS.build(dict(cfg.bbox_head, loss_cls=CLASS_LOSSES[size.loss],
                             train_cfg=cfg.train_cfg, test_cfg=cfg.test_cfg))
    head.assigner.num_queries = NUM_QUERIES
    truth = [x.gt_instances for x in samples], [x.metainfo for x in samples]
    return lambda logits, boxes: torch.stack(
        list(head.set_losses(logits, boxes, *truth).values()))


def rfdetr_terms(size: Size, samples: list) -> Terms:
    """Return the losses of RF-DETR's ``SetCriterion``."""
    set_criterion, matcher = import_rfdetr()
    criterion = set_criterion(
        NUM_CLASSES, matcher(*COSTS, focal_alpha=.25), {}, .25, ['labels', 'boxes'],
        group_detr=size.groups, ia_bce_loss=size.loss == 'iabce')
    return functools.partial(layer_by_layer, criterion, targets(samples, 'labels'),
                             ('pred_logits', 'pred_boxes', 'aux_outputs'))


def lwdetr_terms(size: Size, samples: list) -> Terms:
    """Return the losses of LW-DETR in ``transformers``, which has no focal loss."""
    from transformers.loss.loss_lw_detr import LwDetrHungarianMatcher, LwDetrImageLoss
    matcher = LwDetrHungarianMatcher(
        **dict(zip(('class_cost', 'bbox_cost', 'giou_cost'), COSTS)))
    criterion = LwDetrImageLoss(matcher, NUM_CLASSES, .25, ['labels', 'boxes'], size.groups)
    return functools.partial(layer_by_layer, criterion, targets(samples, 'class_labels'),
                             ('logits', 'pred_boxes', 'auxiliary_outputs'))


# name -> its losses, which of CLASS_LOSSES it has, and the most objects of an image: the memory of
# LW-DETR's loss grows with the square of the pairs, and would be tens of GiB at 500 objects
PEERS = dict(rfdetr=(rfdetr_terms, ('focal', 'iabce'), 500),
             transformers=(lwdetr_terms, ('iabce', ), 100))


@functools.cache
def import_rfdetr() -> Tuple[type, type]:
    """Import criterion and matcher of RF-DETR without its package's ``__init__``, a trainer.

    Where torchvision is not installed, its only function that they call is written here.
    """
    path = Path(importlib.util.find_spec('rfdetr').origin).parent
    modules = {name: types.ModuleType(name) for name in ('rfdetr', 'rfdetr.models')}
    modules['rfdetr'].__path__, modules['rfdetr.models'].__path__ = [str(path)], [f'{path}/models']
    if not importlib.util.find_spec('torchvision'):
        ops = types.ModuleType('torchvision')
        ops.box_area = lambda x: (x[..., 2] - x[..., 0]) * (x[..., 3] - x[..., 1])
        modules.update({name: ops for name in (
            'torchvision', 'torchvision.ops', 'torchvision.ops.boxes')})
    sys.modules.update(modules)
    try:
        from rfdetr.models.criterion import SetCriterion
        from rfdetr.models.matcher import HungarianMatcher
    finally:
        for name in modules:
            del sys.modules[name]
    return SetCriterion, HungarianMatcher


def targets(samples: list, labels: str) -> List[Dict[str, Tensor]]:
    """Write the ground truth as the DETR family outside mmdet does: boxes as cxcywh in [0, 1]."""
    return [{labels: x.gt_instances.labels,
             'boxes': bbox_xyxy_to_cxcywh(x.gt_instances.bboxes / torch.tensor(
                 x.metainfo['img_shape'][::-1] * 2))} for x in samples]


def layer_by_layer(criterion: Callable, truth: list, names: Tuple[str, str, str], logits: Tensor,
                   boxes: Tensor) -> Tensor:
    """Call a criterion that takes the last layer, and the layers before it as a list."""
    *before, last = ({names[0]: x, names[1]: y} for x, y in zip(logits, boxes))
    losses = criterion({**last, names[2]: before}, truth)
    return torch.stack([
        weight * torch.stack([losses[f'loss_{name}{suffix}'].reshape(()) for suffix in (
            *(f'_{i}' for i in range(len(before))), '')])
        for name, weight in zip(('ce', 'bbox', 'giou'), LOSSES)])


def make_predictions(size: Size) -> Tuple[Tensor, Tensor]:
    """Return random logits and boxes of two images, which keep gradients."""
    generator = torch.Generator().manual_seed(0)
    shape = size.layers, 2, size.groups * NUM_QUERIES
    logits = torch.randn(*shape, NUM_CLASSES, generator=generator) - 4
    boxes = torch.randn(*shape, 4, generator=generator).sigmoid()
    return logits.requires_grad_(), boxes.requires_grad_()


def measure(size: Size, names: Sequence[str], rounds: int) -> Dict[str, Any]:
    """Check that all losses are equal, then measure each library on the same tensors."""
    samples = make_samples(Shapes(num_objects=size.objects), NUM_CLASSES, CPU)
    predictions = make_predictions(size)
    terms = dict(ours=our_terms(size, samples))
    for name in names:
        make, losses, most_objects = PEERS[name]
        if size.loss in losses and size.objects <= most_objects:
            terms[name] = make(size, samples)
            torch.testing.assert_close(terms[name](*predictions), terms['ours'](*predictions),
                                       rtol=1e-5, atol=1e-5)

    def run(of_each: Terms) -> float:
        start = time.process_time()
        torch.autograd.grad(of_each(*predictions).sum(), predictions)
        return time.process_time() - start

    runs = {name: functools.partial(run, of_each) for name, of_each in terms.items()}
    peak = {name: peak_memory(run) for name, run in runs.items()}
    print(size, flush=True)
    return dict(size._asdict(), peak=peak, seconds=take_turns(runs, rounds, 1))


def table_row(case: Dict[str, Any], names: Sequence[str]) -> List[str]:
    """Write a case: ours in ms and MiB, the time and memory of a peer as multiples of ours."""
    seconds, peak = case['seconds'], case['peak']
    row = [*(str(case[name]) for name in Size._fields),
           f'{1e3 * statistics.median(seconds["ours"]):.0f} ms', f'{peak["ours"] / 2**20:.0f} MiB']
    for name in names:
        ratios = [a / b for a, b in zip(seconds.get(name, ()), seconds['ours'])]
        row += ([f'{statistics.median(ratios):.2f}', f'{peak[name] / peak["ours"]:.2f}']
                if ratios else ['', ''])
    return row


def step_memory(groups: int, objects: int) -> List[int]:
    """Measure a training step, all groups at once and in turns, as ``benchmarks.turns``."""
    cfg, shapes = load_config('group_cond_detr_r50_12e'), Shapes(2, (480, 640), objects)
    cfg.model.backbone.depth, cfg.model.neck.in_channels = 18, [512]
    cases = [Case('step', mode, None, groups, NUM_QUERIES) for mode in ('ours', 'turns')]
    return [peak_memory(Benchmark(case, shapes, cfg, CPU, build_model(cfg, case)))
            for case in cases]


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog='benchmarks.peers', description=__doc__)
    add = functools.partial(parser.add_argument, type=positive, nargs='+')
    add('--layers', default=[3, 6], help='of the decoder')
    add('--groups', default=[11, 13], help='K')
    add('--objects', default=[7, 20, 100, 500], help='of each image')
    parser.add_argument('--losses', nargs='+', choices=CLASS_LOSSES, default=list(CLASS_LOSSES))
    parser.add_argument('--rounds', type=positive, default=3, help='timed runs (%(default)s)')
    parser.add_argument('--out', type=Path, default=Path('peers.json'),
                        help='JSON to write (default: %(default)s)')
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    torch.set_num_threads(1)  # CPU time of a thread does not depend on what else runs
    names = [name for name in PEERS if importlib.util.find_spec(name)]
    for name in PEERS.keys() - set(names):
        print(f'{name} is not installed, and left out: pip install {name}')
    sizes = itertools.product(args.layers, args.groups, args.objects, args.losses)
    cases = [measure(Size(*size), names, args.rounds) for size in sizes]
    memory = [(objects, *step_memory(args.groups[0], objects)) for objects in args.objects]
    machine = describe_machine(CPU)
    write_record(args.out, 'benchmarks.peers', dict(machine=machine, cases=cases, memory=memory))
    print(f'\n{describe(machine)}')
    print_table('Criterion, forward and backward: ours, and a peer / ours', [
        *Size._fields, *(f'{name}: {what}' for name in ('ours', *names)
                         for what in ('time', 'memory'))],
        (table_row(case, names) for case in cases))
    print_table(f'Peak memory of a training step, K = {args.groups[0]}',
                ['objects', 'at once', 'groups_at_once=1'],
                ([objects, *(f'{x / 2**20:.0f} MiB' for x in peak)] for objects, *peak in memory))


if __name__ == '__main__':
    end_in_one_line(main)
