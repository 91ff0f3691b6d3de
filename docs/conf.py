"""How Sphinx builds the site: ``make docs``."""
import importlib
import importlib.metadata
import os
import pkgutil
import re
import shutil
from pathlib import Path
from typing import List, Optional

import groupdetr_mmdet  # noqa: F401, before mmdet, which autodoc imports

DOCS = Path(__file__).resolve().parent
# Pages that are files elsewhere in the repository.
PAGES = {
    'benchmarks': DOCS / '../benchmarks/README.md',
    'changelog': DOCS / '../CHANGELOG.md',
    'contributing': DOCS / '../CONTRIBUTING.md',
    'tutorial': DOCS / '../examples/tutorial.ipynb',
}
ROOMS = ('ops', 'data', 'checkpoints', 'training', 'analysis', 'deploy', 'commands')

project = 'groupdetr_mmdet'
author = 'The groupdetr_mmdet contributors'
release = importlib.metadata.version('groupdetr-mmdet')
extensions = [
    'myst_nb', 'sphinx.ext.autodoc', 'sphinx.ext.napoleon', 'sphinx.ext.viewcode',
    'sphinx_copybutton'
]
exclude_patterns = ['_build']
highlight_language = 'none'  # of blocks that name no language: commands, output
myst_heading_anchors = 3

os.environ['GROUPDETR_QUICK_TUTORIAL'] = '1'
os.environ.setdefault('OMP_NUM_THREADS', '1')  # threads of so small a model wait for each other
nb_execution_mode = 'force'
nb_execution_in_temp = nb_execution_raise_on_error = nb_merge_streams = True
nb_execution_timeout = 1800  # seconds of a cell, on a busy machine

autodoc_member_order = 'bysource'
autodoc_inherit_docstrings = add_module_names = False
napoleon_use_ivar = True
napoleon_use_param = napoleon_use_rtype = False  # types in a docstring are words, not links
nitpick_ignore_regex = [  # classes of others, whose lists of names are on the network
    ('py:class', r'(?!groupdetr_mmdet\.)\w+\..+'),
    ('py:class', 'Tensor|ndarray|InstanceData|DetDataSample|optional'),
    ('py:exc', 'UnpicklingError'),
]

html_theme = 'pydata_sphinx_theme'
html_title = project
html_theme_options = dict(navigation_with_keys=False, secondary_sidebar_items=['page-toc'])
html_context = dict(default_mode='auto')
html_static_path, html_css_files, html_favicon = ['static'], ['site.css'], 'static/icon.svg'
html_copy_source = False
html_sidebars = dict(benchmarks=[])  # a page that is a section of its own


def write_api() -> None:
    """Write a page for each room, and one for the core, from what the package holds."""
    folder = DOCS / 'api'
    folder.mkdir(exist_ok=True)
    (folder / 'index.md').write_text('\n'.join([
        '# API by room', '', 'What a user needs is imported from `groupdetr_mmdet` itself, and '
        'is registered under the name of its class.', '', '```{toctree}', ':maxdepth: 1', 'core',
        *ROOMS, '```']))
    (folder / 'core.md').write_text(api_page('groupdetr_mmdet', 'The core'))
    for room in ROOMS:
        (folder / f'{room}.md').write_text(api_page(f'groupdetr_mmdet.{room}', room))


def api_page(package: str, title: str) -> str:
    room = importlib.import_module(package)
    find = pkgutil.iter_modules if package == 'groupdetr_mmdet' else pkgutil.walk_packages
    lines = [f'# {title}', '', room.__doc__]
    modules = find(room.__path__, f'{package}.')
    for module in sorted(modules, key=lambda x: (not x.name.endswith('.groups'), x.name)):
        if not module.ispkg and not module.name.endswith('__main__'):
            lines += [f'## `{module.name[len(package) + 1:]}`', '```{eval-rst}',
                      f'.. automodule:: {module.name}', '   :members:', '   :show-inheritance:',
                      '```']
    return '\n'.join(lines)


def read_page(app: object, page: str, source: List[str]) -> None:
    """Take the text of a page from its file, and let its links lead to pages of the site."""
    file = PAGES.get(page, DOCS / f'{page}.md').resolve()
    pages = {path.resolve(): DOCS / f'{name}{path.suffix}' for name, path in PAGES.items()}

    def link(match: re.Match) -> str:
        target = (file.parent / match[1]).resolve()
        path = os.path.relpath(pages.get(target, target), (DOCS / page).parent)
        return f']({path}{match[2] or ""})'

    source[0] = re.sub(r'\]\((?!\w+:|#)([^)#\s]+)(#[^)]*)?\)', link, file.read_text())


def find_by_last_name(app: object, env: object, node: object,
                      contnode: object) -> Optional[object]:
    """Find what a docstring names without its module, as imports allow in the code."""
    if node.get('refdomain') != 'py':
        return None
    node['refspecific'] = True
    return env.domains['py'].resolve_xref(env, node['refdoc'], app.builder, node['reftype'],
                                          node['reftarget'], node, contnode)


def setup(app: object) -> None:
    write_api()
    shutil.copy(PAGES['tutorial'], DOCS)
    app.connect('source-read', read_page)
    app.connect('missing-reference', find_by_last_name)
