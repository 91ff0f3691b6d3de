"""The table in which a test ends."""
import numpy as np
import pytest

from groupdetr_mmdet.commands.test import show


@pytest.mark.parametrize(('metrics', 'rows'), [
    ({'coco/bbox_mAP': .7, 'coco/bbox_mAP_s': -1.}, {'bbox': ['0.700', '-']}),
    ({'a/coco/bbox_mAP': .7, 'b/coco/bbox_mAP': np.float32(.1)},
     {'a/coco/bbox': ['0.700'], 'b/coco/bbox': ['0.100']}),
    ({'coco/red_car_precision': .3, 'coco/cat_precision': .4},
     {'red_car': ['0.300'], 'cat': ['0.400']})])
def test_every_metric_has_a_cell(metrics, rows, capsys):
    show(metrics)
    lines = [line.strip('│').split('│') for line in capsys.readouterr().out.splitlines()
             if line.startswith('│')]
    assert {name.strip(): [x.strip() for x in cells] for name, *cells in lines} == rows
