"""COCO metrics of every group, and which group to keep."""
import contextlib
import hashlib
import io
import json
import re
from pathlib import Path
from statistics import median
from typing import Any, Dict, List, Optional, Sequence, Union

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure
from mmdet.evaluation import CocoMetric
from mmdet.registry import METRICS
from mmengine.config import Config, ConfigDict
from mmengine.logging import MMLogger
from terminaltables import AsciiTable

from ..config import check_groups
from ..data.coco import CheckedCocoMetric
from ..errors import ConfigError, first_line
from ..io import write_atomically
from .plots import COLORS

MAIN = 'bbox_mAP'  # the metric that ranks the groups
BEST = 'best'  # as --query-group


@METRICS.register_module()
class GroupCocoMetric(CheckedCocoMetric):
    """``CocoMetric`` of every group of queries (the paper's Figure 4).

    Requires ``model.test_cfg.each_group=True``. Arguments as for the parent; files of
    ``outfile_prefix`` get ``.group0``, ... The metrics are

    - the parent's, of the kept group (``bbox_mAP``) and of every group (``group0/bbox_mAP``);
    - their median and spread, largest minus smallest (``median/bbox_mAP``, ``spread/bbox_mAP``);
    - ``best_query_group``, the group with the highest AP.
    """

    def process(self, data_batch: dict, data_samples: Sequence[dict]) -> None:
        """Collect the detections of every group.

        Raises:
            ConfigError: If the detector does not detect by every group.
        """
        if any('group_instances' not in sample for sample in data_samples):
            raise ConfigError('GroupCocoMetric requires the detections of every group: set '
                              'model.test_cfg.each_group=True on a detector with groups.')
        for sample in data_samples:
            super().process(data_batch, [dict(sample, pred_instances=sample['group_instances'])])
            _, result = self.results[-1]
            result['query_groups'] = sample['group_instances']['query_groups'].cpu().numpy()
            result['query_group'] = sample['query_group']

    def compute_metrics(self, results: list) -> Dict[str, float]:
        """Compute the metrics of each group; arguments as for the parent."""
        prefix, kept = self.outfile_prefix, results[0][1]['query_group']
        num_groups = 1 + max(int(result['query_groups'].max(initial=0)) for _, result in results)
        groups = []
        for group in range(num_groups):
            self.outfile_prefix = prefix and f'{prefix}.group{group}'
            with contextlib.redirect_stdout(io.StringIO()):  # pycocotools prints a page
                groups.append(super().compute_metrics(
                    [(gt, one_group(result, group)) for gt, result in results]))
        self.outfile_prefix = prefix
        metrics = summarize_groups(groups, kept)
        if groups[kept]:
            MMLogger.get_current_instance().info(
                f'COCO metrics of every group\n{AsciiTable(groups_table(groups)).table}\n'
                f'best group: {metrics.get("best_query_group")}')
        return metrics


def one_group(result: Dict[str, Any], group: int) -> Dict[str, Any]:
    """Return the detections of one group of an image."""
    of_group = result['query_groups'] == group
    detections = {name: result[name][of_group] for name in ('bboxes', 'scores', 'labels')}
    if 'masks' in result:
        detections['masks'] = [result['masks'][i] for i in of_group.nonzero()[0]]
    return dict(detections, img_id=result['img_id'])


def summarize_groups(groups: Sequence[Dict[str, float]], kept: int) -> Dict[str, float]:
    """Return the metrics of :class:`GroupCocoMetric` from the metrics of each group."""
    metrics = dict(groups[kept])
    for group, values in enumerate(groups):
        metrics.update((f'group{group}/{name}', value) for name, value in values.items())
    for name in groups[kept]:
        values = [group[name] for group in groups if name in group]
        metrics[f'median/{name}'] = median(values)
        metrics[f'spread/{name}'] = round(max(values) - min(values), 3)
    if MAIN in groups[kept]:
        metrics['best_query_group'] = int(np.argmax([group.get(MAIN, -1.) for group in groups]))
    return metrics


def split_groups(metrics: Dict[str, float]) -> List[Dict[str, float]]:
    """Return each group's metrics from a result of :class:`GroupCocoMetric`."""
    groups: Dict[int, Dict[str, float]] = {}
    for name, value in metrics.items():
        if match := re.search(r'(?:^|/)group(\d+)/(.+)$', name):
            groups.setdefault(int(match[1]), {})[match[2]] = value
    return [groups[group] for group in sorted(groups)]


def metric_title(name: str) -> str:
    """Return the name of a COCO metric in tables: ``bbox_mAP_50`` -> ``bbox AP50``."""
    return re.sub('_?mAP_?', ' AP', name).strip()


def groups_table(groups: Sequence[Dict[str, float]]) -> List[List[str]]:
    """Make a table of every group's metrics, their median and their spread, header first."""
    columns = [['group', *map(str, range(len(groups))), 'median', 'spread']]
    for name in groups[0]:
        values = [group.get(name, -1.) for group in groups]  # -1: without objects
        spread = -1. if -1 in values else max(values) - min(values)
        cells = ('-' if x == -1 else f'{x:.3f}' for x in (*values, median(values), spread))
        columns.append([metric_title(name), *cells])
    return [list(row) for row in zip(*columns)]


def coco_metrics(cfg: Config) -> List[ConfigDict]:
    """Return the configs of all ``CocoMetric`` of a test."""
    evaluators = cfg.get('test_evaluator') or []
    return [x for x in (evaluators if isinstance(evaluators, list) else [evaluators])
            if (METRICS.get(x.type) if isinstance(x.type, str) else x.type)
            in (CocoMetric, CheckedCocoMetric, GroupCocoMetric)]


def evaluate_each_group(cfg: Config, key: str = '--all-groups') -> None:
    """Let the test of a config evaluate the boxes of every group, in place.

    Raises:
        ConfigError: If the model has no groups, or the test not exactly one ``CocoMetric``. The
            message names ``key``.
    """
    check_groups(key, cfg.model)
    coco = coco_metrics(cfg)
    if len(coco) != 1:
        raise ConfigError(f'{key}: test_evaluator must have one CocoMetric, and has {len(coco)}; '
                          'set test_evaluator.type=CocoMetric.')
    names = coco[0].get('metric', 'bbox')
    names = [names] if isinstance(names, str) else list(names)
    coco[0].update(type=f'{METRICS.scope}.{GroupCocoMetric.__name__}', metric_items=None,
                   metric=names if 'bbox' in names else ['bbox', *names], format_only=False)
    cfg.merge_from_dict({'model.test_cfg.each_group': True})


def draw_groups(groups: Sequence[Dict[str, float]]) -> Figure:
    """Draw the AP of every group and their median (the paper's Figure 4)."""
    aps = [group.get(MAIN, -1.) for group in groups]
    best = aps.index(max(aps))
    fig, ax = plt.subplots(figsize=(max(4.5, .55 * len(aps)), 3.4), layout='constrained')
    bars = ax.bar(range(len(aps)), aps, color=[COLORS[group == best] for group in range(len(aps))])
    ax.bar_label(bars, fmt='%.3f', label_type='center', color='w', fontsize=8)
    ax.axhline(median(aps), color='k', linestyle='--', linewidth=1)
    ax.set_title(f'AP of every group: median {median(aps):.3f}, spread {max(aps) - min(aps):.3f}, '
                 f'best {best}', fontsize=10)
    ax.set(xlabel='group of queries', ylabel='AP (IoU 0.50:0.95)', xticks=range(len(aps)))
    return fig


def record_file(checkpoint: Union[str, Path]) -> Path:
    """Return the file with the metrics of a checkpoint's groups, beside the checkpoint."""
    return Path(checkpoint).with_suffix('.groups.json')


def record_groups(checkpoint: Union[str, Path], metrics: Dict[str, float]) -> Path:
    """Write the metrics of every group beside their checkpoint; return the file."""
    best = (x for name, x in metrics.items() if name.endswith('best_query_group'))
    record = dict(checkpoint=Path(checkpoint).name, sha256=sha256(checkpoint),
                  best_query_group=next(best, None), groups=split_groups(metrics))
    write_atomically(record_file(checkpoint), json.dumps(record, indent=1).encode())
    return record_file(checkpoint)


def read_groups(checkpoint: Union[str, Path]) -> Optional[Dict[str, Any]]:
    """Read the file of :func:`record_groups`; None without a record of these weights."""
    file = record_file(checkpoint)
    if not file.is_file():
        return None
    try:
        record = json.loads(file.read_text())
        return record if record['sha256'] == sha256(checkpoint) else None
    except (KeyError, TypeError, ValueError) as error:
        raise ConfigError(f'{file} is damaged ({first_line(error)}): remove it, and run groupdetr '
                          'test --all-groups again.') from error


def sha256(path: Union[str, Path]) -> str:
    """Return the SHA-256 of a file in hexadecimal digits."""
    return hashlib.sha256(np.memmap(path, mode='r')).hexdigest()


def query_group(text: str) -> Union[int, str]:
    """Parse the value of ``--query-group``: a number or 'best'."""
    return text if text == BEST else int(text)


def choose_group(group: Union[int, str, None], checkpoint: str) -> Optional[int]:
    """Return the group for ``--query-group``, a number or 'best'.

    Raises:
        ConfigError: If the best group of the checkpoint was not recorded.
    """
    if group != BEST:
        return group
    best = (read_groups(checkpoint) or {}).get('best_query_group')
    if best is None:
        raise ConfigError(f'--query-group best: {record_file(checkpoint).name} beside the '
                          'checkpoint has no metrics of these weights; run groupdetr test CONFIG '
                          f'{checkpoint} --all-groups first, or name a number.')
    return best
