import functools
import http.server
import logging
import os
import threading
from pathlib import Path
from typing import Callable, Iterator, List, Set, Tuple
from unittest import mock

import pytest
import torch
from mmengine.logging import MMLogger
from mmengine.registry import init_default_scope
from running import forget_runs, run_tool
from tiny import tiny_config, write_tiny_coco

from groupdetr_mmdet.errors import warn_once

SLOW_TESTS = Path(__file__).with_name('slow_tests.txt')
SLOW_SECONDS = .3
SET_UP = ' (set-up)'
spent = [0.]  # by the last report


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption('--record-slow', action='store_true',
                     help=f'write the tests that took more than {SLOW_SECONDS:g} s of CPU to '
                     f'{SLOW_TESTS.name}; run every test with it')


def pytest_collection_modifyitems(items: List[pytest.Item]) -> None:
    """Mark as slow what was slow when the tests were last measured.

    Where the set-up was slow, every test of the file that would make the same fixtures is.
    """
    slow = set(SLOW_TESTS.read_text().splitlines())
    fixtures = {fixture for item in items if f'{item.nodeid}{SET_UP}' in slow
                for fixture in shared_fixtures(item)}
    for item in items:
        own = {item.nodeid, f'{item.nodeid}{SET_UP}'}
        if own & slow or fixtures & shared_fixtures(item):
            item.add_marker(pytest.mark.slow)
    spent[0] = cpu_seconds()


def cpu_seconds() -> float:
    """Time of this process, and of its children that have ended; other work changes it little."""
    return sum(os.times()[:4])


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Iterator[None]:
    """Let the duration of a test be the time of the CPU."""
    report = yield
    before, spent[0] = spent[0], cpu_seconds()
    report.duration = spent[0] - before
    return report


def shared_fixtures(item: pytest.Item) -> Set[Tuple[str, str]]:
    """Return file and name of the fixtures that a test shares with other tests of its file."""
    file = item.nodeid.partition('::')[0]
    return {(file, name) for name, found in item._fixtureinfo.name2fixturedefs.items()
            if found[-1].baseid == file and found[-1].scope != 'function'}


def pytest_terminal_summary(terminalreporter, config: pytest.Config) -> None:
    if not config.getoption('record_slow'):
        return
    reports = terminalreporter.getreports('passed') + terminalreporter.getreports('')
    slow = {report.nodeid + SET_UP * (report.when == 'setup') for report in reports
            if report.duration > SLOW_SECONDS}
    SLOW_TESTS.write_text('\n'.join(sorted(slow)) + '\n')


@pytest.fixture(autouse=True)
def own_logger() -> None:
    """Let no test write to the log of another."""
    forget_runs()


@pytest.fixture(autouse=True, scope='module')
def mmdet_scope() -> None:
    """Let no file inherit the scope that the last runner of another one left."""
    init_default_scope('mmdet')


@pytest.fixture(autouse=True, scope='session')
def unformatted_configs():
    """Spare the second in which yapf lays out a config, at every start and in every checkpoint."""
    with mock.patch('mmengine.config.config.FormatCode', lambda text, **_: (text, True),
                    create=True):  # onedl's fork imports it where it is called
        yield


@pytest.fixture
def tiny_coco(tmp_path: Path) -> Path:
    """A folder with ``images/``, ``train.json`` (8 images) and ``val.json`` (4 images)."""
    warn_once.cache_clear()
    return write_tiny_coco(tmp_path / 'coco')


@pytest.fixture
def tiny_config_file(tiny_coco: Path, tmp_path: Path) -> Path:
    """A config file of a small detector and two epochs on ``tiny_coco``."""
    config_file = tmp_path / 'tiny.py'
    tiny_config(tiny_coco).dump(config_file)
    return config_file


@pytest.fixture
def last_error(capfd: pytest.CaptureFixture) -> Callable[..., str]:
    """Run a tool that is to end before the first step, and return its last line, the error."""
    def run(*args) -> str:
        status, captured = run_tool(*args), capfd.readouterr()
        assert status == 2 and 'Traceback' not in captured.err, captured.err
        assert 'Epoch(train)' not in captured.out + captured.err
        last = captured.err.splitlines()[-1]
        assert 'error: ' in last
        return last

    return run


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Address under which the files of ``tmp_path`` are served; torch.hub's folder is empty."""
    monkeypatch.setenv('TORCH_HOME', str(tmp_path / 'cache'))
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(tmp_path))
    with http.server.ThreadingHTTPServer(('127.0.0.1', 0), handler) as httpd:
        threading.Thread(target=httpd.serve_forever, args=(.01, ), daemon=True).start()
        yield f'http://127.0.0.1:{httpd.server_port}'
        httpd.shutdown()


@pytest.fixture
def warnings_logged(caplog: pytest.LogCaptureFixture):
    """Messages of the warnings that mmengine's logger gives."""
    logger = MMLogger.get_current_instance()
    logger.addHandler(caplog.handler)
    yield lambda: [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]
    logger.removeHandler(caplog.handler)


@pytest.fixture
def same_noise(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let every group and run draw the same denoising queries."""
    from mmdet.models.layers import CdnQueryGenerator  # after groupdetr_mmdet
    generate = CdnQueryGenerator.__call__

    def generate_again(self, samples):
        torch.manual_seed(0)
        return generate(self, samples)

    monkeypatch.setattr(CdnQueryGenerator, '__call__', generate_again)
