"""What the documentation says is there: files, modules, configs with their AP, and commands."""
import argparse
import importlib
import re
import shlex
import sys
from pathlib import Path
from typing import Iterator, Tuple

import pytest
import yaml

import benchmarks.__main__ as benchmark
from benchmarks import plots
from groupdetr_mmdet.commands.cli import COMMANDS

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / 'README.md', ROOT / 'CONTRIBUTING.md', *sorted(ROOT.glob('docs/*.md')),
         ROOT / 'benchmarks/README.md']
BENCHMARKS = dict(benchmark=benchmark, plot_benchmark=plots)


def commands(page: Path) -> Iterator[str]:
    """Yield the command lines of this package in a page's blocks of code."""
    text = page.read_text()
    blocks = re.findall(r'^```\w*\n(.*?)^```', text, re.DOTALL | re.MULTILINE)
    blocks += re.findall(r'(?:^    .*\n)+', text, re.MULTILINE)
    for line in '\n'.join(blocks).replace('\\\n', ' ').splitlines():
        if re.match(r'\s*(groupdetr(?= [a-z])|python tools/\w+\.py) ', line):
            yield line.strip()


def command_and_arguments(line: str) -> Tuple[str, list]:
    """Name the command that a line runs, by its own name or by a script of ``tools/``."""
    program, *words = shlex.split(line, comments=True)
    name, *arguments = words
    if program == 'groupdetr':
        return name, arguments
    script = ROOT / name
    said = re.search(r"run\('([\w-]+)'", script.read_text())
    return (said[1] if said else script.stem), arguments


@pytest.mark.parametrize('page', PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_commands_are_ones_that_the_command_line_takes(page: Path, monkeypatch):
    for line in commands(page):
        name, arguments = command_and_arguments(line)
        try:
            if name in BENCHMARKS:
                monkeypatch.setattr(sys, 'argv', [name, *arguments])
                BENCHMARKS[name].parse_args()
                continue
            assert name in COMMANDS, line
            module = importlib.import_module(
                f'groupdetr_mmdet.commands.{name.replace("-", "_")}')
            parser = argparse.ArgumentParser()
            module.add_arguments(parser)
            parser.parse_intermixed_args(arguments)
        except SystemExit:
            pytest.fail(f'{page.name}: the command line refuses: {line}')


@pytest.mark.parametrize('page', PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_to_files(page: Path):
    links = re.findall(r'\]\((?!\w+:|#)([^)#\s]+)', page.read_text())
    assert [link for link in links if not (page.parent / link).exists()] == []


def test_the_pages_have_commands_to_check():
    assert len([line for page in PAGES for line in commands(page)]) > 30


def test_the_architecture_names_every_module_of_the_core_and_every_room():
    text = (ROOT / 'docs/architecture.md').read_text()
    package = ROOT / 'groupdetr_mmdet'
    modules = {f'`{file.name}`' for file in package.glob('[!_]*.py')}
    rooms = {f'`{file.parent.name}/`' for file in package.glob('*/__init__.py')}
    assert {name for name in modules | rooms if name not in text} == set()


def test_configs_on_coco_are_listed_with_the_papers_ap():
    metafile = yaml.safe_load((ROOT / 'configs/metafile.yml').read_text())
    rows = re.findall(r'^\| \[group_(.+?)\]\(.*?\) \| (.*?) \| (\d+) \| ([\d.]*) \| ([\d.]*) \|$',
                      (ROOT / 'docs/configs.md').read_text(), re.MULTILINE)
    listed = {}
    for name, baseline, epochs, with_groups, without in rows:
        listed[f'group_{name}'] = int(epochs), with_groups
        if baseline:
            assert baseline == f'[{name}](../configs/{name}.py)'
            listed[name] = int(epochs), without
    expected = {
        model['Name']: (model['Metadata']['Epochs'],
                        str(*model['Results'][0]['Metrics'].values()))
        for model in metafile['Models'] if 'Results' in model and 'ablation' not in model['Config']
    }
    assert expected.items() <= listed.items()
    assert {name for name, (_, ap) in listed.items() if ap} == expected.keys()


def test_every_page_has_a_place_on_the_site():
    pages = {page.stem for page in ROOT.glob('docs/*.md')} - {'index'}
    listed = re.findall(r'^[\w/-]+$', '\n'.join(re.findall(
        r'```{toctree}\n(.*?)```', '\n'.join(page.read_text() for page in ROOT.glob('docs/*.md')),
        re.DOTALL)), re.MULTILINE)
    assert pages <= set(listed)
    assert set(listed) - pages == {'api/index'}, 'which conf.py writes'
