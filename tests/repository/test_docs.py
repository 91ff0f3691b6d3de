"""What the documentation names exists: files, modules, configs with their AP, and commands."""
import argparse
import ast
import importlib
import inspect
import itertools
import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Dict, Iterator, List, Tuple

import cv2
import mmdet.registry
import numpy as np
import pytest
import torch
import yaml
from mmdet.registry import MODELS
from mmengine.config import Config
from mmengine.registry import Registry, init_default_scope

import groupdetr_mmdet
from groupdetr_mmdet.commands.cli import COMMANDS
from groupdetr_mmdet.config import find_config, iter_dicts, read_config
from groupdetr_mmdet.group_detector import OUR_KEYS, GroupDetector
from groupdetr_mmdet.ops.recompute import LAYER_OPTIONS

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / 'README.md', ROOT / 'CONTRIBUTING.md', *sorted(ROOT.glob('docs/*.md')),
         ROOT / 'benchmarks/README.md']
BENCHMARKS = dict(benchmark='benchmarks.__main__', plot_benchmark='benchmarks.report')
# script -> its command, how many arguments are its own, and which of these are the command's
SCRIPTS = dict(dist_train=('train', 2, [0]), dist_test=('test', 3, [0, 1]),
               slurm_train=('train', 4, [2]), slurm_test=('test', 4, [2, 3]))
COMMAND = (r'(?:groupdetr(?= [a-z])|python (?:tools/\w+\.py|-m benchmarks\.\w+)|'
           r'(?:[A-Z_]+=\S+ )*tools/\w+\.sh)')
BASE = 'groupdetr_mmdet::group_detr/demo/group_cond_detr_demo.py'
KEYS = [f'model.{key}' for key in (
    *(f'{part}.{key}' for part, keys in OUR_KEYS.items() for key in keys),
    *(f'decoder.{key}' for key in LAYER_OPTIONS),
    *inspect.signature(GroupDetector).parameters.keys() - {'train_cfg', 'test_cfg', 'kwargs'})]
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
        match = re.search(r"run\('([\w-]+)'", script.read_text())
        return (match[1] if match else BENCHMARKS[script.stem]), arguments
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
def test_commands_are_ones_that_the_command_line_takes(page, monkeypatch):
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
                before = page.read_text().partition(line)[0]
                assert 'COCO' in before + line, f'{page.name} does not name the data of {line}'


@pytest.mark.parametrize('page', PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_to_files(page):
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


def python_blocks() -> Dict[str, str]:
    """Blocks of Python by page and line, without blocks marked as not run."""
    blocks = {}
    for page in PAGES:
        text = page.read_text()
        for found in re.finditer(r'^(<!-- not run: [^\n]+ -->\n)?```python\n(.*?)^```', text,
                                 re.DOTALL | re.MULTILINE):
            if not found[1]:
                blocks[f'{page.name}:{text.count(chr(10), 0, found.start()) + 1}'] = found[2]
    return blocks


def write_what_it_reads(block: str) -> None:
    """Write the picture, the configs and the checkpoints that a block names."""
    if not Path('configs').exists():
        Path('configs').symlink_to(ROOT / 'configs')
        cv2.imwrite('photo.jpg', np.random.default_rng(0).integers(
            0, 256, (64, 96, 3), np.uint8))
    for config, checkpoint in re.findall(r"DetInferencer\(\s*'([^']+)', '([^']+)'", block):
        if config.endswith('.py') and not Path(config).exists():
            Path(config).write_text(f"_base_ = '{ROOT}/configs/demo/group_cond_detr_demo.py'")
        if not Path(checkpoint).exists():
            model = MODELS.build(read_config(config).model)
            classes = [f'class {i}' for i in range(model.bbox_head.num_classes)]
            Path(checkpoint).parent.mkdir(parents=True, exist_ok=True)
            torch.save(dict(state_dict=model.state_dict(), meta=dict(
                dataset_meta=dict(classes=classes))), checkpoint)


def build_config(block: str, file: Path) -> None:
    """Build the model of a part of a config, which changes a shipped one; all types are there."""
    file.write_text(('' if '_base_' in block else f"_base_ = '{BASE}'\n") + block)
    with torch.device('meta'):
        model = MODELS.build(Config.fromfile(file).model)
    assert len(model.query_embedding.weight) == model.num_query_groups * model.num_queries > 0
    own = Config.fromstring(block, '.py').to_dict() if '_base_' not in block else {}
    registries = [x for x in vars(mmdet.registry).values() if isinstance(x, Registry)]
    for _, part in iter_dicts(own, ''):
        assert 'type' not in part or any(x.get(part['type']) for x in registries)


CHECKS = {'class GroupDETR': """
from builders import make_batch
inputs, samples = make_batch()
losses = detector.train().loss(inputs, samples)
sum(x for name, x in losses.items() if 'loss' in name).backward()
first, second, _ = detector.query_embedding.weight.grad.chunk(3)
assert first.any() and second.any() and (first != second).any()
assert len(detector.eval().predict(inputs, samples)) == len(samples)
"""}


@pytest.mark.slow
def test_python_runs_as_it_stands(tmp_path, monkeypatch):
    """Programs in a process of their own; ``<!-- not run: WHY -->`` marks parts of programs."""
    monkeypatch.chdir(tmp_path)
    init_default_scope('mmdet')
    programs, blocks = {}, python_blocks()
    for name, block in blocks.items():
        if re.search('^(import|from) ', block, re.MULTILINE):
            write_what_it_reads(block)
            programs[name] = block + ''.join(x for key, x in CHECKS.items() if key in block)
        else:
            build_config(block, Path(f'{name.replace(".md:", "_")}.py'))
    assert len(blocks) >= 8 and len(programs) >= 3
    paths = os.pathsep.join([str(ROOT), str(ROOT / 'tests')])
    result = subprocess.run(
        [sys.executable, Path(__file__).with_name('run_snippets.py')], capture_output=True,
        input=json.dumps(programs), text=True, env=dict(os.environ, PYTHONPATH=paths))
    assert result.returncode == 0, result.stderr


def test_rooms_import_only_the_layers_before_them():
    order = re.search(r'errors -> .*', (ROOT / 'docs/architecture.md').read_text())[0]
    layers = {room.strip(' /'): layer for layer, rooms in enumerate(order.split('->'))
              for room in rooms.split(',')}
    package = ROOT / 'groupdetr_mmdet'
    for file in {*package.glob('[!_]*.py'), *package.glob('*/**/[!.]*.py')}:
        path = file.relative_to(package).with_suffix('').parts
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.ImportFrom) and node.level and path[0] != '.mim':
                names = [*path[:-node.level], *(node.module or node.names[0].name).split('.')]
                own, other = (x if x in layers else 'the core' for x in (path[0], names[0]))
                assert own == other or layers[own] > layers[other], f'{file}: {names}'


def test_config_keys_lists_every_key_of_a_detector():
    page = (ROOT / 'docs/config-keys.md').read_text()
    assert [key for key in KEYS if key not in page] == []


def test_config_keys_or_detectors_name_every_class_that_a_config_can_name():
    pages = ''.join((ROOT / f'docs/{page}.md').read_text()
                    for page in ('config-keys', 'families'))
    inside = {'GroupConditionalDetrTransformerDecoder',
              'GroupConditionalDetrTransformerDecoderLayer', '__version__'}  # of a detector
    assert {name for name in groupdetr_mmdet.__all__ if name not in pages} == inside


def test_the_command_line_page_has_every_command_and_its_arguments(monkeypatch):
    monkeypatch.setattr(sys, 'path', [str(ROOT / 'docs'), *sys.path])
    import generated
    text = generated.command_reference()
    assert [name for name in COMMANDS if f'## groupdetr {name}\n' not in text] == []
    assert '`--epochs N`' in text
    assert '%(' not in text
