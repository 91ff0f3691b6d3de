"""What the documentation says is there: files, modules, configs with their AP, and commands."""
import argparse
import ast
import importlib
import itertools
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Iterator, List, Tuple

import pytest
import yaml

from groupdetr_mmdet.commands.cli import COMMANDS
from groupdetr_mmdet.config import find_config, read_config

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / 'README.md', ROOT / 'CONTRIBUTING.md', *sorted(ROOT.glob('docs/*.md')),
         ROOT / 'benchmarks/README.md']
BENCHMARKS = dict(benchmark='benchmarks.__main__', plot_benchmark='benchmarks.report')
# script -> its command, how many arguments are its own, and which of these are the command's
SCRIPTS = dict(dist_train=('train', 2, [0]), dist_test=('test', 3, [0, 1]),
               slurm_train=('train', 4, [2]), slurm_test=('test', 4, [2, 3]))
COMMAND = (r'(?:groupdetr(?= [a-z])|python (?:tools/\w+\.py|-m benchmarks\.\w+)|'
           r'(?:[A-Z_]+=\S+ )*tools/\w+\.sh)')
PREPARED = ('mine.py', 'yolo.py', 'photos', 'bccd_yolo')  # a user's own in the examples


def commands(page: Path) -> Iterator[str]:
    """Yield the command lines of this repository in a page, in blocks and in sentences."""
    text = page.read_text()
    blocks = re.findall(r'^```\w*\n(.*?)^```', text, re.DOTALL | re.MULTILINE)
    blocks += re.findall(r'(?:^    .*\n)+', text, re.MULTILINE)
    for line in '\n'.join(blocks).replace('\\\n', ' ').splitlines():
        if re.match(rf'\s*{COMMAND}', line):
            yield line.strip()
    yield from re.findall(rf'`({COMMAND} [^`\s]+ [^-`\s][^`\n]*)`', text)


def command_and_arguments(line: str) -> Tuple[str, List[str]]:
    """Name the command that a line runs, by its own name or by a script of ``tools/``."""
    words = shlex.split(line, comments=True)
    program, *arguments = itertools.dropwhile(lambda word: '=' in word, words)
    if program.endswith('.sh'):
        command, taken, kept = SCRIPTS[Path(program).stem]
        return command, [*(arguments[i] for i in kept), *arguments[taken:]]
    if arguments[0] == '-m':
        return arguments[1], arguments[2:]
    if program == 'python':
        script = ROOT / arguments.pop(0)
        said = re.search(r"run\('([\w-]+)'", script.read_text())
        return (said[1] if said else BENCHMARKS[script.stem]), arguments
    return arguments[0], arguments[1:]


def parse(line: str, monkeypatch: pytest.MonkeyPatch) -> argparse.Namespace:
    """Parse a command line as its command does."""
    name, arguments = command_and_arguments(line)
    if name.startswith('benchmarks.'):
        module = importlib.import_module(name)
        monkeypatch.setattr(sys, 'argv', [name, *arguments])
        return module.parse_args() if arguments else argparse.Namespace()
    assert name in COMMANDS, line
    module = importlib.import_module(f'groupdetr_mmdet.commands.{name.replace("-", "_")}')
    parser = argparse.ArgumentParser()
    module.add_arguments(parser)
    return parser.parse_intermixed_args(arguments)


@pytest.mark.parametrize('page', PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_commands_are_ones_that_the_command_line_takes(page: Path, monkeypatch):
    for line in commands(page):
        try:
            args = parse(line, monkeypatch)
        except SystemExit:
            pytest.fail(f'{page.name}: the command line refuses: {line}')
        config = getattr(args, 'config', None)
        if config and not re.match('[A-Z_]+$', config) and config not in PREPARED:
            find_config(config)
            needs_coco = 'data/coco' in str(read_config(config).get('data_root'))
            if needs_coco and {'train', 'test', 'report'} & {*line.split()}:
                said = page.read_text().partition(line)[0]
                assert 'COCO' in said + line, f'{page.name} does not say what {line} needs'


@pytest.mark.parametrize('page', PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_to_files(page: Path):
    links = re.findall(r'\]\((?!\w+:|#)([^)#\s]+)', page.read_text())
    assert [link for link in links if not (page.parent / link).exists()] == []


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
    assert set(listed) - pages == {'api/index', 'tutorial'}, 'which conf.py writes'


def run_block(page: str, words: str, setup: str, checks: str, folder: Path) -> None:
    """Run the block of Python in a page that has these words, and checks, in its own process."""
    blocks = re.findall(r'^```python\n(.*?)^```', (ROOT / page).read_text(),
                        re.DOTALL | re.MULTILINE)
    block = next(block for block in blocks if words in block)
    code = setup.format(block=block) if '{block' in setup else f'{setup}\n{block}'
    result = subprocess.run([sys.executable, '-c', f'{code}\n{checks}'], cwd=folder, text=True,
                            capture_output=True, env=dict(os.environ, PYTHONPATH=os.pathsep.join(
                                [str(ROOT), str(ROOT / 'tests')])))
    assert result.returncode == 0, result.stderr


@pytest.mark.slow
def test_a_detr_of_ones_own_gets_groups_as_the_page_says(tmp_path: Path):
    run_block('docs/families.md', 'class GroupDETR', '', """
from builders import make_batch
inputs, samples = make_batch()
losses = detector.train().loss(inputs, samples)
sum(x for name, x in losses.items() if 'loss' in name).backward()
first, second, _ = detector.query_embedding.weight.grad.chunk(3)
assert first.any() and second.any() and (first != second).any()
assert len(detector.eval().predict(inputs, samples)) == len(samples)
""", tmp_path)


def test_a_config_gets_groups_as_the_readme_says(tmp_path: Path):
    run_block('README.md', "type='GroupConditionalDETR'", 'open("mine.py", "w").write({block!r})',
              """
import groupdetr_mmdet
from mmengine.config import Config
from mmdet.registry import MODELS
model = MODELS.build(Config.fromfile('mine.py').model)
assert len(model.query_embedding.weight) == 11 * model.num_queries
""", tmp_path)


def test_rooms_import_only_the_layers_before_them():
    said = re.search(r'errors -> .*', (ROOT / 'docs/architecture.md').read_text())[0]
    layers = {room.strip(' /'): layer for layer, rooms in enumerate(said.split('->'))
              for room in rooms.split(',')}
    package = ROOT / 'groupdetr_mmdet'
    for file in {*package.glob('[!_]*.py'), *package.glob('*/**/[!.]*.py')}:
        path = file.relative_to(package).with_suffix('').parts
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.ImportFrom) and node.level and path[0] != '.mim':
                names = [*path[:-node.level], *(node.module or node.names[0].name).split('.')]
                own, other = (x if x in layers else 'the core' for x in (path[0], names[0]))
                assert own == other or layers[own] > layers[other], f'{file}: {names}'
