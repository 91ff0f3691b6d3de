"""What is measured: a part of a training step, in one of several ways to write it."""
import contextlib
import copy
import functools
import inspect
import logging
from dataclasses import dataclass
from typing import Callable, ContextManager, Dict, Iterator, List, Optional, Sequence, Tuple

import torch
from mmcv.ops import multi_scale_deform_attn
from mmdet.registry import MODELS
from mmdet.structures import DetDataSample
from mmengine.config import Config
from mmengine.optim import build_optim_wrapper
from mmengine.registry import init_default_scope
from mmengine.structures import InstanceData
from torch import Tensor, nn

from groupdetr_mmdet.errors import ConfigError
from groupdetr_mmdet.host.config_check import iter_dicts

from . import plain  # noqa: F401, registers the baseline
from .measure import Stopwatch

MODES = ('plain', 'ours', 'turns', 'stock')
OWN_MODES = ('ours', 'turns')
PARTS = ('step', 'decoder', 'criterion', 'inference')
AMP = dict(bf16=torch.bfloat16, fp16=torch.float16)
STRIDE = 32  # of the memory to the image


@dataclass(frozen=True)
class Case:
    """One thing to measure.

    Attributes:
        part: 'step' (a whole training step), 'decoder' (decoder, head and criterion, forward and
            backward, on a given memory), 'criterion' (forward and backward on given predictions)
            or 'inference'.
        mode: 'plain' (see ``plain.py``), 'ours', 'turns' (ours, its groups one after the other),
            or 'stock' (mmdet's detector, no groups, and mmcv's own deformable attention).
        amp: 'bf16' or 'fp16' autocast, or None for float32.
        num_groups: K.
        num_queries: N, queries of a group.
        num_objects: Objects of each image.
        attn_drop: Dropout of attention weights, None for that of the config.
    """
    part: str
    mode: str
    amp: Optional[str]
    num_groups: int
    num_queries: int
    num_objects: int
    attn_drop: Optional[float] = None

    @property
    def model(self) -> tuple:
        """Cases that agree here can share a model."""
        return self.mode, self.num_groups, self.num_queries, self.attn_drop


@dataclass(frozen=True)
class Shapes:
    """Sizes that all cases of a run share.

    Attributes:
        batch_size: Images of a batch.
        image_size: Height and width in pixels.
        memory_size: Height and width of the memory that the decoder alone is given.
        padded: Whether every second image is three quarters as wide, so that there is padding
            and a mask of it.
    """
    batch_size: int = 2
    image_size: Tuple[int, int] = (800, 1066)
    memory_size: Tuple[int, int] = (25, 34)
    padded: bool = False


def build_model(cfg: Config, case: Case) -> nn.Module:
    """Build the detector of a case with random weights.

    Raises:
        ConfigError: If the mode is plain and the config's detector is not GroupConditionalDETR.
    """
    model = copy.deepcopy(cfg.model.to_dict())
    model['num_queries'] = case.num_queries
    model['num_query_groups'] = case.num_groups
    model['backbone'].pop('init_cfg', None)  # nothing is downloaded, and weights change no time
    if case.mode not in OWN_MODES:
        write_as_baseline(model, case)
    if case.mode == 'turns':
        model['train_cfg']['groups_at_once'] = 1
    for _, part in iter_dicts(model, 'model') if case.attn_drop is not None else ():
        if 'attn_drop' in part:
            part['attn_drop'] = case.attn_drop
    init_default_scope(cfg.get('default_scope', 'mmdet'))
    torch.manual_seed(0)
    model = MODELS.build(model)
    with quiet():
        model.init_weights()
    for module in model.bbox_head.modules():
        if isinstance(module, nn.Linear) and module.out_features == 4:
            nn.init.normal_(module.weight, std=0.01)  # zero until trained
    return model


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Leave out the report of mmengine on the initialization of every parameter."""
    logging.disable(logging.INFO)
    try:
        yield
    finally:
        logging.disable(logging.NOTSET)


def write_as_baseline(model: dict, case: Case) -> None:
    """Turn our detector's config into one of the baselines."""
    head, assigner = model['bbox_head'], model['train_cfg']['assigner']
    detector = model['type'].removeprefix('Group')
    head['type'] = head['type'].removeprefix('Group')
    model['test_cfg'].pop('query_group', None)
    if case.mode == 'stock':
        model['type'] = detector
        model.pop('num_query_groups')
        assigner.update(type='HungarianAssigner')
        return
    if detector != 'ConditionalDETR':
        raise ConfigError(f'model.type={model["type"]} has no mode {case.mode}: '
                          'choose --modes ours stock, or a config of GroupConditionalDETR.')
    model['type'] = 'PlainGroupConditionalDETR'
    assigner.update(type='PlainGroupAssigner', num_query_groups=case.num_groups)


def share_weights(models: Sequence[nn.Module]) -> None:
    """Give all models the weights of the one with most queries, of which others keep the first.

    What each group has rows of is stacked group by group, so that the first rows are group 0.
    """
    most = max(models, key=lambda model: sum(x.numel() for x in model.parameters()))
    state = most.state_dict()
    for model in models:
        model.load_state_dict({
            name: state[name][:len(own)].clone() if own.dim() else state[name]
            for name, own in model.state_dict().items()
        })


def make_samples(shapes: Shapes, num_objects: int, num_classes: int,
                 device: torch.device) -> List[DetDataSample]:
    """Make the ground truth of a batch: random boxes inside each image."""
    generator = torch.Generator().manual_seed(0)
    height, width = shapes.image_size
    samples = []
    for i in range(shapes.batch_size):
        img_shape = (height, width * 3 // 4) if shapes.padded and i % 2 else (height, width)
        size = torch.rand(num_objects, 2, generator=generator) * .4 + .02
        corner = torch.rand(num_objects, 2, generator=generator) * (1 - size)
        bboxes = torch.cat([corner, corner + size], 1) * torch.tensor(img_shape[::-1] * 2)
        labels = torch.randint(num_classes, (num_objects, ), generator=generator)
        samples.append(DetDataSample(metainfo=dict(
            img_shape=img_shape, ori_shape=img_shape, scale_factor=(1., 1.),
            batch_input_shape=shapes.image_size)))
        samples[-1].gt_instances = InstanceData(
            bboxes=bboxes.to(device), labels=labels.to(device))
    return samples


class Benchmark:
    """A case, its model and its inputs, ready to run.

    Args:
        case (Case): What to run.
        shapes (Shapes): Sizes of the inputs.
        model (nn.Module): What :func:`build_model` built for it.
        cfg (Config): The whole config, for its ``optim_wrapper``.
        device (torch.device): Where the model is.

    Raises:
        ConfigError: If the detector's decoder or criterion cannot be measured alone.
    """

    def __init__(self, case: Case, shapes: Shapes, model: nn.Module, cfg: Config,
                 device: torch.device) -> None:
        if case.part in ('decoder', 'criterion') and hasattr(model, 'num_feature_levels'):
            raise ConfigError(f'--parts {case.part}: a {type(model).__name__} needs more than one '
                              'memory; choose --parts step inference.')
        self.case, self.model, self.device = case, model, device
        self.head = model.bbox_head
        samples = make_samples(shapes, case.num_objects, self.head.num_classes, device)
        self.samples = samples
        self.targets = [s.gt_instances for s in samples], [s.metainfo for s in samples]
        self.run: Callable[[Stopwatch], None] = getattr(self, f'run_{case.part}')
        getattr(self, f'prepare_{case.part}')(shapes, cfg)

    def __call__(self) -> Dict[str, float]:
        """Run once.

        Returns:
            dict[str, float]: Seconds of each part, of all as 'total', and of 'matching' within.
        """
        self.model.train(self.case.part != 'inference')
        watch = Stopwatch(self.device)
        is_stock = self.case.mode == 'stock'
        with mmcv_attention() if is_stock else contextlib.nullcontext():
            with time_matching(self.head.assigner, watch):
                self.run(watch)
        seconds = watch.seconds()
        self.model.zero_grad(set_to_none=True)
        return seconds

    def autocast(self) -> ContextManager:
        if self.case.amp is None:
            return contextlib.nullcontext()
        return torch.autocast(self.device.type, AMP[self.case.amp])

    def randn(self, *size: int) -> Tensor:
        return torch.randn(size, generator=torch.Generator().manual_seed(0)).to(self.device)

    # A whole training step

    def prepare_step(self, shapes: Shapes, cfg: Config) -> None:
        self.images = self.randn(shapes.batch_size, 3, *shapes.image_size)
        optim_cfg = dict(cfg.optim_wrapper)
        if self.case.amp and self.device.type == 'cuda':
            optim_cfg.update(type='AmpOptimWrapper', dtype=str(AMP[self.case.amp])[6:])
        self.optim = build_optim_wrapper(self.model, optim_cfg)

    def run_step(self, watch: Stopwatch) -> None:
        with self.autocast(), self.lap_parts(watch):
            loss = sum(self.model.loss(self.images, self.samples).values())
        self.optim.backward(loss)
        watch.lap('backward')
        self.optim.step()
        self.optim.zero_grad()
        watch.lap('optimizer')

    @contextlib.contextmanager
    def lap_parts(self, watch: Stopwatch) -> Iterator[None]:
        """Take the time after backbone, encoder, decoder and criterion of any detector."""

        def then_lap(part: str, method: Callable, *args, **kwargs) -> object:
            result = method(*args, **kwargs)
            watch.lap(part)
            return result

        def criterion(method: Callable, *args) -> object:
            watch.lap('decoder')
            return then_lap('criterion', method, *map(self.to_criterion, args))

        with replaced(self.model, 'extract_feat', functools.partial(then_lap, 'backbone')), \
                replaced(self.model, 'forward_encoder', functools.partial(then_lap, 'encoder')), \
                replaced(self.head, 'loss_by_feat', criterion):
            yield

    def to_criterion(self, x: object) -> object:
        """Convert an input of the criterion as its mode needs it."""
        if self.case.mode not in OWN_MODES and isinstance(x, Tensor) and x.is_floating_point():
            return x.float()  # numpy, which scipy wants, has no bfloat16
        return x

    def decode(self, encoded: dict, decoder_inputs: dict) -> Tuple[Tensor, Tensor]:
        queries, head_inputs = self.model.pre_decoder(**encoded)
        decoded = self.model.forward_decoder(**decoder_inputs, **queries)
        return self.head(**head_inputs, **decoded)

    def criterion(self, cls_scores: Tensor, bbox_preds: Tensor) -> Tensor:
        predictions = map(self.to_criterion, (cls_scores, bbox_preds))
        return sum(self.head.loss_by_feat(*predictions, *self.targets).values())

    # Decoder, head and criterion on a given memory

    def prepare_decoder(self, shapes: Shapes, cfg: Config) -> None:
        feat = self.randn(shapes.batch_size, self.model.embed_dims, *shapes.memory_size)
        encoder_inputs, self.decoder_inputs = self.model.pre_transformer((feat, ), self.samples)
        self.memory = encoder_inputs['feat'].contiguous().requires_grad_()

    def run_decoder(self, watch: Stopwatch) -> None:
        with self.autocast():
            predictions = self.decode(dict(memory=self.memory), self.decoder_inputs)
            watch.lap('decoder')
            loss = self.criterion(*predictions)
            watch.lap('criterion')
        loss.backward()
        watch.lap('backward')
        self.memory.grad = None

    def decode_and_backward(self) -> None:
        """Run what :meth:`run_decoder` does, without the criterion."""
        predictions = self.decode(dict(memory=self.memory), self.decoder_inputs)
        sum(x.sum() for x in predictions).backward()

    # The criterion on given predictions

    def prepare_criterion(self, shapes: Shapes, cfg: Config) -> None:
        num_rows = self.case.num_groups * self.case.num_queries
        size = self.model.decoder.num_layers, shapes.batch_size, num_rows
        cls_scores = self.randn(*size, self.head.cls_out_channels) - 4
        bbox_preds = self.randn(*size, 4).sigmoid()
        self.predictions = cls_scores.requires_grad_(), bbox_preds.requires_grad_()

    def run_criterion(self, watch: Stopwatch) -> None:
        with self.autocast():
            loss = self.criterion(*self.predictions)
            watch.lap('criterion')
        loss.backward()
        watch.lap('backward')
        for x in self.predictions:
            x.grad = None

    # Inference

    def prepare_inference(self, shapes: Shapes, cfg: Config) -> None:
        self.images = self.randn(shapes.batch_size, 3, *shapes.image_size)

    @torch.no_grad()
    def run_inference(self, watch: Stopwatch) -> None:
        with self.autocast(), self.lap_parts(watch):
            self.model.predict(self.images, self.samples, rescale=False)
            watch.lap('decoder')

    @torch.no_grad()
    def predict(self) -> Tuple[Tensor, Tensor]:
        """Predict logits and normalized boxes of the first N queries.

        Detections do not compare: a last digit changes the rank of equal scores.
        """
        self.model.eval()
        with self.autocast():
            predictions = self.model(self.images, self.samples, mode='tensor')
        return tuple(x[-1, :, :self.case.num_queries].float() for x in predictions)


@contextlib.contextmanager
def mmcv_attention() -> Iterator[None]:
    """Let deformable attention run as without this package, where no compiled kernel is."""
    name = 'multi_scale_deformable_attn_pytorch'
    ours = getattr(multi_scale_deform_attn, name)
    setattr(multi_scale_deform_attn, name, inspect.unwrap(ours))
    try:
        yield
    finally:
        setattr(multi_scale_deform_attn, name, ours)


def time_matching(assigner: object, watch: Stopwatch) -> ContextManager:
    """Add the time inside an assigner, ours or mmdet's, to the part 'matching'."""

    def timed(method: Callable, *args, **kwargs) -> object:
        with watch.within('matching'):
            return method(*args, **kwargs)

    return replaced(assigner, 'match_layers' if hasattr(assigner, 'match_layers') else 'assign',
                    timed)


@contextlib.contextmanager
def replaced(owner: object, name: str, wrapper: Callable) -> Iterator[None]:
    """Let ``wrapper(method, *args)`` be called in the place of a method of an object."""
    setattr(owner, name, functools.partial(wrapper, getattr(owner, name)))
    try:
        yield
    finally:
        delattr(owner, name)
