"""The model card, README.md, of a folder for Hugging Face's hub."""
import argparse
from pathlib import Path
from typing import Any, Dict, Sequence

from mmengine.config import Config

from ..analysis.runs import read_run
from ..errors import ConfigError

CARD = """\
---
library_name: transformers
pipeline_tag: {task}
tags:
- group-detr
---

# {name}

{detector}, trained in groups of queries ([Group DETR](https://arxiv.org/abs/2207.13085)) by
groupdetr_mmdet. It runs without that package and mmdet:

```python
from transformers import pipeline

detect = pipeline('{task}', model='{name}')
detect('image.jpg')
```

- Config: `{config}`
- Groups of queries: {groups}; the detector is group {group}
- Data: `{data}`, {num_classes} classes: {classes}
{metrics}- License: add `license:` to the head of this file
"""


def model_card(args: argparse.Namespace, cfg: Config, task: str, classes: Sequence[str],
               groups: str, group: int, meta: Dict[str, Any]) -> str:
    """Return the text of the model card, with AP if the log of the run has it."""
    dataset = cfg.test_dataloader.dataset
    data = dataset.get('data_root') or dataset.get('ann_file') or 'unknown'
    evaluated = (cfg.model.get('test_cfg') or {}).get('query_group', 0)
    found = metrics_of(Path(args.src), meta) if group == evaluated else {}
    metrics = ''.join(f'- {name} on the validation images: {value:.3f}\n'
                      for name, value in found.items())
    return CARD.format(
        name=Path(args.out).name, task=task, detector=cfg.model.type[len('Group'):],
        config=Path(args.config).stem, groups=groups, group=group, data=Path(data).name,
        num_classes=len(classes), classes=', '.join(classes), metrics=metrics)


def metrics_of(checkpoint: Path, meta: Dict[str, Any]) -> Dict[str, float]:
    """Return AP and AP50 of a checkpoint's epoch from the log beside it, empty without a log."""
    try:
        run = read_run(checkpoint.parent)
    except ConfigError:  # no log
        return {}
    step = meta.get('epoch' if run.unit == 'epoch' else 'iter')
    found = next((x for x in run.val if x['step'] == step), {})
    return {name: found[f'coco/{key}'] for name, key in (
        ('AP', 'bbox_mAP'), ('AP50', 'bbox_mAP_50')) if f'coco/{key}' in found}
