"""A report of a training as one HTML page that needs no network."""
import base64
import copy
import io
from pathlib import Path
from typing import Any, Dict, List, Optional, Sequence, Tuple, Union

import cv2
import jinja2
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure
from mmengine.config import Config
from mmengine.dataset import BaseDataset
from mmengine.utils.dl_utils import collect_env
from rich.console import Console

from .. import config as configs
from ..checkpoints.named import best_checkpoint, find_checkpoint, last_checkpoint
from ..errors import ConfigError
from ..config import check_groups
from ..group_detector import GroupDetector
from ..io import check_output, check_path, write_atomically
from ..training.progress import quiet_runner
from .group_metrics import (coco_metrics, draw_groups, evaluate_each_group, groups_table,
                            read_groups, record_groups)
from .plots import detection_pairs
from .queries import has_references
from .query_plots import add_legend, query_pictures
from .runs import comparison, draw_panel, panels_of, read_log, read_run

TEMPLATE = Path(__file__).with_name('report.html')
NUM_DETECTIONS, NUM_QUERIES = 6, 2  # images
SCORE_THR = 0.3


def write_report(work_dir: Path, compare: Sequence[Path] = (), labels: Sequence[str] = (),
                 checkpoint: Optional[str] = None, out_file: Optional[Path] = None) -> Path:
    """Write the report of a training, and return its file, by default ``work_dir/report.html``.

    Args:
        work_dir (Path): Work directory of the training.
        compare (Sequence[Path]): Work directories of others, the baseline first.
        labels (Sequence[str]): Names of these, and then of ``work_dir``.
        checkpoint (str, optional): A file of weights, 'best' or 'last'; by default the best
            weights, or the last ones where none were kept as best.

    Raises:
        ConfigError: If a log by epoch with validations, config or checkpoint is missing.
    """
    folders = [*compare, work_dir]
    if labels and len(labels) != len(folders):
        raise ConfigError(f'--labels: {len(labels)} labels for {len(folders)} runs; give each of '
                          '--compare one, and then WORK_DIR.')
    out_file = out_file or work_dir / 'report.html'
    check_output('--out', out_file)
    runs = [read_run(*x) for x in zip(folders, labels or [None] * len(folders))]
    header, rows = comparison(runs)
    weights, is_best = find_weights(work_dir, checkpoint)
    cfg = read_config(work_dir)
    model, dataset, record = evaluate(cfg, str(weights), work_dir)
    curves = {panel: plt.figure(figsize=(5, 3.6), layout='constrained')
              for panel in panels_of(runs)}
    for panel, figure in curves.items():
        draw_panel(figure.subplots(), panel, runs)
    page = jinja2.Template(TEMPLATE.read_text(), autoescape=True).render(
        embed=embed, title=f'{cfg.model.type}: {runs[-1].label}',
        subtitle=f'{model.num_query_groups} groups of {model.num_queries} queries, '
        f'{len(dataset)} test images, weights {weights.name}'
        f'{", the best of the training" if is_best else ""}',
        width=420, header=header, rows=rows, curves=curves,
        num_images=len(dataset), score_thr=SCORE_THR,
        detections=detection_pairs(model, dataset, NUM_DETECTIONS, SCORE_THR),
        **show_groups(model, record), **show_queries(model, dataset),
        configuration=configuration(cfg, model), config=cfg.pretty_text,
        environment=[(name, value) for name, value in collect_env().items() if '\n' not in
                     str(value)])
    write_atomically(out_file, page.encode())
    return out_file


def find_weights(work_dir: Path, checkpoint: Optional[str]) -> Tuple[Path, bool]:
    """Return the file of weights, and whether it is the best of the training."""
    best = best_checkpoint(work_dir)
    weights = (find_checkpoint(checkpoint, work_dir) if checkpoint
               else best or last_checkpoint(work_dir))
    if weights is None:
        raise ConfigError(f'WORK_DIR {work_dir} has no checkpoint that last_checkpoint names; '
                          'wait for the first one, or name a file with --checkpoint.')
    check_path('--checkpoint', str(weights))
    return Path(weights), bool(best) and best.resolve() == Path(weights).resolve()


def read_config(work_dir: Path) -> Config:
    """Read the config of the last training in a work directory, for this process alone."""
    files = sorted(work_dir.glob('*/vis_data/config.py'))
    if not files:
        raise ConfigError(f'WORK_DIR {work_dir} has no */vis_data/config.py; name the --work-dir '
                          'of groupdetr train.')
    logs = [(file, file.with_name('scalars.json')) for file in files]
    trained = [file for file, log in logs  # and not evaluated
               if log.is_file() and any('loss' in entry for entry in read_log(log))]
    cfg = configs.read_config(str((trained or files)[-1]), f'WORK_DIR {work_dir}')
    check_groups(f'WORK_DIR {work_dir}', cfg.get('model'))
    cfg.launcher = 'none'  # several processes may have trained, and this is one
    return cfg


def evaluate(cfg: Config, checkpoint: str,
             work_dir: Path) -> Tuple[GroupDetector, BaseDataset, Optional[Dict[str, Any]]]:
    """Evaluate every group, or read what was recorded: the model, its test images, the record.

    There is none without a COCO metric, and in an ablation, whose groups do not detect alone.
    """
    cfg = copy.deepcopy(cfg)  # the page has the one of the training
    ranked = cfg.model.get('separate_self_attn', True) and len(coco_metrics(cfg)) == 1
    if ranked:
        evaluate_each_group(cfg, f'WORK_DIR {work_dir}')
    cfg.update(work_dir=str(work_dir / 'report'), load_from=checkpoint, resume=False)
    record = read_groups(checkpoint) if ranked else None
    with Console(stderr=True).status('Evaluating'), quiet_runner(cfg) as runner:
        if ranked and record is None:
            record_groups(checkpoint, runner.test())
            record = read_groups(checkpoint)
        else:
            runner.load_or_resume()
        return runner.model.eval(), runner.test_dataloader.dataset, record


def show_groups(model: GroupDetector, record: Optional[Dict[str, Any]]) -> Dict[str, Any]:
    """What the page has on the AP of each group, if it was recorded."""
    if record is None:
        return {}
    header, *rows = groups_table(record['groups'])
    return dict(kept=model.test_cfg['query_group'], best=record['best_query_group'],
                groups_header=header, groups_table=rows,
                groups_picture=draw_groups(record['groups']))


def show_queries(model: GroupDetector, dataset: BaseDataset) -> Dict[str, Any]:
    """What the page has on the queries in the first images, unless groups are one (ablation)."""
    if not model.separate_self_attn:
        return {}
    legend = plt.figure(figsize=(7, .8))
    add_legend(legend, model)
    queries = [titled for index in range(min(NUM_QUERIES, len(dataset)))
               for titled in query_pictures(model, dataset, index, SCORE_THR, max_objects=4)]
    return dict(queries=queries, legend=legend, references=has_references(model))


def embed(picture: Union[Figure, np.ndarray]) -> str:
    """Turn a figure, or an RGB image, into an address that a page holds itself."""
    if isinstance(picture, Figure):
        kind, file = 'svg+xml', io.BytesIO()
        picture.savefig(file, format='svg', bbox_inches='tight')
        plt.close(picture)
        data = file.getvalue()
    else:
        kind, quality = 'jpeg', [cv2.IMWRITE_JPEG_QUALITY, 85]
        data = cv2.imencode('.jpg', cv2.cvtColor(picture, cv2.COLOR_RGB2BGR), quality)[1]
    return f'data:image/{kind};base64,{base64.b64encode(data).decode()}'


def configuration(cfg: Config, model: GroupDetector) -> List[Tuple[str, Any]]:
    """Choose what a reader asks first."""
    optimizer = cfg.optim_wrapper.optimizer
    return [
        ('detector', cfg.model.type), ('backbone', cfg.model.backbone.type),
        ('groups of queries K', model.num_query_groups),
        ('queries of a group N', model.num_queries),
        ('decoder layers', len(model.decoder.layers)),
        ('epochs', cfg.train_cfg.get('max_epochs')),
        ('batch size', cfg.train_dataloader.batch_size),
        ('optimizer', optimizer.type), ('learning rate', optimizer.lr),
        ('seed', cfg.get('randomness', {}).get('seed')),
    ]
