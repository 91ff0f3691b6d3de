"""Pages of the site that are made from the package: the API, the command line, linked files."""
import argparse
import importlib
import inspect
import os
import pkgutil
import re
import shutil
from pathlib import Path
from typing import Iterator, List, Optional

import groupdetr_mmdet
from groupdetr_mmdet.commands.cli import COMMANDS

DOCS = Path(__file__).resolve().parent
ROOT = DOCS.parent
# Pages that are files elsewhere in the repository.
PAGES = {
    'benchmarks': ROOT / 'benchmarks/README.md',
    'changelog': ROOT / 'CHANGELOG.md',
    'contributing': ROOT / 'CONTRIBUTING.md',
    'tutorial': ROOT / 'examples/tutorial.ipynb',
}
ROOMS = ('ops', 'data', 'checkpoints', 'training', 'analysis', 'deploy', 'commands')
SECTIONS = {  # of what a config names -> pattern of the names, the first that fits
    'Detectors': 'DETR$|DINO$|Mask2Former$|Queries$',
    'Heads': 'Head$',
    'Assigners': 'Assigner$',
    'Losses': 'Loss$',
    'Hooks': 'Hook$',
    'Metrics and data': 'Metric$|Dataset$|LoadImage',
    'Parts of models and runs': '',
}
LINK = re.compile(r'\]\((?!\w+:|#)([^)#\s]+)(#[^)]*)?\)')


def repository() -> Optional[str]:
    """The address that CITATION.cff gives as ``repository-code``."""
    match = re.search(r'^repository-code: *(\S+)', (ROOT / 'CITATION.cff').read_text(), re.M)
    return match and match[1]


def public_classes() -> List[type]:
    """What the package exports, the mixin of all detectors first."""
    found = [getattr(groupdetr_mmdet, name) for name in groupdetr_mmdet.__all__]
    return sorted(filter(inspect.isclass, found), key=lambda cls: cls.__name__ != 'GroupQueries')


def write_api() -> None:
    """Write the page of what configs name, and a page for each room and the core."""
    folder = DOCS / 'api'
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    rest = public_classes()
    lines = ['# API', '', 'What a config or a program names, after `import groupdetr_mmdet`. '
             'Each class is registered under its name.', '']
    for title, pattern in SECTIONS.items():
        lines += [f'## {title}', '', '```{eval-rst}']
        for cls in [x for x in rest if re.search(pattern, x.__name__)]:
            rest.remove(cls)
            lines += [f'.. autoclass:: {cls.__module__}.{cls.__name__}', '   :members:',
                      '   :show-inheritance:', '']
        lines += ['```', '']
    lines += ['## Internals', '', '```{toctree}', ':maxdepth: 1', 'core', *ROOMS, '```']
    (folder / 'index.md').write_text('\n'.join(lines))
    (folder / 'core.md').write_text(room_page('groupdetr_mmdet', 'The core'))
    for room in ROOMS:
        (folder / f'{room}.md').write_text(room_page(f'groupdetr_mmdet.{room}', room))


def room_page(package: str, title: str) -> str:
    """Document the modules of a room, without the public classes."""
    room = importlib.import_module(package)
    find = pkgutil.iter_modules if package == 'groupdetr_mmdet' else pkgutil.walk_packages
    public = ', '.join(cls.__name__ for cls in public_classes())
    lines = [f'# {title}', '', room.__doc__]
    modules = find(room.__path__, f'{package}.')
    for module in sorted(modules, key=lambda x: (not x.name.endswith('.groups'), x.name)):
        if not module.ispkg and not module.name.endswith('__main__'):
            lines += [f'## `{module.name[len(package) + 1:]}`', '```{eval-rst}',
                      f'.. automodule:: {module.name}', '   :members:', '   :show-inheritance:',
                      f'   :exclude-members: {public}', '```']
    return '\n'.join(lines)


def command_reference() -> str:
    """Describe every command and its arguments, from its parser."""
    lines: List[str] = []
    for name, what in COMMANDS.items():
        module = importlib.import_module(f'groupdetr_mmdet.commands.{name.replace("-", "_")}')
        parser = argparse.ArgumentParser(prog=f'groupdetr {name}')
        module.add_arguments(parser)
        lines += ['', f'## groupdetr {name}', '', what[:1].upper() + what[1:] + '.', '']
        for group in parser._action_groups:
            for action in group._group_actions:
                if action.help not in (None, argparse.SUPPRESS) and action.dest != 'help':
                    lines += [f'`{signature(action)}`', f': {action.help % vars(action)}', '']
    return '\n'.join(lines)


def signature(action: argparse.Action) -> str:
    """Show an argument as it is written on a command line."""
    if action.nargs == 0:
        return ', '.join(action.option_strings)
    value = action.metavar or ('|'.join(action.choices) if action.choices else
                               action.dest.upper())
    if isinstance(value, tuple):
        value = ' '.join(value)
    value += ' ...' * (action.nargs in ('+', '*'))
    names = action.option_strings[:1]
    return ' '.join([*names, f'[{value}]' if action.nargs == '?' else value])


def source_of(page: str) -> Path:
    """The file that a page of the site is made from."""
    return PAGES.get(page, DOCS / f'{page}.md')


def linked_files() -> Iterator[Path]:
    """Find the files of the repository that pages link to and that are no pages themselves."""
    for page in {*DOCS.glob('*.md'), *PAGES.values()}:
        for match in LINK.finditer(page.read_text() if page.suffix == '.md' else ''):
            target = (page.parent / match[1]).resolve()
            if target.is_file() and target.suffix in ('.py', '.yml', '.cff', '.json', '.sh'):
                yield target


def file_page(path: Path) -> Path:
    return DOCS / 'files' / f'{path.relative_to(ROOT)}.md'


def write_files() -> None:
    """Write a page for each linked file, so that a browser shows it."""
    shutil.rmtree(DOCS / 'files', ignore_errors=True)
    for path in {*linked_files()}:
        page, name = file_page(path), path.relative_to(ROOT)
        language = {'.py': 'python', '.yml': 'yaml', '.json': 'json'}.get(path.suffix, 'none')
        page.parent.mkdir(parents=True, exist_ok=True)
        page.write_text(f'---\norphan: true\n---\n# `{name}`\n\n```{{literalinclude}} '
                        f'/../{name}\n:language: {language}\n```\n')


def redirect_links(page: str, text: str) -> str:
    """Let the links of a page lead to pages of the site."""
    file = source_of(page).resolve()
    moved = {path: DOCS / f'{name}{path.suffix}' for name, path in PAGES.items()}
    moved[ROOT / 'README.md'] = DOCS / 'index.md'
    moved.update((path, file_page(path)) for path in linked_files())

    def link(match: re.Match) -> str:
        target = (file.parent / match[1]).resolve()
        path = os.path.relpath(moved.get(target, target), (DOCS / page).parent)
        return f']({path}{match[2] or ""})'

    return LINK.sub(link, text)
