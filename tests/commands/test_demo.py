"""The generated data set is valid, and the demo runs from an empty folder to its pictures."""
import json
import shlex
from argparse import Namespace
from pathlib import Path

import numpy as np
import pytest
from pycocotools.coco import COCO
from running import run_tool

import groupdetr_mmdet.data.shapes as shapes
from groupdetr_mmdet.commands.demo import training_beside
from groupdetr_mmdet.errors import ConfigError

ROOT = Path(__file__).resolve().parents[2]
SIZES = dict(num_train=6, num_val=4, size=64)


@pytest.fixture(scope='module')
def dataset(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp('data') / 'shapes'
    assert shapes.make_shapes(root, **SIZES)
    return root


def contents(root: Path) -> dict:
    return {str(path.relative_to(root)): path.read_bytes()
            for path in root.rglob('*') if path.is_file()}


def test_same_seed_same_files(dataset, tmp_path):
    shapes.make_shapes(tmp_path / 'again', **SIZES)
    assert contents(tmp_path / 'again') == contents(dataset)


@pytest.mark.parametrize('split', shapes.SPLITS)
def test_boxes_are_tight_and_inside(dataset, split):
    coco = COCO(dataset / f'{split}.json')
    assert len(coco.imgs) == SIZES[f'num_{split}']
    assert coco.anns
    for ann in coco.anns.values():
        x, y, w, h = ann['bbox']
        assert x >= 0 and y >= 0 and x + w <= SIZES['size'] and y + h <= SIZES['size']
        ys, xs = np.nonzero(coco.annToMask(ann))
        drawn = [xs.min(), ys.min(), xs.max() + 1, ys.max() + 1]
        np.testing.assert_allclose(drawn, [x, y, x + w, y + h], atol=1.5)


def test_a_folder_that_holds_something_else_is_kept(tmp_path):
    for settings in ('{', '{}', '{"editor.fontSize": 12}'):
        (tmp_path / 'settings.json').write_text(settings)
        with pytest.raises(ConfigError, match='would be lost'):
            shapes.make_shapes(tmp_path, num_train=1, num_val=1, size=32)
        assert (tmp_path / 'settings.json').read_text() == settings


def test_other_settings_replace_it(tmp_path):
    root = tmp_path / 'shapes'
    shapes.make_shapes(root, **SIZES)
    assert shapes.make_shapes(root, **dict(SIZES, num_train=2))
    assert len(list((root / 'train').iterdir())) == 2
    assert list(tmp_path.iterdir()) == [root]


def test_an_interrupted_run_leaves_what_was_there(tmp_path, monkeypatch):
    root, write_split = tmp_path / 'shapes', shapes.write_split
    shapes.make_shapes(root, **SIZES)
    before = contents(root)

    def interrupted(root: Path, split: str, *args) -> None:
        if split != 'train':
            raise KeyboardInterrupt
        write_split(root, split, *args)

    monkeypatch.setattr(shapes, 'write_split', interrupted)
    for folder in (root, tmp_path / 'new'):
        with pytest.raises(KeyboardInterrupt):
            shapes.make_shapes(folder, **dict(SIZES, num_train=2))
    assert contents(root) == before and list(tmp_path.iterdir()) == [root]


def last_scalars(work_dir: Path) -> dict:
    scalars, = work_dir.glob('*/vis_data/scalars.json')
    return json.loads(scalars.read_text().splitlines()[-1])


@pytest.mark.slow
def test_demo_ends_with_pictures_and_a_comparison(tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    assert run_tool('demo', '--quick', '--baseline', 'cond_detr_demo') == 0
    work_dir = tmp_path / 'work_dirs/demo'
    report = capfd.readouterr().out.splitlines()[-6:]
    for folder, line in ((work_dir, report[1]), (work_dir / 'baseline', report[2])):
        assert f'AP50 {last_scalars(folder)["coco/bbox_mAP_50"]:.3f}' in line
    html = (work_dir / 'report.html').read_text()
    assert '<td>cond_detr_demo</td>' in html and '<td>group_cond_detr_demo</td>' in html
    assert any(line.startswith('  work_dirs/demo/report.html: ') for line in report)
    run_the_quick_start(tmp_path)


@pytest.mark.slow
def test_the_demo_of_masks(tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    assert run_tool('demo', '--quick', 'group_mask2former_demo', '--work-dir', 'masks') == 0
    mask_ap = last_scalars(tmp_path / 'masks')['coco/segm_mAP']
    assert f'mask AP {mask_ap:.3f} ' in capfd.readouterr().out
    assert (tmp_path / 'masks/report.html').exists()


def run_the_quick_start(folder: Path) -> None:
    """Run the page's commands on the demo's checkpoint, here of one epoch."""
    page = (ROOT / 'docs/quickstart.md').read_text()
    block = page.partition('## Use what it trained')[2].split('```')[1]
    lines = block.strip().replace('epoch_10', 'epoch_1').splitlines()
    assert len(lines) == 3
    for line in lines:
        _, command, *words = shlex.split(line)
        assert run_tool(command.replace('-', '_'), *words) == 0
    assert (folder / 'found/results.json').is_file() and (folder / 'runs.png').is_file()


@pytest.mark.slow
def test_a_failed_baseline_ends_the_demo(tmp_path):
    bad = tmp_path / 'bad.py'
    bad.write_text(f"_base_ = '{ROOT / 'configs/demo/cond_detr_demo.py'}'\n"
                   "model = dict(num_query_groups=0)\n")
    args = Namespace(baseline=str(bad), work_dir=str(tmp_path / 'work'), quick=True,
                     data_root=str(tmp_path / 'shapes'))
    with pytest.raises(ConfigError, match=f'--baseline: {bad} ended with status 2; '):
        with training_beside(args):
            pass
    output = tmp_path / 'work/baseline/output.txt'
    assert 'num_query_groups=0' in output.read_text().splitlines()[-1]
