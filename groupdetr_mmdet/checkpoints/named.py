"""Checkpoints by what they are: ``best`` and ``last`` of a training."""
from pathlib import Path
from typing import Optional, Union

from ..errors import ConfigError

NAMES = ('best', 'last')
POINTER = 'last_checkpoint'  # the file in which mmengine names the checkpoint to resume


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
    path = named_checkpoint(work_dir)
    return path and next((x for x in (work_dir / path.name, path) if x.is_file()), None)


def named_checkpoint(work_dir: Union[str, Path]) -> Optional[Path]:
    """Path that ``last_checkpoint`` names, or None where it is missing or empty."""
    pointer = Path(work_dir, POINTER)
    name = pointer.read_text(errors='replace').strip() if pointer.is_file() else ''
    return Path(name) if name else None
