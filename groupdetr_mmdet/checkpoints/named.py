"""Checkpoints by what they are: ``best`` and ``last`` of a training."""
from pathlib import Path
from typing import Optional, Union

from mmengine.runner import find_latest_checkpoint

from ..errors import ConfigError

NAMES = ('best', 'last')


def find_checkpoint(checkpoint: str, work_dir: Union[str, Path]) -> str:
    """Turn ``best`` or ``last`` of a training into a path; leave any other name."""
    if checkpoint not in NAMES or Path(checkpoint).exists():
        return checkpoint
    found = (best_checkpoint if checkpoint == 'best' else last_checkpoint)(Path(work_dir))
    if found is None:
        raise ConfigError(f'CHECKPOINT: {work_dir} has no {checkpoint} checkpoint: train first, '
                          'say the --work-dir of the training, or name a file.')
    return str(found)


def best_checkpoint(work_dir: Path) -> Optional[Path]:
    """The checkpoint with the best validation, None where none was kept."""
    return max(work_dir.glob('best_*.pth'), key=lambda path: path.stat().st_mtime, default=None)


def last_checkpoint(work_dir: Path) -> Optional[Path]:
    """The checkpoint that ``last_checkpoint`` names; the directory may have been copied."""
    if not (work_dir / 'last_checkpoint').is_file():
        return None
    path = Path(find_latest_checkpoint(str(work_dir)) or '')
    return next((x for x in (work_dir / path.name, path) if x.is_file()), None)
