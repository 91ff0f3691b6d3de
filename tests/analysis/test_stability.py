"""The instability of the matching is DN-DETR's, and measuring it changes nothing."""
import copy
import json
from pathlib import Path

import pytest
import torch
from builders import MATCH_COSTS, build, detector_config, group_rows, make_batch
from family_builders import FAMILIES, family_config
from mmdet.models.detectors import DETR
from mmdet.models.task_modules import HungarianAssigner
from mmdet.registry import MODELS
from mmengine.config import Config
from mmengine.hub import get_config
from mmengine.structures import InstanceData
from tiny import tiny_config, tiny_runner

from groupdetr_mmdet.analysis.queries import (DecodedQueries, count_changes, decode_queries,
                                              detections, match_queries, to_pixels)
from groupdetr_mmdet.analysis.stability import stability_scalars
from groupdetr_mmdet.errors import ConfigError
from groupdetr_mmdet.group_queries import GroupQueries

K, N = 3, 10
GROUPS = range(K)


def matches(*images: list) -> list:
    return [torch.tensor(x, dtype=torch.long) for x in images]


def test_an_object_that_changes_its_query_counts_for_both_queries():
    before = matches([[0, 1], [0, 1], [0, 1]], [[4], [4], [4]])
    after = matches([[0, 1], [0, 2], [1, 0]], [[4], [4], [5]])
    # of 10 queries: none; query 1 loses and query 2 gets object 1; 0 and 1 swap, then 4 and 5
    assert count_changes(before, after, N).tolist() == [0, 1, 2]
    scalars = stability_scalars(before, after, N)
    assert scalars['instability/mean'] == 1
    assert [scalars[f'changed_matches/group{i}'] for i in GROUPS] == pytest.approx([0, 1 / 3, 1])
    # an object without a query, and an image without objects
    before, after = matches([[-1, 3]], [[]]), matches([[3, -1]], [[]])
    assert [count_changes(before, x, N).item() for x in (after, before)] == [.5, 0]


@pytest.mark.parametrize('family', FAMILIES)
def test_queries_are_decoded_and_matched_group_by_group(family):
    config = family_config(family)
    config['data_preprocessor'] = dict(type='mmdet.DetDataPreprocessor')
    model = build(config).eval()
    inputs, samples = make_batch()
    decoded = decode_queries(model, dict(inputs=list(inputs), data_samples=samples))
    assert decoded.references.shape == (2, K * model.group_size, 2)
    assert ((0 <= decoded.references) & (decoded.references <= 1)).all()
    decoded = decoded._replace(  # no ties, which an untrained detector has
        cls_scores=torch.randn_like(decoded.cls_scores),
        bbox_preds=torch.rand_like(decoded.bbox_preds))
    assigner = HungarianAssigner(MATCH_COSTS)
    for image, matched in enumerate(match_queries(model, decoded)):
        sample = samples[image]
        assert matched.shape == (K, len(sample.gt_instances))
        for group in GROUPS:
            rows = group_rows(group, model.group_size)
            predictions = InstanceData(
                scores=decoded.cls_scores[image, rows],
                bboxes=to_pixels(sample, decoded.bbox_preds[image, rows]))
            expected = assigner.assign(predictions, sample.gt_instances, sample.metainfo)
            for gt, query in enumerate(matched[group].tolist()):
                assert expected.gt_inds[query] == gt + 1


@MODELS.register_module()
class MixedInDETR(GroupQueries, DETR):
    """The first DETR, with groups by the mixin alone."""


def detr_config(num_classes: int) -> dict:
    """Config of a small DETR of three groups of six queries."""
    cfg = Config(get_config('mmdet::detr/detr_r50_8xb2-150e_coco.py').model.to_dict())
    cfg.merge_from_dict({
        'type': 'MixedInDETR', 'num_queries': 6, 'num_query_groups': K, 'encoder.num_layers': 1,
        'decoder.num_layers': 2, 'backbone.depth': 18, 'backbone.init_cfg': None,
        'neck.in_channels': [512], 'bbox_head.num_classes': num_classes,
        'train_cfg.assigner.type': 'GroupHungarianAssigner',
        'data_preprocessor': dict(type='mmdet.DetDataPreprocessor')})
    return cfg.to_dict()


def test_queries_without_reference_points_and_with_a_background_class():
    model = build(detr_config(num_classes=5)).eval()
    inputs, samples = make_batch()
    data = dict(inputs=list(inputs), data_samples=samples)
    expected = model.test_step(copy.deepcopy(data))[0].pred_instances
    decoded = decode_queries(model, data)
    assert decoded.references is None and decoded.cls_scores.shape == (2, K * 6, 5 + 1)
    assert [x.shape for x in match_queries(model, decoded)] == [(K, 3), (K, 2)]
    found = detections(model, decoded, 0, score_thr=0)
    alone = found[found.query_groups == 0]
    torch.testing.assert_close(alone.scores.sort().values, expected.scores.sort().values)
    assert alone.labels.bincount().equal(expected.labels.bincount())


def test_more_objects_than_queries():
    config = detector_config(num_queries=2)
    _, samples = make_batch(num_gts=(3, 0))
    boxes = torch.rand(2, K * 2, 4)
    decoded = DecodedQueries(torch.randn(2, K * 2, 5), boxes, boxes[..., :2], samples)
    crowded, empty = match_queries(build(config), decoded)
    assert empty.shape == (K, 0)
    assert ((crowded == -1).sum(1) == 1).all() and (crowded.max(1).values == 1).all()
    config['train_cfg']['assigner']['type'] = 'OneToManyHungarianAssigner'  # many for an object
    with pytest.raises(ConfigError, match='OneToManyHungarianAssigner'):
        match_queries(build(config), decoded)


def test_boxes_are_those_of_the_original_image():
    _, (sample, _) = make_batch()
    sample.set_metainfo(dict(ori_shape=(200, 100), img_shape=(64, 32)))
    box = to_pixels(sample, torch.tensor([[.5, .5, .2, .1]]))
    torch.testing.assert_close(box, torch.tensor([[40., 90, 60, 110]]))


def train(cfg: Config, folder: Path, **changes) -> list:
    """Train, and return what the local backend logged."""
    runner = tiny_runner(cfg, folder, **changes)
    runner.train()
    lines = Path(runner.log_dir, 'vis_data/scalars.json').read_text().splitlines()
    return [json.loads(line) for line in lines]


def test_hook_logs_every_epoch_and_changes_nothing(tiny_coco, tmp_path):
    cfg = tiny_config(tiny_coco)
    cfg.merge_from_dict({'optim_wrapper.optimizer.lr': .01})
    hooks = [dict(type='MatchingStabilityHook', num_images=3)]
    plain = train(cfg, tmp_path / 'plain')
    logged = train(cfg, tmp_path / 'hook', custom_hooks=hooks)
    scores = [entry for entry in logged if 'instability/mean' in entry]
    assert [entry['step'] for entry in scores] == [1, 2]
    for entry in scores:
        for name in ('instability', 'changed_matches'):
            values = [entry[f'{name}/group{i}'] for i in GROUPS]
            assert entry[f'{name}/mean'] == pytest.approx(sum(values) / K)
        assert 0 <= entry['changed_matches/mean'] <= 1
    assert any(entry['instability/mean'] for entry in scores)
    losses = [[entry['loss'] for entry in log if 'loss' in entry] for log in (plain, logged)]
    assert losses[0] == losses[1]

    resumed = train(cfg, tmp_path / 'resumed', custom_hooks=hooks, resume=True,
                    load_from=str(tmp_path / 'hook/epoch_1.pth'))
    score, = (entry for entry in resumed if 'instability/mean' in entry)
    assert score['step'] == 2
    assert score['instability/mean'] == scores[1]['instability/mean']


def test_resumed_with_other_images_the_hook_starts_anew(tiny_coco, tmp_path):
    """Matches in one image are not compared with those in another."""
    cfg = tiny_config(tiny_coco)
    cfg.merge_from_dict({'optim_wrapper.optimizer.lr': 0.})
    train(cfg, tmp_path / 'hook', custom_hooks=[dict(type='MatchingStabilityHook', num_images=3)])
    resumed = train(cfg, tmp_path / 'resumed', resume=True,
                    load_from=str(tmp_path / 'hook/epoch_1.pth'),
                    custom_hooks=[dict(type='MatchingStabilityHook', num_images=4)])
    score, = (entry for entry in resumed if 'instability/mean' in entry)
    assert score['instability/mean'] == score['changed_matches/mean'] == 0
