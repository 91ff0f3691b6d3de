"""The report holds all that it shows."""
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import pytest
from mmengine.config import Config
from running import run_tool
from tiny import tiny_config, tiny_runner, write_tiny_coco

K = 3


def train(folder: Path, **changes) -> Path:
    """Train for two epochs and return the work directory."""
    work_dir = folder / 'K & 3'  # must be escaped in HTML
    tiny_runner(tiny_config(write_tiny_coco(folder / 'coco')), work_dir, **changes).train()
    return work_dir


@pytest.fixture(scope='module')
def work_dir(tmp_path_factory) -> Path:
    """Two epochs, with the stability of the matching."""
    return train(tmp_path_factory.mktemp('report'),
                 custom_hooks=[dict(type='MatchingStabilityHook', num_images=2)])


@pytest.fixture(scope='module')
def report(work_dir) -> Path:
    assert run_tool('report', work_dir, '--compare', work_dir, '--labels', 'baseline',
                    'K = 3 <b>') == 0
    return work_dir / 'report.html'


class Page(HTMLParser):
    """The pictures, the tags and the text of a page."""

    def __init__(self, file: Path) -> None:
        super().__init__()
        self.images, self.text, self.tags = [], '', set()
        self.feed(file.read_text())

    def handle_starttag(self, tag: str, attrs: list) -> None:
        self.tags.add(tag)
        if tag == 'img':
            self.images.append(dict(attrs)['src'])

    def handle_data(self, data: str) -> None:
        self.text += data


def test_it_holds_all_that_it_shows(report, work_dir):
    page = Page(report)
    # four curves, groups, 4 pairs of detections, 2 times 3 pictures of queries and their legend
    assert len(page.images) == 4 + 1 + 4 + 2 * 3 + 1
    assert all(re.match('data:image/(jpeg|svg.xml);base64,', image) for image in page.images)
    assert not re.search(r'(src|href)="(?!data:)', report.read_text())
    assert not {'script', 'link', 'b'} & page.tags, 'a label is text'
    for text in ('Best AP: K = 3 <b> 0.', 'MMDetection 3.', 'GroupConditionalDETR: K = 3 <b>',
                 'median', 'spread', 'all groups, joint self-attention: '):
        assert text in page.text
    assert (work_dir / 'epoch_2.groups.json').is_file()


def test_what_was_recorded_is_not_evaluated_again(report, work_dir, tmp_path, capfd):
    shutil.copytree(work_dir, work_dir / 'baseline')
    assert run_tool('report', work_dir, '--out', tmp_path / 'again.html') == 0
    assert len(''.join(capfd.readouterr()).splitlines()) == 1, 'the log file has all else'
    logs = [log.read_text() for log in work_dir.glob('report/*/*.log')]
    assert sum('Epoch(test)' in log for log in logs) == 1 < len(logs)
    html = (tmp_path / 'again.html').read_text()
    assert 'K &amp; 3' in html and '<td>baseline</td>' in html, 'as the demo compares'


def test_an_ablation_has_no_groups_to_show(tmp_path):
    folder = train(tmp_path, **{
        'model.separate_self_attn': False, 'model.test_cfg.query_group': 'all',
        'model.train_cfg.assigner.type': 'OneToManyHungarianAssigner'})
    assert run_tool('report', folder) == 0
    page = Page(folder / 'report.html')
    assert len(page.images) == 3 + 4, 'three curves and 4 pairs of detections'


def test_a_training_of_several_processes_and_later_tests(report, work_dir, tmp_path):
    """The launcher is not there any more, and the config of a test is not the training's."""
    folder = tmp_path / 'work'
    shutil.copytree(work_dir, folder)
    trained, = folder.glob('*/vis_data/config.py')
    cfg = Config.fromfile(trained)
    cfg.launcher = 'pytorch'
    cfg.dump(trained)
    later = folder / '99991231_000000/vis_data'
    later.mkdir(parents=True)
    (later / 'config.py').write_text('model = None')
    (later / 'scalars.json').write_text('{"coco/bbox_mAP": 0.1, "step": 0}')
    assert run_tool('report', folder) == 0
    assert (folder / 'report.html').is_file()
