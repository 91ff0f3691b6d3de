"""Recognize label formats that this package does not read, to name a converter."""
from shlex import quote
from typing import Optional

from .common import Source, has_pattern

FORMATS = {  # format -> pattern of file names, of their content, and globox's name
    'labelme': ('*.json', rb'"shapes"\s*:', None),  # globox drops polygons
    'VIA': ('*.json', rb'"regions"\s*:', 'via-json'),
    'CreateML': ('*.json', rb'\A\s*\[[\s\S]*"coordinates"\s*:', None),
    'CVAT': ('*.xml', rb'<annotations>[\s\S]*<image\s', 'cvat'),
    'Open Images': ('*.csv', rb'ImageID\s*,', 'openimage')}


def advice(source: Source) -> Optional[str]:
    """Return the format of the labels and how to convert them, None for an unknown format."""
    for name, (pattern, content, globox) in FORMATS.items():
        for file in source.label_files(pattern):
            if has_pattern(file, content):
                labels, images = quote(str(file)), quote(str(source.root))
                command = ('with supervision, as docs/own-data.md shows' if globox is None else
                           f'with globox: globox convert {labels} labels.json -f {globox} -F coco '
                           f'-A -d {images}')
                return f'{name} ({file}): convert it to COCO {command}'
    return None
