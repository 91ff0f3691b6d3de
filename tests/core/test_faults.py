"""A user's mistake gets a sentence that names the value, the config key and the fix."""
import re

import pytest
import torch
from builders import MATCH_COSTS, build, detector_config, make_batch
from mmdet.models.task_modules import HungarianAssigner
from mmdet.registry import MODELS
from mmengine.registry import TASK_UTILS
from mmengine.structures import InstanceData

from groupdetr_mmdet.assigner import GroupHungarianAssigner
from groupdetr_mmdet.errors import ConfigError


def config_with(path, value, **kwargs):
    """A detector config with one key, given as a dotted path, set to a value."""
    config = detector_config(**kwargs)
    *parents, last = path.split('.')
    node = config
    for key in parents:
        node = node[key]
    node[last] = value
    return config


@pytest.mark.parametrize('part', ['bbox_head', 'decoder', 'train_cfg.assigner'])
@pytest.mark.parametrize('name', ['num_query_groups', 'num_queries'])
def test_a_part_that_contradicts_the_detector_is_refused(part, name):
    with pytest.raises(ConfigError, match=rf'model\.{part}\.{name}=7 contradicts model\.{name}='):
        build(config_with(f'{part}.{name}', 7))
    agreeing = detector_config()[name]
    assert build(config_with(f'{part}.{name}', agreeing)).num_query_groups == 3


def test_numbers_are_not_written_into_the_config():
    config = detector_config()
    MODELS.build(config)
    assert config['num_query_groups'] == 3
    for part in (config['bbox_head'], config['decoder'], config['train_cfg']['assigner']):
        assert not {'num_query_groups', 'num_queries'} & set(part)


def test_an_assigner_without_groups_is_refused():
    with pytest.raises(ConfigError, match='HungarianAssigner matches all groups as one set'):
        build(config_with('train_cfg.assigner.type', 'HungarianAssigner'))
    with pytest.raises(ConfigError, match='use type='):
        build(config_with('train_cfg.assigner.type', HungarianAssigner))


def test_no_more_detections_than_one_group_can_make():
    model = build(config_with('test_cfg.max_per_img', 100, num_queries=4)).eval()
    inputs, samples = make_batch()
    assert [len(s.pred_instances) for s in model.predict(inputs, samples)] == [20, 20]


def test_predictions_that_do_not_divide_are_refused():
    assigner = TASK_UTILS.build(
        dict(type='GroupHungarianAssigner', match_costs=MATCH_COSTS, num_query_groups=3,
             _scope_='mmdet'))
    pred = InstanceData(scores=torch.randn(10, 5), bboxes=torch.rand(10, 4))
    gts = InstanceData(labels=torch.tensor([0]), bboxes=torch.rand(1, 4))
    with pytest.raises(ConfigError, match='10 predictions .* num_query_groups=3 .* multiple'):
        assigner.assign(pred, gts, dict(img_shape=(4, 4)))


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
    inputs, samples = make_batch(num_gts=num_gts)
    kind = dict(fc_cls='logits', fc_reg='boxes')[name]
    with pytest.raises(FloatingPointError) as error:
        model.loss(inputs, samples)
    message = str(error.value)
    assert re.search(rf'NaN or infinite {kind} in decoder layer 0 \(of 2', message)
    assert f'image0.jpg ({num_gts[0]} boxes), image1.jpg ({num_gts[1]} boxes)' in message
    assert 'before the optimizer step' in message


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
