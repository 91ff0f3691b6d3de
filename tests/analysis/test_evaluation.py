"""Every group is evaluated in one pass as it would be alone."""
import json
from pathlib import Path

import pytest
import torch
from builders import build, detector_config, make_batch
from family_builders import ALL, batch_of, config_of
from mmdet.evaluation import CocoMetric
from mmdet.registry import METRICS
from mmengine.config import Config
from running import run_tool
from tiny import CLASSES, tiny_config

from groupdetr_mmdet.analysis.group_metrics import (GroupCocoMetric, choose_group,
                                                    evaluate_each_group, read_groups, record_file,
                                                    record_groups, split_groups, summarize_groups)
from groupdetr_mmdet.errors import ConfigError
from groupdetr_mmdet.groups import decoding

K = 3


def noisy_detections(tiny_coco: Path, noises=(.3, 0., .1)) -> list:
    """Of each image, ground truth moved by another noise in each group."""
    coco = json.loads((tiny_coco / 'val.json').read_text())
    generator = torch.Generator().manual_seed(0)
    samples = []
    for image in coco['images']:
        anns = [ann for ann in coco['annotations'] if ann['image_id'] == image['id']]
        boxes = torch.tensor([ann['bbox'] for ann in anns], dtype=torch.float)
        boxes[:, 2:] += boxes[:, :2]
        labels = torch.tensor([ann['category_id'] - 1 for ann in anns])
        groups = [boxes + noise * 20 * torch.randn(boxes.shape, generator=generator)
                  for noise in noises]
        samples.append(dict(
            img_id=image['id'], ori_shape=(64, 64), query_group=2,
            group_instances=dict(
                bboxes=torch.cat(groups), labels=labels.repeat(K),
                scores=torch.rand(K * len(boxes), generator=generator),
                query_groups=torch.arange(K).repeat_interleave(len(boxes)))))
    return samples


def evaluate(metric: dict, samples: list) -> dict:
    metric = METRICS.build(metric)
    metric.dataset_meta = dict(classes=CLASSES)
    for sample in samples:
        metric.process({}, [sample])
    return metric.evaluate(len(samples))


def one_group(sample: dict, group: int) -> dict:
    instances = sample['group_instances']
    of_group = instances['query_groups'] == group
    return dict(sample, pred_instances={name: x[of_group] for name, x in instances.items()})


def test_metrics_are_those_of_separate_evaluations(tiny_coco, tmp_path):
    metric = dict(type='CocoMetric', ann_file=str(tiny_coco / 'val.json'), classwise=True)
    samples = noisy_detections(tiny_coco)
    metrics = evaluate(
        dict(metric, type='GroupCocoMetric', outfile_prefix=str(tmp_path / 'out')), samples)
    for group in range(K):
        alone = evaluate(metric, [one_group(sample, group) for sample in samples])
        for name, value in alone.items():
            assert metrics[name.replace('/', f'/group{group}/', 1)] == pytest.approx(
                value, nan_ok=True)
            if group == 2:
                assert metrics[name] == pytest.approx(value, nan_ok=True)
        assert (tmp_path / f'out.group{group}.bbox.json').is_file()
    aps = [group['bbox_mAP'] for group in split_groups(metrics)]
    assert aps[1] == 1 and len(set(aps)) == K
    assert metrics['coco/best_query_group'] == 1
    assert metrics['coco/median/bbox_mAP'] == sorted(aps)[1]
    assert metrics['coco/spread/bbox_mAP'] == pytest.approx(max(aps) - min(aps))


@torch.no_grad()
@pytest.mark.parametrize('family', ALL)
def test_each_group_detects_what_it_detects_alone(family):
    config = config_of(family)
    config.test_cfg.update(each_group=True, query_group=1)
    model = build(config).eval()
    for _, x in model.group_parameters():  # equal groups could be mixed up unseen
        x += .1 * torch.randn_like(x)
    together = model.predict(*batch_of(family), rescale=False)
    model.test_cfg = dict(model.test_cfg, each_group=False)
    detections = []
    for group in range(K):
        with decoding(range(group, group + 1)):
            alone = model.predict(*batch_of(family), rescale=False)
        for sample, expected in zip(together, alone):
            instances = sample.group_instances
            instances = instances[instances.query_groups == group]
            expected = expected.pred_instances
            assert torch.equal(instances.labels, expected.labels)
            torch.testing.assert_close(instances.scores, expected.scores, atol=1e-5, rtol=1e-4)
            if family == 'mask2former':
                assert (instances.masks != expected.masks).float().mean() < 1e-3
            else:
                torch.testing.assert_close(
                    instances.bboxes, expected.bboxes, atol=1e-3, rtol=1e-4)
            if group == 1:
                assert torch.equal(sample.pred_instances.scores, instances.scores)
        detections.append(alone[0].pred_instances.scores)
    assert not torch.equal(detections[0], detections[1])


def test_backbone_and_encoder_run_once():
    config = detector_config()
    config['test_cfg'].update(each_group=True)
    model = build(config).eval()
    calls = dict.fromkeys(('backbone', 'encoder', 'decoder'), 0)
    for name in calls:
        model.get_submodule(name).register_forward_hook(
            lambda *_, name=name: calls.update({name: calls[name] + 1}))
    with torch.no_grad():
        model.predict(*make_batch())
    assert calls == dict(backbone=1, encoder=1, decoder=1)


@pytest.mark.parametrize('change', [
    {'test_cfg.query_group': 'all'}, {'separate_self_attn': False}])
def test_groups_that_detect_together_are_not_told_apart(change):
    config = Config(detector_config())
    config.merge_from_dict({'test_cfg.each_group': True, **change})
    with pytest.raises(ConfigError, match='lets all groups detect together'):
        build(config.to_dict())


def test_boxes_are_evaluated_whatever_a_config_evaluates(tiny_coco):
    cfg = tiny_config(tiny_coco)
    cfg.test_evaluator.update(
        type=CocoMetric, metric=['proposal'], metric_items=['mAP_50'], format_only=True)
    evaluate_each_group(cfg)
    metric = METRICS.build(cfg.test_evaluator)
    assert isinstance(metric, GroupCocoMetric) and 'bbox' in metric.metrics
    assert metric.metric_items is None and not metric.format_only
    assert cfg.model.test_cfg.each_group


def test_no_groups_or_no_metric_of_coco(tiny_coco):
    for key, value, error in (('model.type', 'ConditionalDETR', 'has no groups'),
                              ('test_evaluator.type', 'VOCMetric', 'must have one CocoMetric')):
        cfg = tiny_config(tiny_coco)
        cfg.merge_from_dict({key: value})
        with pytest.raises(ConfigError, match=f'^WORK_DIR: .*{error}'):
            evaluate_each_group(cfg, 'WORK_DIR')


def test_the_best_group_is_recorded_beside_its_weights(tmp_path):
    checkpoint = tmp_path / 'epoch_2.pth'
    checkpoint.write_bytes(b'weights')
    with pytest.raises(ConfigError, match='run groupdetr test CONFIG .*epoch_2.pth --all-groups'):
        choose_group('best', str(checkpoint))
    metrics = summarize_groups([dict(bbox_mAP=x) for x in (.1, .3, .2)], kept=0)
    record_groups(checkpoint, {f'coco/{name}': x for name, x in metrics.items()})
    assert [choose_group(x, str(checkpoint)) for x in ('best', 0, None)] == [1, 0, None]
    assert [x['bbox_mAP'] for x in read_groups(checkpoint)['groups']] == [.1, .3, .2]
    checkpoint.write_bytes(b'other weights')
    with pytest.raises(ConfigError, match='has no metrics of these weights'):
        choose_group('best', str(checkpoint))
    for text in ('{', '[]', '{}'):
        record_file(checkpoint).write_text(text)
        with pytest.raises(ConfigError, match='epoch_2.groups.json is damaged'):
            choose_group('best', str(checkpoint))


def test_test_command_evaluates_all_groups(tiny_coco, tmp_path, capfd):
    tiny_config(tiny_coco).dump(tmp_path / 'tiny.py')
    checkpoint = tmp_path / 'weights.pth'
    torch.save(build(detector_config(num_classes=len(CLASSES))).state_dict(), checkpoint)
    assert run_tool('test', tmp_path / 'tiny.py', checkpoint, '--all-groups', '--work-dir',
                    tmp_path / 'work') == 0
    record = json.loads(record_file(checkpoint).read_text())
    assert len(record['groups']) == K
    assert choose_group('best', str(checkpoint)) == record['best_query_group']
    assert '| median |' in ''.join(capfd.readouterr())
