"""A user's mistake gets a sentence that names the value, the config key and the fix."""

import pytest
import torch
from builders import MATCH_COSTS, build, detector_config, make_batch
from family_builders import config_of
from mmdet.registry import MODELS
from mmengine.config import Config
from mmengine.structures import InstanceData

from groupdetr_mmdet.assigner import GroupHungarianAssigner
from groupdetr_mmdet.errors import ConfigError


def config_with(path, value, family='conditional', **kwargs):
    """A detector config with one key, given as a dotted path, set to a value."""
    config = Config(dict(model=config_of(family, **kwargs)))
    config.merge_from_dict({f'model.{path}': value})
    return config.model


@pytest.mark.parametrize('family, part', [
    *(('conditional', x) for x in ('bbox_head', 'decoder', 'train_cfg.assigner')),
    ('mask2former', 'train_cfg.assigner'), ('mask2former', 'panoptic_head')])
@pytest.mark.parametrize('name', ['num_query_groups', 'num_queries'])
def test_a_part_that_contradicts_the_detector_is_refused(family, part, name):
    if f'{part}.{name}' != 'panoptic_head.num_queries':  # which sets N
        with pytest.raises(ConfigError, match=rf'{part}\.{name}=7 contradicts model\.'):
            build(config_with(f'{part}.{name}', 7, family))
    agreeing = dict(num_query_groups=3, num_queries=6)[name]
    assert build(config_with(f'{part}.{name}', agreeing, family)).num_query_groups == 3


def test_numbers_are_not_written_into_the_config():
    config = detector_config()
    MODELS.build(config)
    assert config['num_query_groups'] == 3
    for part in (config['bbox_head'], config['decoder'], config['train_cfg']['assigner']):
        assert not {'num_query_groups', 'num_queries'} & set(part)


def test_no_more_detections_than_one_group_can_make():
    model = build(config_with('test_cfg.max_per_img', 100, num_queries=4)).eval()
    assert [len(s.pred_instances) for s in model.predict(*make_batch())] == [20, 20]


@pytest.mark.parametrize('label', [5, 80, -1])
def test_a_label_that_the_head_cannot_predict_is_refused(label):
    model = build(detector_config(num_classes=5))
    inputs, samples = make_batch()
    samples[1].gt_instances.labels[0] = label
    with pytest.raises(ConfigError, match=rf'label {label} .* bbox_head.num_classes=5: set'):
        model.loss(inputs, samples)


@pytest.mark.parametrize('value, num_gts', [
    (float('nan'), (3, 2)), (float('nan'), (0, 0)), (float('inf'), (3, 2))])
@pytest.mark.parametrize('name', ['fc_cls', 'fc_reg'])
def test_predictions_that_are_not_finite_stop_the_step(value, num_gts, name):
    model = build(detector_config())
    value = float('nan') if name == 'fc_reg' else value  # the sigmoid of inf is a finite box
    getattr(model.bbox_head, name).bias.data[0] = value
    kind = dict(fc_cls='logits', fc_reg='boxes')[name]
    with pytest.raises(FloatingPointError, match=f'{kind} in decoder layer 0') as error:
        model.loss(*make_batch(num_gts=num_gts))
    assert f'image1.jpg ({num_gts[1]} boxes)' in str(error.value)


def test_a_match_cost_with_nan_names_layer_and_image():
    model = build(detector_config())
    inputs, samples = make_batch()
    samples[1].gt_instances.bboxes[0] = float('nan')
    with pytest.raises(FloatingPointError, match='match cost of image 1 in decoder layer 0'):
        model.loss(inputs, samples)


def test_the_assigner_alone_refuses_nan_and_labels_out_of_range():
    assigner = GroupHungarianAssigner(MATCH_COSTS, num_query_groups=2)
    boxes = torch.tensor([[0., 0., 8., 8.]]).repeat(4, 1)
    gts = InstanceData(labels=torch.tensor([1]), bboxes=boxes[:1])
    meta = dict(img_shape=(16, 16), img_path='a.jpg')
    scores = torch.zeros(4, 3)
    assert assigner.assign(InstanceData(scores=scores, bboxes=boxes), gts, meta).num_gts == 1
    scores[3, 1] = float('nan')
    with pytest.raises(FloatingPointError, match='a.jpg.*stopped before the optimizer step'):
        assigner.assign(InstanceData(scores=scores, bboxes=boxes), gts, meta)
    gts.labels += 2
    with pytest.raises(ConfigError, match='label 3 .*num_classes=3'):
        assigner.assign(InstanceData(scores=scores, bboxes=boxes), gts, meta)
    with pytest.raises(ConfigError, match='num_query_groups=0 .*integer of at least 1'):
        GroupHungarianAssigner(MATCH_COSTS, num_query_groups=0)
