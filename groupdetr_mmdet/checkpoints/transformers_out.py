"""Write detectors as folders of Hugging Face's transformers."""
import contextlib
import os
import re
import tempfile
from pathlib import Path
from typing import Any, Dict, Iterator, Mapping, Sequence

import torch
from mmdet.models import ResNet
from mmdet.structures import DetDataSample
from torch import Tensor, nn

from ..errors import ConfigError
from .names import recognize
from .transformers import FIRST_CONV, LOSS_WEIGHTS, WEIGHTS, in_order_of, rows_of
from .transformers_names import DETECTORS, to_theirs

TASKS = dict(Mask2Former='UniversalSegmentation')  # part of the class names
PROCESSORS = dict(DabDetr='ConditionalDetr')  # detectors that use another image processor
SIZES = (256, 192), (192, 256)  # (h, w) of the images to compare detections on
TOLERANCE = 1e-4  # of scores, and of boxes relative to the image's size


def config_for(detector: nn.Module, classes: Sequence[str]) -> Any:
    """Return transformers' config for a detector with one group.

    Raises:
        ConfigError: If transformers is missing, or has no such detector or backbone.
    """
    kind = recognize(detector.state_dict())[1]
    if kind not in DETECTORS:
        raise ConfigError(f'--to transformers writes {", ".join(DETECTORS)}, and no '
                          f'{type(detector).__name__[len("Group"):]}: keep --to ours or mmdet.')
    try:
        import transformers
    except ImportError as error:
        raise ConfigError('--to transformers requires transformers: pip install '
                          'transformers.') from error
    settings = mask2former_settings(detector) if kind == 'Mask2Former' else detr_settings(
        detector, kind)
    try:
        return getattr(transformers, f'{DETECTORS[kind][0]}Config')(
            num_queries=detector.num_queries, backbone_config=backbone_config(detector.backbone),
            id2label=dict(enumerate(classes)), label2id={x: i for i, x in enumerate(classes)},
            **settings)
    except ConfigError:
        raise
    except Exception as error:  # such as two stages without refinement
        raise ConfigError(f'--to transformers: {DETECTORS[kind][0]} cannot be so '
                          f'({" ".join(str(error).split())}).') from error


def mask2former_settings(detector: nn.Module) -> Dict[str, Any]:
    """Return the settings of transformers' Mask2Former."""
    head = detector.panoptic_head
    encoder, decoder = head.pixel_decoder.encoder.layers, head.transformer_decoder.layers
    return dict(
        feature_size=head.pixel_decoder.mask_feature.in_channels, encoder_layers=len(encoder),
        mask_feature_size=head.pixel_decoder.mask_feature.out_channels,
        hidden_dim=head.query_feat.embedding_dim, decoder_layers=len(decoder) + 1,
        encoder_feedforward_dim=encoder[0].ffn.feedforward_channels,
        dim_feedforward=decoder[0].ffn.feedforward_channels,
        num_attention_heads=decoder[0].self_attn.num_heads)


def detr_settings(detector: nn.Module, kind: str) -> Dict[str, Any]:
    """Settings that transformers' DETRs share, and settings of each kind."""
    encoder, decoder = detector.encoder.layers[0], detector.decoder.layers[0]
    settings = dict(
        auxiliary_loss=False,
        encoder_layers=len(detector.encoder.layers), decoder_layers=len(detector.decoder.layers),
        encoder_attention_heads=encoder.self_attn.num_heads,
        decoder_attention_heads=decoder.self_attn.num_heads,
        encoder_ffn_dim=encoder.ffn.feedforward_channels,
        decoder_ffn_dim=decoder.ffn.feedforward_channels,
        activation_function=type(encoder.ffn.layers[0][1]).__name__.lower())
    settings['hidden_size' if kind == 'DABDETR' else 'd_model'] = detector.embed_dims
    if kind == 'DABDETR':
        temperature = detector.positional_encoding.temperature
        settings.update(num_patterns=detector.num_patterns, temperature_height=temperature,
                        temperature_width=temperature)
    if 'Deformable' in kind:
        settings.update(
            num_feature_levels=encoder.self_attn.num_levels,
            encoder_n_points=encoder.self_attn.num_points,
            decoder_n_points=decoder.cross_attn.num_points, two_stage=detector.as_two_stage,
            two_stage_num_proposals=detector.num_queries,
            with_box_refine=detector.with_box_refine)
    return settings


def backbone_config(backbone: nn.Module) -> Any:
    """Transformers' config of a ResNet of mmdet."""
    from transformers import ResNetConfig
    stages = getattr(backbone, 'num_stages', 0)
    if type(backbone) is not ResNet or backbone.deep_stem or backbone.avg_down or (
            *backbone.strides, *backbone.dilations) != ((1, 2, 2, 2)[:stages] + (1, ) * stages):
        raise ConfigError(f'--to transformers: model.backbone.type={type(backbone).__name__} '
                          'cannot be written: only a plain ResNet can, without dilation.')
    expansion = backbone.block.expansion
    return ResNetConfig(
        embedding_size=backbone.stem_channels, depths=list(backbone.stage_blocks),
        hidden_sizes=[backbone.base_channels * expansion * 2**i for i in range(stages)],
        layer_type='basic' if expansion == 1 else 'bottleneck',
        downsample_in_bottleneck=backbone.style == 'caffe',
        out_features=[f'stage{i + 1}' for i in backbone.out_indices])


def to_transformers(detector: nn.Module) -> Dict[str, Tensor]:
    """Return the weights of a detector with one group under transformers' names."""
    rows = rows_of(recognize(detector.state_dict())[1], len(getattr(
        getattr(detector, 'neck', None), 'convs', ())))
    held: Dict[str, Tensor] = {}
    for name, x in in_order_of(detector, detector.state_dict()).items():
        parts = {name: x}
        if '.attn.in_proj_' in name and not to_theirs(name, rows):
            parts = {name.replace('in_proj_', f'{y}_proj.'): part
                     for y, part in zip('qkv', x.chunk(3))}
        held.update((new, part.clone()) for old, part in parts.items()
                    for new in to_theirs(old, rows))
    without = []
    if hasattr(detector, 'panoptic_head'):
        num_classes = len(held['class_predictor.bias']) - 1
        held[LOSS_WEIGHTS] = torch.tensor([1.] * num_classes + [.1])
    else:
        without.append('.num_batches_tracked')  # frozen statistics lack it
    if not getattr(detector, 'with_box_refine', True):
        without.append('.decoder.bbox_embed.')
    if not getattr(detector, 'as_two_stage', True):
        without.append('.decoder.class_embed.')
    for name in [x for x in held if any(y in x for y in without)]:
        del held[name]
    for name in [x for x in held if re.fullmatch(r'model\.input_proj.*[n0]\.weight', x)]:
        held.setdefault(name.replace('weight', 'bias'), torch.zeros(len(held[name])))
    return held


def write_folder(folder: Path, detector: nn.Module, classes: Sequence[str],
                 preprocessing: Mapping[str, Any], card: str) -> Dict[str, float]:
    """Write a folder for transformers, if its detections equal the detector's.

    Args:
        folder (Path): Folder that does not exist, or is empty.
        detector (nn.Module): Detector with one group, on the CPU.
        classes (Sequence[str]): Class names by label.
        preprocessing (Mapping): As :func:`deploy.preprocessing.describe_preprocessing` returns it.
        card (str): Text of the model card.

    Returns:
        dict[str, float]: The differences of :func:`check_same`.

    Raises:
        ConfigError: If transformers has no such detector, or the detections differ.
    """
    config = config_for(detector, classes)
    import transformers
    from safetensors.torch import save_file
    prefix = type(config).__name__[:-len('Config')]
    task = TASKS.get(prefix, 'ObjectDetection')
    model_class = getattr(transformers, f'{prefix}For{task}')
    folder = folder.resolve()  # os.replace cannot replace a link or '.'
    folder.parent.mkdir(parents=True, exist_ok=True)
    with quiet(), tempfile.TemporaryDirectory(dir=folder.parent, prefix=f'.{folder.name}.') as x:
        part = Path(x, folder.name)
        part.mkdir()
        config.architectures = [model_class.__name__]
        config.save_pretrained(part)
        save_file(to_transformers(detector), part / WEIGHTS[0], metadata=dict(format='pt'))
        image_processor(prefix, preprocessing).save_pretrained(part)
        (part / 'README.md').write_text(card)
        model, report = model_class.from_pretrained(part, output_loading_info=True,
                                                    ignore_mismatched_sizes=True)
        wrong = [name for key in ('missing_keys', 'unexpected_keys', 'mismatched_keys')
                 for name in report[key]]
        if wrong:
            raise ConfigError(f'--to transformers: {prefix} has no place for {wrong[0]} or lacks '
                              f'it, as {len(wrong)} tensors: keep --to ours or mmdet.')
        differences = check_same(detector, model)
        if folder.exists():
            folder.rmdir()
        os.replace(part, folder)
    return differences


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Silence progress and warnings of transformers inside a ``with`` block."""
    from transformers.utils import logging
    level = logging.get_verbosity()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        logging.enable_progress_bar()


def image_processor(prefix: str, preprocessing: Mapping[str, Any]) -> Any:
    """Return transformers' image processor that resizes and normalizes as a test pipeline."""
    import transformers
    resize, order = preprocessing['resize'], 1 if preprocessing['channels'] == 'RGB' else -1
    scale = resize['scale'] or (1333, 800)
    size = (dict(shortest_edge=min(scale), longest_edge=max(scale)) if resize['keep_ratio'] else
            dict(width=scale[0], height=scale[1]))
    return getattr(transformers, f'{PROCESSORS.get(prefix, prefix)}ImageProcessor')(
        do_resize=resize['scale'] is not None, size=size,
        image_mean=[x / 255 for x in preprocessing['mean'][::order]],
        image_std=[x / 255 for x in preprocessing['std'][::order]])


@torch.no_grad()
def check_same(detector: nn.Module, model: nn.Module) -> Dict[str, float]:
    """Compare the detections of both in two images of noise, padded to a batch.

    Rows are compared sorted, because proposals of nearly equal score may swap.

    Returns:
        dict[str, float]: Largest differences of scores, and of masks or boxes relative to the
        image's size.

    Raises:
        ConfigError: If a difference is above ``TOLERANCE``.
    """
    height, width = (max(x) for x in zip(*SIZES))
    images = torch.zeros(2, 3, height, width)
    mask = torch.zeros(2, height, width, dtype=torch.long)
    samples = []
    for image, inside, (h, w) in zip(images, mask, SIZES):
        image[:, :h, :w] = torch.randn(3, h, w, generator=torch.Generator().manual_seed(h))
        inside[:h, :w] = 1
        samples.append(DetDataSample(metainfo=dict(img_shape=(h, w), batch_input_shape=(
            height, width), ori_shape=(h, w), scale_factor=(1., 1.))))
    logits, boxes, *_ = detector.eval()._forward(images, samples)
    channels = in_order_of(detector, {FIRST_CONV: images})[FIRST_CONV]
    found = model.eval()(pixel_values=channels, pixel_mask=mask)
    has_masks = hasattr(detector, 'panoptic_head')
    if has_masks:
        pairs = dict(scores=(logits[-1].softmax(-1), found.class_queries_logits.softmax(-1)),
                     masks=(boxes[-1].sigmoid(), found.masks_queries_logits.sigmoid()))
    else:
        pairs = dict(scores=(logits[-1].sigmoid(), found.logits.sigmoid()),
                     boxes=(boxes[-1], found.pred_boxes))
    differences = {}
    for name, (x, y) in pairs.items():
        apart = (x.flatten(1).sort()[0] - y.flatten(1).sort()[0]).abs()
        differences[name] = float(apart.max())
        # A pixel at the threshold of masked attention can change a query's masks: take the mean.
        if not (apart.mean() if has_masks else apart.max()) < TOLERANCE:
            raise ConfigError(f'--to transformers: {type(model).__name__} computes something else '
                              f'than the detector of CONFIG ({name} differ by '
                              f'{differences[name]:.1g}): keep --to ours or mmdet.')
    return differences
