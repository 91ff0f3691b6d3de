"""A report of a run as one HTML page that needs no network."""
import base64
import io
from datetime import date
from pathlib import Path
from typing import Any, Dict, Optional, Sequence, Tuple, Union

import jinja2
import matplotlib.pyplot as plt
import mmdet
import numpy as np
import torch
from matplotlib.figure import Figure
from mmengine.config import Config
from mmengine.dataset import BaseDataset
from mmengine.utils.dl_utils import collect_env
from rich.console import Console

from .. import __version__
from ..checkpoints.named import best_checkpoint, find_checkpoint, trained_config
from ..config import check_groups, read_config
from ..errors import ConfigError
from ..group_detector import GroupDetector
from ..io import check_output, check_path, write_atomically
from ..training.options import AP
from ..training.progress import quiet_runner
from ..training.runner import for_test
from .group_metrics import (coco_metrics, draw_groups, evaluate_each_group, groups_table,
                            read_groups, record_groups)
from .plots import detection_pairs
from .queries import has_references
from .query_plots import add_legend, query_pictures
from .runs import Run, comparison, draw_panel, panels_of, read_run

TEMPLATE = Path(__file__).with_name('report.html')
NUM_DETECTIONS, NUM_QUERIES = 6, 2  # images to draw
SCORE_THR = 0.3
VERSIONS = (f'groupdetr_mmdet {__version__}', f'MMDetection {mmdet.__version__}',
            f'PyTorch {torch.__version__}')


def write_report(work_dir: Path, compare: Sequence[Path] = (), labels: Sequence[str] = (),
                 checkpoint: Optional[str] = None, out_file: Optional[Path] = None) -> Path:
    """Write the report of a run, and return its file.

    Args:
        work_dir (Path): Work directory of the run.
        compare (Sequence[Path]): Work directories of other runs, the baseline first.
        labels (Sequence[str]): Names of ``compare``, then of ``work_dir``.
        checkpoint (str, optional): A file, 'best' or 'last'. Defaults to the best.
        out_file (Path, optional): Defaults to ``work_dir/report.html``.

    Raises:
        ConfigError: If config, checkpoint, or a log by epoch with validations is missing.
    """
    folders = [*compare, work_dir]
    if labels and len(labels) != len(folders):
        raise ConfigError(f'--labels: {len(labels)} labels for {len(folders)} runs; give a label '
                          'for each of --compare, and then for WORK_DIR.')
    out_file = out_file or work_dir / 'report.html'
    check_output('--out', out_file)
    runs = [read_run(*x) for x in zip(folders, labels or [None] * len(folders))]
    header, rows = comparison(runs)
    best = best_checkpoint(work_dir)
    weights = find_checkpoint(checkpoint or ('best' if best else 'last'), work_dir)
    check_path('--checkpoint', weights)
    cfg = read_config(str(trained_config(weights) or runs[-1].folder / 'config.py'),
                      f'WORK_DIR {work_dir}')
    check_groups(f'WORK_DIR {work_dir}', cfg.get('model'))
    model, dataset, record = evaluate(cfg, weights, work_dir)
    curves = {panel: plt.figure(figsize=(5, 3.6), layout='constrained')
              for panel in panels_of(runs)}
    for panel, figure in curves.items():
        draw_panel(figure.subplots(), panel, runs)
    # With joint self-attention the groups cannot be evaluated separately.
    indices = range(min(NUM_QUERIES, len(dataset)) if model.separate_self_attn else 0)
    queries = [picture for index in indices
               for picture in query_pictures(model, dataset, index, SCORE_THR, max_objects=4)]
    legend = plt.figure(figsize=(7, .8))
    add_legend(legend, model)
    page = jinja2.Template(TEMPLATE.read_text(), autoescape=True).render(
        cfg=cfg, model=model, label=runs[-1].label, unit=runs[-1].unit, result=result_of(runs),
        date=date.today().isoformat(), versions=', '.join(VERSIONS),
        header=header, rows=rows, curves=curves,
        weights=Path(weights).name, is_best=weights == str(best), num_images=len(dataset),
        record=record, groups_table=groups_table, draw_groups=draw_groups, queries=queries,
        legend=legend, references=has_references(model), embed=embed, score_thr=SCORE_THR,
        detections=detection_pairs(model, dataset, NUM_DETECTIONS, SCORE_THR),
        environment=collect_env())
    write_atomically(out_file, page.encode())
    return out_file


def result_of(runs: Sequence[Run]) -> str:
    """Return a sentence with the result of each run, the last run first."""
    metric = runs[0].metric
    reached = [f'{run.label} {max(entry[metric] for entry in run.val):.3f} in {steps} {run.unit}'
               f'{"s" * (steps > 1)}' for run in reversed(runs)
               for steps in [run.val[-1]['step']]]
    return f'Best {"AP" if metric == AP else metric}: {", ".join(reached)}.'


def evaluate(cfg: Config, checkpoint: str,
             work_dir: Path) -> Tuple[GroupDetector, BaseDataset, Optional[Dict[str, Any]]]:
    """Evaluate every group, or read the record; return model, test images and record.

    The record is None without a COCO metric, and with joint self-attention.
    """
    cfg = for_test(cfg, checkpoint)
    ranked = cfg.model.get('separate_self_attn', True) and len(coco_metrics(cfg)) == 1
    if ranked:
        evaluate_each_group(cfg, f'WORK_DIR {work_dir}')
    cfg.update(work_dir=str(work_dir / 'report'), launcher='none')
    record = read_groups(checkpoint) if ranked else None
    with Console(stderr=True).status('Evaluating'), quiet_runner(cfg) as runner:
        if ranked and record is None:
            record_groups(checkpoint, runner.test())
            record = read_groups(checkpoint)
        else:
            runner.load_or_resume()
        return runner.model.eval(), runner.test_dataloader.dataset, record


def embed(picture: Union[Figure, np.ndarray]) -> str:
    """Return a figure or RGB image as a ``data:`` address."""
    kind, file = ('svg+xml' if isinstance(picture, Figure) else 'jpeg'), io.BytesIO()
    if isinstance(picture, Figure):
        picture.savefig(file, format='svg', bbox_inches='tight')
        plt.close(picture)
    else:
        plt.imsave(file, picture, format='jpeg', pil_kwargs=dict(quality=85))
    return f'data:image/{kind};base64,{base64.b64encode(file.getvalue()).decode()}'
