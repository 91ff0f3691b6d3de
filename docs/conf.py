"""How Sphinx builds the site: ``make docs``."""
import importlib.metadata
import os
import shutil
import sys
from pathlib import Path
from typing import List, Optional

sys.path.insert(0, str(Path(__file__).parent))
import generated  # noqa: E402, imports the package, before mmdet, which autodoc imports

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
myst_enable_extensions = ['deflist']

os.environ['GROUPDETR_QUICK_TUTORIAL'] = '1'
os.environ.setdefault('OMP_NUM_THREADS', '1')  # threads of so small a model wait for each other
nb_execution_mode = 'force'
nb_execution_in_temp = nb_execution_raise_on_error = nb_merge_streams = True
nb_execution_timeout = 1800  # seconds of a cell, on a busy machine

autodoc_member_order = 'bysource'
autodoc_inherit_docstrings = add_module_names = False
napoleon_use_ivar = True
napoleon_use_param = napoleon_use_rtype = False  # types in a docstring are words, not links
nitpick_ignore_regex = [  # classes of libraries, whose lists of names are on the network
    ('py:class', r'(?!groupdetr_mmdet\.)\w+\..+'),
    ('py:class', 'Tensor|ndarray|InstanceData|DetDataSample|optional'),
    ('py:exc', 'UnpicklingError'),
]

html_theme = 'pydata_sphinx_theme'
html_title = project
html_theme_options = dict(navigation_with_keys=False, secondary_sidebar_items=['page-toc'])
if repository := generated.repository():
    html_theme_options['icon_links'] = [
        dict(name='Repository', url=repository, icon='fa-solid fa-code-branch')]
html_context = dict(default_mode='auto')
html_static_path, html_css_files, html_favicon = ['static'], ['site.css'], 'static/icon.svg'
html_copy_source = False


def read_page(app: object, page: str, source: List[str]) -> None:
    """Take the text of a page from its file, and let its links lead to pages of the site."""
    if page.startswith(('api/', 'files/')):
        return
    text = generated.source_of(page).read_text()
    if page == 'command-line':
        text += generated.command_reference()
    source[0] = generated.redirect_links(page, text)


def find_by_last_name(app: object, env: object, node: object,
                      contnode: object) -> Optional[object]:
    """Find what a docstring names without its module, as imports allow in the code."""
    if node.get('refdomain') != 'py':
        return None
    node['refspecific'] = True
    return env.domains['py'].resolve_xref(env, node['refdoc'], app.builder, node['reftype'],
                                          node['reftarget'], node, contnode)


def setup(app: object) -> None:
    generated.write_api()
    generated.write_files()
    shutil.copy(generated.PAGES['tutorial'], generated.DOCS)
    app.connect('source-read', read_page)
    app.connect('missing-reference', find_by_last_name)
