"""Labels in formats that are not read: the error names the format and a converter."""
import json
from pathlib import Path

import pytest

from groupdetr_mmdet.data.layouts import read_dataset
from groupdetr_mmdet.errors import ConfigError

FILES = {
    'labelme': ('a.json', json.dumps(dict(version='5', shapes=[], imagePath='a.jpg'))),
    'VIA': ('via.json', json.dumps({'a.jpg12': dict(filename='a.jpg', regions=[])})),
    'CreateML': ('a.json', json.dumps([dict(image='a.jpg', annotations=[])])),
    'CVAT': ('a.xml', '<?xml version="1.0"?>\n<annotations>\n<image id="0" name="a.jpg"/>\n'
             '</annotations>'),
    'Open Images': ('a.csv', 'ImageID,Source,LabelName,Confidence\na,,cat,1')}


@pytest.mark.parametrize('name', FILES)
def test_the_error_names_format_and_converter(name: str, tmp_path: Path):
    file, text = FILES[name]
    (tmp_path / file).write_text(text)
    with pytest.raises(ConfigError, match=f'format {name} .*convert it to COCO with'):
        read_dataset(tmp_path)


def test_a_csv_of_results_is_no_label_format(tmp_path: Path):
    (tmp_path / 'a.csv').write_text('epoch,loss\n1,2')
    with pytest.raises(ConfigError, match='has no labels'):
        read_dataset(tmp_path)
