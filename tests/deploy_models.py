"""A small detector with weights that tell its detections apart, as files."""
from pathlib import Path
from typing import NamedTuple

import torch
from builders import build
from mmengine.config import Config
from tiny import CLASSES, tiny_config, write_tiny_coco


class Files(NamedTuple):
    """Files of a detector and its data set."""
    config: Path
    checkpoint: Path
    data: Path


def write_detector(folder: Path, **model) -> Files:
    """Write a config, a checkpoint and a data set.

    Args:
        folder (Path): Where to write.
        model: Arguments of ``builders.detector_config``.
    """
    data = write_tiny_coco(folder / 'coco')
    files = Files(folder / 'config.py', folder / 'weights.pth', data)
    config = tiny_config(data, **model)
    config.dump(files.config)
    meta = dict(dataset_meta=dict(classes=CLASSES))
    torch.save(dict(meta=meta, state_dict=build_detector(config).state_dict()), files.checkpoint)
    return files


@torch.no_grad()
def build_detector(config: Config) -> torch.nn.Module:
    """Build a detector that does not start with the same box and score for every query."""
    detector = build({key: value for key, value in config.model.items()
                      if key != 'data_preprocessor'}).eval()
    head = detector.bbox_head
    for layer, std in ((head.fc_cls, 0.5), (head.fc_reg, 0.1)):
        torch.nn.init.normal_(layer.weight, std=std)
    return detector
