"""Write detectors as folders of Hugging Face's transformers."""
import os
import tempfile
from pathlib import Path
from typing import Any, Dict, Mapping, Optional, Sequence

import torch
from mmdet.models import ResNet
from mmdet.structures import DetDataSample
from torch import Tensor, nn

from ..errors import ConfigError
from .names import recognize, rename
from .transformers import FIRST_CONV, KINDS, LOSS_WEIGHTS, WEIGHTS, in_order_of, rules_for

# By the detectors' names in `names.SIGNATURES`
MODEL_TYPES = {kind: model_type for model_type, kind in KINDS.items()}
MODEL_TYPES['two-stage DeformableDETR'] = MODEL_TYPES['DeformableDETR']
PROCESSORS = dict(DabDetr='ConditionalDetr')  # detectors that use another image processor
SIZES = (256, 192), (192, 256)  # (h, w) of the images to compare detections on
TOLERANCE = 1e-4  # of scores, and of boxes relative to the image's size


def config_for(detector: nn.Module, classes: Sequence[str]) -> Any:
    """Return transformers' config for a detector with one group.

    Raises:
        ConfigError: If transformers has no such detector or backbone.
    """
    kind = recognize(detector.state_dict())[1]
    if kind not in MODEL_TYPES:
        raise ConfigError(f'--to transformers writes {", ".join(MODEL_TYPES)}, and no '
                          f'{type(detector).__name__[len("Group"):]}: keep --to ours or mmdet.')
    from transformers import AutoConfig
    settings = dict(settings_of(detector, kind), backbone_config=backbone_config(
        detector.backbone), num_queries=detector.num_queries, id2label=dict(enumerate(classes)),
        label2id={x: i for i, x in enumerate(classes)})
    settings.pop('dilation', None)  # of timm's backbones; ours has none
    try:
        return AutoConfig.for_model(MODEL_TYPES[kind], **settings)
    except Exception as error:  # such as two stages without refinement
        raise ConfigError(f'--to transformers: no {kind} has these settings '
                          f'({" ".join(str(error).split())}).') from error


def settings_of(detector: nn.Module, kind: Optional[str]) -> Dict[str, Any]:
    """Return the settings of transformers' config, {} if transformers has no such detector."""
    if kind not in MODEL_TYPES:
        return {}
    if kind == 'Mask2Former':
        head = detector.panoptic_head
        encoder, decoder = head.pixel_decoder.encoder.layers, head.transformer_decoder.layers
        return dict(
            feature_size=head.pixel_decoder.mask_feature.in_channels, encoder_layers=len(encoder),
            mask_feature_size=head.pixel_decoder.mask_feature.out_channels,
            hidden_dim=head.query_feat.embedding_dim, decoder_layers=len(decoder) + 1,
            encoder_feedforward_dim=encoder[0].ffn.feedforward_channels,
            dim_feedforward=decoder[0].ffn.feedforward_channels,
            num_attention_heads=decoder[0].self_attn.num_heads)
    encoder, decoder = detector.encoder.layers[0], detector.decoder.layers[0]
    settings = dict(
        auxiliary_loss=False, dilation=max(getattr(detector.backbone, 'dilations', [1])) > 1,
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
    elif kind != 'ConditionalDETR':
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
    if type(backbone) is not ResNet:
        raise ConfigError(f'--to transformers: model.backbone.type={type(backbone).__name__} '
                          'cannot be written: only a plain ResNet can, without dilation.')
    expansion = backbone.block.expansion
    return ResNetConfig(
        embedding_size=backbone.stem_channels, depths=list(backbone.stage_blocks),
        hidden_sizes=[backbone.base_channels * expansion * 2**i
                      for i in range(backbone.num_stages)],
        layer_type='basic' if expansion == 1 else 'bottleneck',
        downsample_in_bottleneck=backbone.style == 'caffe',
        out_features=[f'stage{i + 1}' for i in backbone.out_indices])


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
    from safetensors.torch import load_file, save_file
    auto = (transformers.AutoModelForUniversalSegmentation if hasattr(detector, 'panoptic_head')
            else transformers.AutoModelForObjectDetection)
    folder = folder.resolve()  # os.replace cannot replace a link or '.'
    folder.parent.mkdir(parents=True, exist_ok=True)
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f'.{folder.name}.') as x:
        part = Path(x, folder.name)
        model = auto.from_config(config)
        model.save_pretrained(part, state_dict={  # for the names in files; copies keep tied ones
            name: x.clone() for name, x in model.state_dict().items()})
        weights = part / WEIGHTS[0]
        save_file(to_transformers(detector, load_file(weights), KINDS[config.model_type]), weights,
                  metadata=dict(format='pt'))
        image_processor(config, preprocessing).save_pretrained(part)
        (part / 'README.md').write_text(card)
        differences = check_same(detector, auto.from_pretrained(part))
        if folder.exists():
            folder.rmdir()
        os.replace(part, folder)
    return differences


def to_transformers(detector: nn.Module, saved: Mapping[str, Tensor],
                    kind: str) -> Dict[str, Tensor]:
    """Return the weights of a detector with one group under the names of ``saved``.

    What the detector does not have, such as a bias of its neck, is zero.

    Raises:
        ConfigError: If a shape differs, such as by class names that are more than the classes.
    """
    held = in_order_of(detector, detector.state_dict())
    held[LOSS_WEIGHTS] = saved.get(LOSS_WEIGHTS)
    for name in [x for x in held if '.self_attn.attn.in_proj_' in x]:
        held.update((name.replace('in_proj_', f'{x}_proj.'), part)
                    for x, part in zip('qkv', held[name].chunk(3)))
    rules = rules_for(saved, kind)
    found = {name: held.get(rename(name, rules), torch.zeros_like(x)).clone()
             for name, x in saved.items()}
    for name, x in found.items():
        if x.shape != saved[name].shape:
            raise ConfigError(f'--to transformers: {name} has the shape {tuple(x.shape)} in the '
                              f'detector, and {tuple(saved[name].shape)} by the class names and '
                              'CONFIG: correct them.')
    return found


def image_processor(config: Any, preprocessing: Mapping[str, Any]) -> Any:
    """Return transformers' image processor that resizes and normalizes as a test pipeline."""
    import transformers
    prefix = type(config).__name__[:-len('Config')]
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
    images, mask = torch.zeros(2, 3, height, width), torch.zeros(2, height, width).long()
    samples = []
    for image, inside, (h, w) in zip(images, mask, SIZES):
        image[:, :h, :w] = torch.randn(3, h, w, generator=torch.Generator().manual_seed(h))
        inside[:h, :w] = 1
        samples.append(DetDataSample(metainfo=dict(
            img_shape=(h, w), batch_input_shape=(height, width))))
    logits, boxes, *_ = detector.eval()._forward(images, samples)
    found = model.eval()(pixel_mask=mask, pixel_values=in_order_of(
        detector, {FIRST_CONV: images})[FIRST_CONV])
    if has_masks := hasattr(detector, 'panoptic_head'):
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
            raise ConfigError(f'--to transformers: {type(model).__name__} detects otherwise '
                              f'than the detector of CONFIG ({name} differ by '
                              f'{differences[name]:.1g}): keep --to ours or mmdet.')
    return differences
