"""Figures show what was measured, with units."""
import json
import re
from pathlib import Path
from typing import List, Sequence

import cv2
import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from builders import build, detector_config
from running import run_tool
from tiny import CLASSES, tiny_config, tiny_runner

from groupdetr_mmdet.analysis import query_plots, runs
from groupdetr_mmdet.analysis.group_metrics import draw_groups
from groupdetr_mmdet.analysis.plots import detection_pairs
from groupdetr_mmdet.analysis.query_plots import draw_queries, query_pictures
from groupdetr_mmdet.analysis.runs import AP, comparison, draw_runs, read_log, read_run
from groupdetr_mmdet.errors import ConfigError

K = 3


@pytest.fixture
def figures(monkeypatch) -> List[plt.Figure]:
    """All figures that are closed, to look at what they drew."""
    closed = []
    for module in (query_plots, runs):
        monkeypatch.setattr(module.plt, 'close', closed.append)
    return closed


def write_log(work_dir: Path, aps: Sequence[float], first_epoch: int = 1, seconds: float = 36.,
              name: str = '1', stability: bool = False) -> Path:
    """Write what mmengine writes in a training of 10 iterations an epoch."""
    lines = []
    for epoch, ap in enumerate(aps, first_epoch):
        for step in (10 * epoch - 5, 10 * epoch):
            lines.append(dict(loss=1 / step, time=seconds, epoch=epoch, step=step))
        lines.append({AP: ap, 'step': epoch, 'time': 9.})
        if stability:
            lines.append({'instability/mean': ap, 'step': epoch})
    file = work_dir / name / 'vis_data/scalars.json'
    file.parent.mkdir(parents=True)
    file.write_text('\n'.join(map(json.dumps, lines)))
    return work_dir


def test_hours_are_those_of_training_without_validation(tmp_path):
    run = read_run(write_log(tmp_path, [.1, .2, .3], seconds=36))
    assert [entry['hours'] for entry in run.val] == pytest.approx([.1, .2, .3])
    assert [entry['units'] for entry in run.train] == pytest.approx([.5, 1, 1.5, 2, 2.5, 3])


def test_a_resumed_run_continues_where_it_was_resumed(tmp_path):
    write_log(tmp_path, [.1, .2, .25], seconds=36)
    write_log(tmp_path, [.3, .4], first_epoch=3, seconds=72, name='2')
    run = read_run(tmp_path)
    assert [entry[AP] for entry in run.val] == [.1, .2, .3, .4]
    assert [entry['step'] for entry in run.val] == [1, 2, 3, 4]
    assert run.val[-1]['hours'] == pytest.approx(.2 + .4)


def test_what_it_took_to_reach_the_final_ap_of_the_baseline(tmp_path):
    baseline = read_run(write_log(tmp_path / 'base', [.1, .2, .3, .28], seconds=18))
    groups = read_run(write_log(tmp_path / 'groups', [.2, .29, .4], seconds=36), 'K = 11')
    slow = read_run(write_log(tmp_path / 'slow', [.1, .2]))
    header, rows = comparison([baseline, groups, slow])
    assert header[-2:] == ['epochs to AP 0.280', 'hours to AP 0.280']
    assert rows == [['base', '4', '0.2', '0.280', '0.300', '3', '0.15'],
                    ['K = 11', '3', '0.3', '0.400', '0.400', '2', '0.2'],
                    ['slow', '2', '0.2', '0.200', '0.200', 'never', 'never']]


def test_runs_are_drawn_as_measured(tmp_path, figures):
    logged = [write_log(tmp_path / 'base', [.1, .2]),
              write_log(tmp_path / 'groups', [.2, .3], stability=True)]
    draw_runs([read_run(x) for x in logged], tmp_path / 'runs.png')
    by_epoch, by_hour, _, instability = figures[0].axes
    assert [line.get_ydata().tolist() for line in by_epoch.lines] == [[.1, .2], [.2, .3]]
    assert by_hour.lines[1].get_xdata().tolist() == pytest.approx([.1, .2])
    assert [len(line.get_xdata()) for line in instability.lines] == [0, 2]
    assert [x.get_text() for x in by_hour.get_legend().texts] == ['base', 'groups']


def test_plot_runs_prints_its_table(tmp_path, capfd):
    logged = [write_log(tmp_path / name, [.1, .2]) for name in ('a', 'b')]
    out = tmp_path / 'made/runs.svg'
    assert run_tool('plot_runs', *logged, '--labels', 'one', 'eleven', '--out', out) == 0
    assert 'eleven' in capfd.readouterr().out and out.read_text().startswith('<?xml')


@pytest.mark.parametrize('args, error', [
    (['nowhere'], 'WORK_DIR nowhere has no */vis_data/scalars.json of a run'),
    (['unfinished'], 'the run unfinished has no coco/bbox_mAP in its log'),
    (['a', 'b', '--labels', 'one'], '--labels: 1 labels for 2 runs'),
    (['a', '--out', 'runs.txt'], '--out: runs.txt is not the name of a picture'),
])
def test_runs_that_are_not_compared(args, error, tmp_path, last_error, monkeypatch):
    monkeypatch.chdir(tmp_path)
    file = write_log(tmp_path / 'unfinished', [.1]) / '1/vis_data/scalars.json'
    file.write_text('\n'.join(x for x in file.read_text().splitlines() if AP not in x))
    assert error in last_error('plot_runs', *args) and not (tmp_path / 'runs.png').exists()


@pytest.mark.parametrize('by_epoch', [False, True])
def test_a_run_by_iteration_has_its_curve(tiny_coco, tmp_path, by_epoch, figures, capfd,
                                          last_error):
    """With mmengine's ``by_epoch=True``, too, which logs 0 for the step of each validation."""
    cfg = tiny_config(tiny_coco)
    cfg.train_cfg = dict(type='IterBasedTrainLoop', max_iters=4, val_interval=2)
    cfg.param_scheduler = []
    cfg.log_processor = dict(by_epoch=by_epoch)
    cfg.default_hooks.checkpoint.update(by_epoch=False, interval=4)
    cfg.default_hooks.logger.update(interval=1, log_metric_by_epoch=by_epoch)
    tiny_runner(cfg, tmp_path / 'work').train()
    run = read_run(tmp_path / 'work')
    assert [x['step'] for x in run.val] == [2, 4] and run.unit == 'iteration'
    assert run.val[1]['hours'] == run.train[3]['hours'] > run.val[0]['hours'] > 0
    draw_runs([run], tmp_path / 'runs.png')
    by_iteration, _, loss = figures[0].axes
    assert by_iteration.lines[0].get_xdata().tolist() == [2, 4]
    assert loss.lines[0].get_xdata().tolist() == [1, 2, 3, 4]
    assert run_tool('report', tmp_path / 'work') == 0
    page = (tmp_path / 'work/report.html').read_text()
    assert 'in 4 iterations' in page and 'AP by iteration' in page
    epochs = write_log(tmp_path / 'epochs', [.1])
    capfd.readouterr()
    assert 'the run epochs ' in last_error('plot_runs', tmp_path / 'work', epochs)


def test_groups_are_drawn_with_their_median():
    ax, = draw_groups([dict(bbox_mAP=x) for x in (.3, .5, .1)]).axes
    assert [bar.get_height() for bar in ax.patches] == [.3, .5, .1]
    assert ax.lines[0].get_ydata() == [.3, .3] and 'spread 0.400, best 1' in ax.get_title()
    plt.close(ax.figure)


def test_queries_of_all_groups_are_drawn(tiny_coco, tmp_path):
    runner = tiny_runner(tiny_config(tiny_coco), tmp_path)
    model, dataset = runner.model, runner.test_dataloader.dataset
    pictures = query_pictures(model, dataset, index=0, score_thr=0., max_objects=2)
    objects = len(dataset[0]['data_samples'].gt_instances)
    counts = [re.findall(r'\d+ ', title) for title, _ in pictures]
    assert counts == [[f'{min(objects, 2)} '], ['0 ', '10 ', f'{objects} '], ['30 ']]
    image = cv2.resize(cv2.imread(dataset.get_data_info(0)['img_path']), (480, 480))[..., ::-1]
    assert all(np.abs(x.astype(float) - image).max() > 50 for _, x in pictures)
    draw_queries(model, dataset, tmp_path / 'queries.png', images=[0, 3])
    assert cv2.imread(str(tmp_path / 'queries.png')).std() > 10
    assert [layer.self_attn.num_queries for layer in model.decoder.layers] == [10, 10]


def test_detections_are_drawn_beside_the_ground_truth(tiny_coco, tmp_path):
    """With fewer colors than classes, too, as a data set of many classes has CocoDataset's 80."""
    runner = tiny_runner(tiny_config(tiny_coco), tmp_path)
    dataset = runner.test_dataloader.dataset
    dataset._metainfo['palette'] = [(255, 0, 0)]
    pairs = [list(detection_pairs(runner.model, dataset, 1, score_thr)) for score_thr in (0., 1.)]
    (name, every), (_, none) = pairs[0] + pairs[1]
    assert name == 'val_0.jpg' and every.shape == (320, 2 * 320, 3)
    truth, detections = np.split(every != none, 2, axis=1)
    assert detections.any() and not truth.any(), 'the threshold is of detections alone'


def test_draw_queries_command(tiny_config_file, tmp_path, last_error):
    checkpoint, out = tmp_path / 'weights.pth', tmp_path / 'made/queries.png'
    torch.save(build(detector_config(num_classes=len(CLASSES))).state_dict(), checkpoint)
    args = ['draw_queries', tiny_config_file, checkpoint, '--out', out, '--images']
    assert run_tool(*args, 1) == 0
    assert cv2.imread(str(out)).std() > 10
    assert '--images: 4 is not one of the 4 images of' in last_error(*args, 4)


def test_a_log_whose_last_entry_is_cut_is_read(tmp_path):
    log = tmp_path / 'scalars.json'
    log.write_text('{"loss": 1}\n{"loss": 0.5}\n{"lo')
    assert read_log(log) == [dict(loss=1), dict(loss=.5)]
    log.write_text('{"loss": 1}\nnull\n{"loss": 0.5}')
    with pytest.raises(ConfigError, match='scalars.json is damaged in line 2'):
        read_log(log)
