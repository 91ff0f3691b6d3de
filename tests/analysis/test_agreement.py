"""What the groups say of each other's detections, and whether it tells right from wrong."""
import json
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from deploy_models import write_detector
from mmengine.structures import InstanceData
from pycocotools.coco import COCO
from running import run_tool

from groupdetr_mmdet.analysis.agreement import (add_agreement, auroc, is_correct,
                                                measure_agreement)
from groupdetr_mmdet.commands.cli import run


def instances(*detections) -> InstanceData:
    """Detections as (left, width, label, score, group), 10 pixels high."""
    left, width, labels, scores, groups = (torch.tensor(x) for x in zip(*detections))
    zeros = torch.zeros(len(left))
    boxes = torch.stack([left, zeros, left + width, zeros + 10], 1).float()
    return InstanceData(bboxes=boxes, labels=labels, scores=scores, query_groups=groups)


def test_what_each_group_thinks_of_a_detection():
    groups = instances(
        (0, 10, 0, .9, 0), (0, 10, 0, .4, 0), (50, 10, 1, .8, 0),  # a duplicate; another object
        (1, 10, 0, .7, 1), (50, 10, 2, .8, 1),  # the same object; another label
        (2, 10, 0, .5, 2), (53, 10, 1, .6, 2), (20, 5, 1, .3, 2))
    kept = groups[groups.query_groups == 0]
    add_agreement(kept, groups, num_groups=4)
    assert kept.found_by.tolist() == [3, 1, 2]
    nan = float('nan')
    expected = torch.tensor([[.9, .7, .5, nan], [.4, nan, nan, nan], [.8, nan, .6, nan]])
    torch.testing.assert_close(kept.group_scores.float(), expected, equal_nan=True)
    assert kept.score_std.tolist() == pytest.approx([np.std([.9, .7, .5]), 0, .1])
    assert kept.box_std[0].tolist() == pytest.approx([np.std([0, 1, 2]), 0] * 2)
    assert kept.box_std[2].tolist() == pytest.approx([1.5, 0] * 2)


def test_no_detection_is_no_mistake():
    groups = instances((0, 10, 0, .9, 1))
    kept = groups[groups.query_groups == 0]
    add_agreement(kept, groups, num_groups=2)
    assert kept.group_scores.shape == (0, 2) and kept.box_std.shape == (0, 4)


def test_auroc_counts_the_pairs_in_order():
    rng = np.random.default_rng(0)
    certainty, correct = rng.integers(5, size=40) / 5, rng.random(40) < .4
    pairs = certainty[correct][:, None] - certainty[~correct]
    assert auroc(certainty, correct) == pytest.approx(((pairs > 0) + (pairs == 0) / 2).mean())
    assert np.isnan(auroc(certainty, np.ones(40, bool)))


@pytest.fixture
def ground_truth(tmp_path) -> Path:
    """Two images with one object each, and a crowd in the first."""
    path = tmp_path / 'truth.json'
    box = dict(area=100, iscrowd=0, category_id=1, bbox=[0, 0, 10, 10])
    path.write_text(json.dumps(dict(
        images=[dict(id=i, width=100, height=100, file_name=f'{i}.jpg') for i in (1, 2)],
        annotations=[dict(box, id=1, image_id=1), dict(box, id=2, image_id=2),
                     dict(box, id=3, image_id=1, iscrowd=1, bbox=[50, 50, 40, 40])],
        categories=[dict(id=1, name='a'), dict(id=2, name='b')])))
    return path


def result(image_id, bbox, score, group_scores, category_id=1) -> dict:
    found = [x for x in group_scores if x is not None]
    return dict(image_id=image_id, category_id=category_id, bbox=bbox, score=score,
                group_scores=group_scores, found_by=len(found), score_std=float(np.std(found)),
                box_std=[0.] * 4)


# Of a right and a wrong detection in each image, and one on the crowd: agreement knows better.
RESULTS = [
    result(1, [0, 0, 10, 9], .5, [.5, .6]), result(1, [30, 0, 10, 10], .8, [.8, None]),
    result(2, [0, 0, 9, 10], .6, [.6, .6]), result(2, [0, 0, 10, 10], .7, [.7, None], 2),
    result(1, [55, 55, 20, 20], .9, [.9, .9]),
]


def test_right_is_what_coco_says(ground_truth):
    correct, counts = is_correct(RESULTS, COCO(str(ground_truth)))
    assert correct[:4].tolist() == [True, False, True, False]
    assert counts.tolist() == [True] * 4 + [False]


def test_a_certainty_that_knows_better_gains(ground_truth):
    measured = {x.name: x for x in measure_agreement(RESULTS, COCO(str(ground_truth)))}
    assert measured['score'].auroc == 0 and measured['score'].gain == (0, 0)
    agreement = measured['groups that found it']
    assert agreement.auroc == 1 and agreement.gain == (1, 1)
    assert agreement.calibration_error == pytest.approx(.25)  # .5 is said, 0 is right
    assert measured['steadiness of the box'].auroc == .5


def test_the_command_says_and_draws_it(ground_truth, tmp_path, capsys):
    results = tmp_path / 'results.json'
    results.write_text(json.dumps(RESULTS))
    run('agreement', [str(results), str(ground_truth)])
    said = capsys.readouterr().out
    assert '2 of 4 detections are right' in said and '+1.000 to +1.000' in said
    assert cv2.imread(str(tmp_path / 'agreement.png')) is not None


@pytest.mark.parametrize('results, sentence', [
    ([], 'has no detection'),
    ([dict(RESULTS[0], image_id=7)], 'has image_id=7'),
    ([{key: x for key, x in RESULTS[0].items() if key != 'group_scores'}],
     'predict --all-groups'),
    (RESULTS[:1], 'no wrong ones'),
    ('text', 'predict --all-groups'),
])
def test_other_files_get_a_sentence(results, sentence, ground_truth, tmp_path, capsys):
    path = tmp_path / 'results.json'
    path.write_text(json.dumps(results))
    for arguments, expected in (((path, ground_truth), sentence),
                                ((path, path), 'is not in COCO format')):
        with pytest.raises(SystemExit):
            run('agreement', list(map(str, arguments)))
        assert expected in (error := capsys.readouterr().err) and error.count('\n') == 1


def test_prediction_with_all_groups(tmp_path, capsys):
    """Each group's scores are in it, those of the kept one first; and equal groups agree."""
    files = write_detector(tmp_path / 'model')
    image = files.data / 'images/val_0.jpg'
    options = (image, files.config, files.checkpoint, '--score-thr', 0, '--query-group', 1)
    predicted = {}
    for name, arguments in dict(one=(), all=('--all-groups', )).items():
        assert run_tool('predict', *options, '--out', tmp_path / name, *arguments) == 0
        predicted[name] = json.loads((tmp_path / name / 'results.json').read_text())
    for one, each in zip(predicted['one'], predicted['all']):
        for name in ('score', 'bbox', 'category_id'):
            assert each[name] == pytest.approx(one[name], rel=1e-4)
        assert each['group_scores'][1] == pytest.approx(each['score'], abs=1e-6)
        assert each['found_by'] == sum(x is not None for x in each['group_scores'])
    pictures = [cv2.imread(str(tmp_path / name / 'vis/val_0.jpg')) for name in predicted]
    assert (pictures[0] != pictures[1]).any()

    weights = torch.load(files.checkpoint)
    queries = weights['state_dict']['query_embedding.weight']
    queries.copy_(queries[:len(queries) // 3].repeat(3, 1))
    torch.save(weights, files.checkpoint)
    assert run_tool('predict', *options, '--out', tmp_path / 'equal', '--all-groups') == 0
    for x in json.loads((tmp_path / 'equal/results.json').read_text()):
        assert x['found_by'] == 3 and x['score_std'] < 1e-6 and max(x['box_std']) < 1e-3

    stock = write_detector(tmp_path / 'stock', num_query_groups=None, width=256)
    assert run_tool('predict', image, stock.config, stock.checkpoint, '--out', tmp_path,
                    '--all-groups') == 2
    assert '--all-groups: model.type=ConditionalDETR has no groups' in capsys.readouterr().err
