"""Cases to measure: a part of a training step in one of several implementations."""
import copy
import functools
import logging
from dataclasses import dataclass
from typing import Callable, Dict, List, Optional, Sequence, Tuple

import torch
from mmdet.registry import MODELS
from mmdet.structures import DetDataSample
from mmengine.config import Config
from mmengine.optim import OptimWrapper, build_optim_wrapper
from mmengine.registry import init_default_scope
from mmengine.structures import InstanceData
from torch import Tensor, nn

from groupdetr_mmdet.config import iter_dicts
from groupdetr_mmdet.errors import ConfigError

from . import plain  # noqa: F401, registers the baseline
from .measure import seconds_of

MODES = (
    'plain',  # see plain.py
    'ours',
    'turns',  # ours, one group after the other
    'stock')  # mmdet's detector, no groups, and mmcv's own deformable attention
PARTS = dict(
    step='Training step',
    decoder='Decoder, head and criterion, forward and backward',
    criterion='Criterion, forward and backward',
    inference='Inference')
AMP = dict(bf16=torch.bfloat16, fp16=torch.float16)
STRIDE = 32  # of the memory to the image


@dataclass(frozen=True)
class Case:
    """A measurement."""
    part: str  # one of PARTS; 'decoder' gets a memory, 'criterion' predictions
    mode: str  # one of MODES
    amp: Optional[str]  # 'bf16' or 'fp16' autocast, or None for float32
    num_groups: int  # K
    num_queries: int  # N, queries of a group
    attn_drop: Optional[float] = None  # dropout of attention weights, None for the config's
    loss: Optional[str] = None  # class of the classification loss, None for the config's

    @property
    def name(self) -> str:
        return f'{self.mode}:{self.amp}' if self.amp else self.mode

    @property
    def model(self) -> tuple:
        """Key of cases that can share a model."""
        return self.mode, self.num_groups, self.num_queries, self.attn_drop, self.loss


@dataclass(frozen=True)
class Shapes:
    """Sizes of all cases of a run, as (height, width)."""
    batch_size: int = 2
    image_size: Tuple[int, int] = (800, 1066)  # in pixels
    num_objects: int = 7  # of each image

    @property
    def memory_size(self) -> Tuple[int, int]:
        """(height, width) of the memory for the part decoder."""
        return tuple(-(-x // STRIDE) for x in self.image_size)


def build_model(cfg: Config, case: Case) -> nn.Module:
    """Build the detector of a case with random weights."""
    model = cfg.model.to_dict()
    model.update(num_queries=case.num_queries, num_query_groups=case.num_groups)
    if case.loss:
        model['bbox_head']['loss_cls'] = dict(type=case.loss)
    if case.mode in ('plain', 'stock'):
        write_as_baseline(model, case)
    elif case.mode == 'turns':
        model['train_cfg']['groups_at_once'] = 1
    for _, part in iter_dicts(model, 'model') if case.attn_drop is not None else ():
        part.update(dict(attn_drop=case.attn_drop) if 'attn_drop' in part else {})
    init_default_scope(cfg.get('default_scope', 'mmdet'))
    model = build_random(model)
    for module in model.bbox_head.modules():
        if isinstance(module, nn.Linear) and module.out_features == 4:
            nn.init.normal_(module.weight, std=0.01)  # instead of the initial zeros
    if case.mode in ('plain', 'stock'):
        model.bbox_head.loss_by_feat = functools.partial(
            in_float32, model.bbox_head.loss_by_feat)
    return model


def in_float32(method: Callable, *args, **kwargs) -> object:
    """Call a method with float32 tensors: numpy, which scipy requires, has no bfloat16."""
    return method(*(x.float() if isinstance(x, Tensor) and x.is_floating_point() else x
                    for x in args), **kwargs)


def build_random(model: dict) -> nn.Module:
    """Build the model of a config with random weights, without mmengine's report."""
    model = copy.deepcopy(model)  # mmdet changes configs
    model['backbone'].pop('init_cfg', None)  # no download
    torch.manual_seed(0)
    model = MODELS.build(model)
    logging.disable(logging.INFO)
    model.init_weights()
    logging.disable(logging.NOTSET)
    return model


def write_as_baseline(model: dict, case: Case) -> None:
    """Convert our detector's config to the config of a baseline."""
    detector = model['type'].removeprefix('Group')
    model['bbox_head']['type'] = model['bbox_head']['type'].removeprefix('Group')
    model['test_cfg'].pop('query_group', None)
    if case.mode == 'stock':
        model.pop('num_query_groups')
        assigner = dict(type='HungarianAssigner')
    elif detector == 'ConditionalDETR':
        detector = 'PlainGroupConditionalDETR'
        assigner = dict(type='PlainGroupAssigner', num_query_groups=case.num_groups)
    else:
        raise ConfigError(f'model.type={model["type"]} has no mode {case.mode}: '
                          'choose --modes ours stock, or a config of GroupConditionalDETR.')
    model['type'] = detector
    model['train_cfg']['assigner'].update(assigner)


def share_weights(models: Sequence[nn.Module]) -> None:
    """Copy the weights of the model with most queries to all models, which keep its first rows.

    Parameters with rows for each group have group 0 first.
    """
    most = max(models, key=lambda model: sum(x.numel() for x in model.parameters()))
    state = most.state_dict()
    for model in models:
        model.load_state_dict({
            name: state[name][:len(own)].clone() if own.dim() else state[name]
            for name, own in model.state_dict().items()
        })


def make_samples(shapes: Shapes, num_classes: int, device: torch.device) -> List[DetDataSample]:
    """Make the ground truth of a batch: random boxes inside each image."""
    generator = torch.Generator().manual_seed(0)
    meta = dict(img_shape=shapes.image_size, ori_shape=shapes.image_size, scale_factor=(1., 1.),
                batch_input_shape=shapes.image_size)
    samples = []
    for _ in range(shapes.batch_size):
        size = torch.rand(shapes.num_objects, 2, generator=generator) * .4 + .02
        corner = torch.rand(shapes.num_objects, 2, generator=generator) * (1 - size)
        bboxes = torch.cat([corner, corner + size], 1) * torch.tensor(shapes.image_size[::-1] * 2)
        labels = torch.randint(num_classes, (shapes.num_objects, ), generator=generator)
        samples.append(DetDataSample(
            metainfo=meta, gt_instances=InstanceData(bboxes=bboxes, labels=labels)).to(device))
    return samples


class Benchmark:
    """A case with its inputs and its model."""

    def __init__(self, case: Case, shapes: Shapes, cfg: Config, device: torch.device,
                 model: nn.Module) -> None:
        if case.part in ('decoder', 'criterion') and hasattr(model, 'num_feature_levels'):
            raise ConfigError(f'--parts {case.part}: a {type(model).__name__} needs more than one '
                              'memory; choose --parts step inference.')
        self.case, self.device, self.model, self.head = case, device, model, model.bbox_head
        self.samples = make_samples(shapes, self.head.num_classes, device)
        self.given: Tuple[Tensor, ...] = ()  # inputs with gradients
        if case.part == 'decoder':
            feat = self.randn(shapes.batch_size, model.embed_dims, *shapes.memory_size)
            inputs, self.decoder_inputs = model.pre_transformer((feat, ), self.samples)
            self.given = (inputs['feat'].contiguous().requires_grad_(), )
        elif case.part == 'criterion':
            size = (model.decoder.num_layers, shapes.batch_size,
                    case.num_groups * case.num_queries)
            cls_scores = self.randn(*size, self.head.cls_out_channels) - 4
            bbox_preds = self.randn(*size, 4).sigmoid()
            self.given = cls_scores.requires_grad_(), bbox_preds.requires_grad_()
        else:
            self.images = self.randn(shapes.batch_size, 3, *shapes.image_size)
        if case.part == 'step':
            self.optim = self.build_optimizer(cfg)

    def randn(self, *size: int) -> Tensor:
        return torch.randn(size, generator=torch.Generator().manual_seed(0)).to(self.device)

    def build_optimizer(self, cfg: Config) -> OptimWrapper:
        """Build the optimizer and its state, so that a step's memory does not include it."""
        optim_cfg = dict(cfg.optim_wrapper)
        if self.case.amp and self.device.type == 'cuda':
            optim_cfg.update(type='AmpOptimWrapper', dtype=str(AMP[self.case.amp])[6:])
        optim = build_optim_wrapper(self.model, optim_cfg)
        for parameter in self.model.parameters():
            parameter.grad = torch.zeros_like(parameter) if parameter.requires_grad else None
        optim.optimizer.step()
        optim.zero_grad()
        return optim

    def __call__(self) -> float:
        """Run once; return the seconds."""
        self.model.train(self.case.part != 'inference')
        # Otherwise the criterion's time includes allocating memory that the last case freed.
        for _ in range(2 if self.case.part == 'criterion' else 1):
            seconds = seconds_of(self.run, self.device)
            self.model.zero_grad(set_to_none=True)
            for x in self.given:
                x.grad = None
        return seconds

    def run(self) -> None:
        amp = AMP.get(self.case.amp)
        with torch.autocast(self.device.type, amp, enabled=amp is not None):
            if self.case.part == 'inference':
                with torch.no_grad():
                    self.model.predict(self.images, self.samples, rescale=False)
                return
            loss = sum(self.losses().values())
        if self.case.part == 'step':
            self.optim.update_params(loss)
        else:
            loss.backward()

    def losses(self) -> Dict[str, Tensor]:
        if self.case.part == 'step':
            return self.model.loss(self.images, self.samples)
        predictions = self.given
        if self.case.part == 'decoder':
            queries, head_inputs = self.model.pre_decoder(memory=self.given[0])
            decoded = self.model.forward_decoder(**self.decoder_inputs, **queries)
            predictions = self.head(**head_inputs, **decoded)
        return self.head.loss_by_feat(*predictions, [x.gt_instances for x in self.samples],
                                      [x.metainfo for x in self.samples])
