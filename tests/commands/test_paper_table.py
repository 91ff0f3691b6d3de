"""The paper's table is that of the metafile, with the AP of given runs."""
import json

import pytest

from groupdetr_mmdet.commands.paper_table import paper_rows
from groupdetr_mmdet.errors import ConfigError


def write_run(work_dir, **metrics):
    folder = work_dir / '20260101_000000/vis_data'
    folder.mkdir(parents=True)
    entries = [dict(loss=1., epoch=1, step=10, time=1.), dict(step=1, **metrics),
               dict(loss=1., epoch=2, step=20, time=1.),
               dict(step=2, **{name: 2 * value for name, value in metrics.items()})]
    (folder / 'scalars.json').write_text('\n'.join(map(json.dumps, entries)))
    return work_dir


def test_every_row_of_the_paper():
    rows = {row[0]: row[1:] for row in paper_rows([])}
    assert len(rows) == 19
    assert rows['group_cond_detr_r50_12e'] == ['box', '32.6', '37.6', '', '']
    assert rows['group_dn_detr_r50_dc5_50e'] == ['box', '47.5', '48.0', '', '']
    assert rows['group_mask2former_r50_12e'] == ['mask', '38.5', '39.7', '', '']
    assert all(float(row[2]) > float(row[1]) for row in rows.values())


def test_runs_stand_beside_the_paper(tmp_path):
    box = write_run(tmp_path / 'box', **{'coco/bbox_mAP': .1})
    mask = write_run(tmp_path / 'mask', **{'coco/bbox_mAP': .1, 'coco/segm_mAP': .2})
    rows = {row[0]: row[4:] for row in paper_rows([
        f'cond_detr_r50_12e={box}', f'group_mask2former_r50_50e={mask}'])}
    assert rows.pop('group_cond_detr_r50_12e') == ['20.0 (2e)', '']
    assert rows.pop('group_mask2former_r50_50e') == ['', '40.0 (2e)']
    assert all(row == ['', ''] for row in rows.values())


def test_what_it_does_not_know(tmp_path):
    box = write_run(tmp_path / 'box', **{'coco/bbox_mAP': .1})
    for run, error in (('box', 'names no config'), (f'cond_detr_demo={box}', 'names no config'),
                       (f'mask2former_r50_12e={box}', 'has no coco/segm_mAP'),
                       (f'cond_detr_r50_12e={tmp_path}', 'WORK_DIR .* has no'),
                       (f'cond_detr_r50_12e={tmp_path}/none', 'WORK_DIR .* does not exist')):
        with pytest.raises(ConfigError, match=error):
            paper_rows([run])
