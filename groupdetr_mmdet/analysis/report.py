"""A report of a training as one HTML page that needs no network."""
import base64
import io
from pathlib import Path
from typing import Any, Dict, List, Optional, Sequence, Tuple

import cv2
import jinja2
import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.figure import Figure
from mmengine.config import Config
from mmengine.dataset import BaseDataset
from mmengine.utils.dl_utils import collect_env
from rich.console import Console

from ..checkpoints.named import best_checkpoint, find_checkpoint, last_checkpoint
from ..errors import ConfigError
from ..group_detector import GroupDetector
from ..host import configs
from ..host.files import write_atomically
from ..host.preflight import check_groups, check_output, check_path, check_paths
from ..training.progress import quiet_runner
from .group_metrics import (draw_groups, evaluate_each_group, groups_table, read_groups,
                            record_groups)
from .plots import detection_pairs
from .queries import has_references
from .query_plots import add_legend, query_pictures
from .runs import comparison, draw_panel, is_trained, panels_of, read_run

TEMPLATE = Path(__file__).with_name('report.html')
NUM_DETECTIONS, NUM_QUERIES = 6, 2  # images
SCORE_THR = 0.3
FIGURE_SIZE = (5, 3.6)


def write_report(work_dir: Path, compare: Sequence[Path] = (), labels: Sequence[str] = (),
                 checkpoint: Optional[str] = None, out_file: Optional[Path] = None) -> Path:
    """Write the report of a training.

    Args:
        work_dir (Path): Its work directory.
        compare (Sequence[Path]): Work directories of others, the baseline first.
        labels (Sequence[str]): Names of ``compare``, and then of this one.
        checkpoint (str, optional): Weights, 'best' or 'last'. Defaults to the best ones of
            ``work_dir``, or to the last ones where none were kept as best.
        out_file (Path, optional): Defaults to ``report.html`` in ``work_dir``.

    Returns:
        Path: The file.

    Raises:
        ConfigError: If the directories have no log by epoch with validations, config, or
            checkpoint.
    """
    folders = [*compare, work_dir]
    if labels and len(labels) != len(folders):
        raise ConfigError(f'--labels: {len(labels)} labels for {len(folders)} runs; give each of '
                          '--compare one, and then WORK_DIR.')
    out_file = out_file or work_dir / 'report.html'
    check_output('--out', out_file)
    runs = [read_run(*x) for x in zip(folders, labels or [None] * len(folders))]
    header, rows = comparison(runs)
    weights = find_checkpoint(checkpoint, work_dir) if checkpoint else (
        best_checkpoint(work_dir) or last_checkpoint(work_dir))
    if weights is None:
        raise ConfigError(f'WORK_DIR {work_dir} has no checkpoint that last_checkpoint names; '
                          'wait for the first one, or name a file with --checkpoint.')
    checkpoint = str(weights)
    check_path('--checkpoint', checkpoint)
    cfg = read_config(work_dir)
    model, dataset, record = evaluate(cfg, checkpoint, work_dir)
    page = jinja2.Template(TEMPLATE.read_text(), autoescape=True).render(
        title=f'{cfg.model.type}: {runs[-1].label}',
        subtitle=f'{model.num_query_groups} groups of {model.num_queries} queries, '
        f'{len(dataset)} test images, weights {describe(checkpoint, work_dir)}',
        width=420, header=header, rows=rows,
        curves=[(panel, curve_picture(panel, runs)) for panel in panels_of(runs)],
        **groups_section(record), kept=model.test_cfg['query_group'],
        num_images=len(dataset), score_thr=SCORE_THR,
        detections=[(name, embed_image(truth), embed_image(found))
                    for name, truth, found in detection_pairs(
                        model, dataset, NUM_DETECTIONS, SCORE_THR)],
        **({} if record is None else queries_section(model, dataset)),
        configuration=configuration(cfg, model), config=cfg.pretty_text,
        environment=[(name, value) for name, value in collect_env().items() if '\n' not in
                     str(value)])
    write_atomically(out_file, page.encode())
    return out_file


def describe(checkpoint: str, work_dir: Path) -> str:
    """Name a checkpoint, and say whether it is the best of the training."""
    best = best_checkpoint(work_dir)
    is_best = best is not None and Path(checkpoint).exists() and best.samefile(checkpoint)
    return Path(checkpoint).name + ', the best of the training' * is_best


def read_config(work_dir: Path) -> Config:
    """Read the config of the last training in a work directory, for this process alone."""
    files = sorted(work_dir.glob('*/vis_data/config.py'))
    if not files:
        raise ConfigError(f'WORK_DIR {work_dir} has no */vis_data/config.py; name the --work-dir '
                          'of groupdetr train.')
    trained = [file for file in files if is_trained(file.parents[1])]
    cfg = configs.read_config(str((trained or files)[-1]), f'WORK_DIR {work_dir}')
    check_groups(f'WORK_DIR {work_dir}', cfg.get('model'))
    cfg.launcher = 'none'  # several processes may have trained, and this is one
    return cfg


def evaluate(cfg: Config, checkpoint: str,
             work_dir: Path) -> Tuple[GroupDetector, BaseDataset, Optional[Dict[str, Any]]]:
    """Evaluate every group, or read what was recorded.

    Returns:
        tuple[GroupDetector, BaseDataset, dict]: The model with the weights, the test images, and
        ``groups`` and ``best_query_group``, or None for an ablation, whose groups do not detect
        alone.
    """
    cfg = cfg.copy()
    separate = cfg.model.get('separate_self_attn', True)
    if separate:
        evaluate_each_group(cfg, f'WORK_DIR {work_dir}')
    cfg.update(work_dir=str(work_dir / 'report'), load_from=checkpoint, resume=False)
    check_paths(cfg, modes=('test', ))
    record = read_groups(checkpoint) if separate else None
    with Console(stderr=True).status('Evaluating'), quiet_runner(cfg) as runner:
        if separate and record is None:
            record_groups(checkpoint, runner.test())
            record = read_groups(checkpoint)
        else:
            runner.load_or_resume()
        return runner.model, runner.test_dataloader.dataset, record


def groups_section(record: Optional[Dict[str, Any]]) -> Dict[str, Any]:
    """Return what the page says of the AP of each group, nothing without a record."""
    if record is None:
        return {}
    header, *rows = groups_table(record['groups'])
    fig = draw_groups(record['groups'])
    return dict(groups_header=header, groups_table=rows, best=record['best_query_group'],
                groups_picture=embed_figure(fig))


@torch.no_grad()
def queries_section(model: GroupDetector, dataset: BaseDataset) -> Dict[str, Any]:
    """Draw the queries of the first images."""
    model.eval()
    queries = []
    for index in range(min(NUM_QUERIES, len(dataset))):
        queries += [(title, embed_image(picture)) for title, picture in query_pictures(
            model, dataset, index, SCORE_THR, max_objects=4)]
    legend = plt.figure(figsize=(7, .8))
    add_legend(legend, model)
    return dict(queries=queries, legend=embed_figure(legend), references=has_references(model))


def curve_picture(panel: str, runs: Sequence) -> str:
    """Draw one panel of curves, see ``PANELS``, as an address that a page holds itself."""
    fig, ax = plt.subplots(figsize=FIGURE_SIZE, layout='constrained')
    draw_panel(ax, panel, runs)
    return embed_figure(fig)


def embed_figure(fig: Figure) -> str:
    """Turn a figure into the address of an SVG that a page holds itself."""
    buffer = io.BytesIO()
    fig.savefig(buffer, format='svg', bbox_inches='tight')
    plt.close(fig)
    return data_url('svg+xml', buffer.getvalue())


def embed_image(image: np.ndarray) -> str:
    """Turn an RGB image, shape (h, w, 3), into the address of a JPEG that a page holds itself."""
    _, data = cv2.imencode('.jpg', cv2.cvtColor(image, cv2.COLOR_RGB2BGR),
                           [cv2.IMWRITE_JPEG_QUALITY, 85])
    return data_url('jpeg', data.tobytes())


def data_url(kind: str, data: bytes) -> str:
    """Turn an image of a kind, such as png, into an address that a page holds itself."""
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
