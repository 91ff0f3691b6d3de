"""End a command with an error in one line and status 2, or with its traceback.

One line: a :class:`ConfigError`, an error of a library before the first step of a run, and common
errors of memory, disk or port. A traceback: an error in the user's own code, and all other errors
after the first step.
"""
import errno
import logging
import os
import re
import signal
import sys
import sysconfig
import time
import traceback
from pathlib import Path
from types import FrameType
from typing import Callable, List, NoReturn, Optional

import torch
from mmcv.transforms import BaseTransform
from mmengine.config import Config
from mmengine.dist import is_distributed
from mmengine.runner import Runner
from torch import nn

from ..compat import unwrapped
from ..config import hint, iter_dicts
from ..errors import ConfigError, first_line
from ..training.processes import launched_rank

ERROR, INTERRUPTED, BROKEN_PIPE = 2, 130, 141  # statuses; as shells report Ctrl+C and SIGPIPE
TRACEBACK = 'GROUPDETR_TRACEBACK'  # environment variable: 1 prints the traceback above the line
FIRST_ERROR = 'GROUPDETR_FIRST_ERROR'  # environment variable: file of the first error's process
LIBRARIES = {'groupdetr_mmdet', 'site-packages', 'dist-packages', 'mmengine', 'mmcv', 'mmdet'}
STDLIB = sysconfig.get_path('stdlib')
SETUP_FUNCTIONS = {  # functions before the first step
    '_init_pipeline', 'build_from_cfg', 'build_runner', 'load_config', 'load_inference_config',
    'load_trained', 'start_run'}
MEMORY = ('The memory is full ({}): lower train_dataloader.batch_size, model.num_query_groups or '
          'the image scale, or set model.decoder.num_cp.')
COMMON_ERRORS = (  # class, pattern of the message, line; {} is the first line of the message
    (Exception, f'EADDRINUSE|{os.strerror(errno.EADDRINUSE)}', 'The port of the launcher is in '
     'use, perhaps by another run: set PORT (or MASTER_PORT, --master_port) to another port.'),
    ((torch.cuda.OutOfMemoryError, MemoryError), '', MEMORY),
    (RuntimeError, "can't allocate memory", MEMORY),
    (RuntimeError, r'\ADataLoader worker \(pid.*(Killed|Bus error)', '{}: the system killed a '
     'loading worker, mostly for lack of memory; lower num_workers or batch_size of the '
     'dataloader, and continue by --resume.'),
    (OSError, f'{os.strerror(errno.ENOSPC)}|{os.strerror(errno.EDQUOT)}', '{}: free space, or '
     'name another --work-dir or --out.'),
    (ModuleNotFoundError, '', '{}: install it with pip.'))
PEER_LOST = 'Connection (closed|reset|refused)|Broken pipe|[Tt]imed? ?out|peer|NCCL|store'


def end_in_one_line(command: Callable[[], None]) -> None:
    """Run a command; print an error in one line, and end the process with status 2."""
    logging.raiseExceptions = False  # a full disk would print a traceback for each line of the log
    try:
        command()
        sys.stdout.flush()
    except KeyboardInterrupt:
        if is_first_error():
            print('interrupted', file=sys.stderr)
        end(INTERRUPTED)
    except BrokenPipeError:
        end(BROKEN_PIPE)
    except Exception as error:
        line = one_line(error)
        if line is None:
            raise
        keep_traceback(error)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)  # let the launcher end this process
        rank = 0 if FIRST_ERROR in os.environ else launched_rank()
        # Wait, so that the process with the cause prints first, and the launcher ends this one.
        time.sleep(30 if lost_peer(error) else 10 + min(rank, 20) / 2 if rank else 0)
        if is_first_error():
            print('error:', line, file=sys.stderr, flush=True)
        end(ERROR)


def end(status: int) -> NoReturn:
    """End the process; drop output after the reader has ended."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    sys.exit(status)


def keep_traceback(error: Exception) -> None:
    """Write the traceback into the log file of the run, and to the terminal on request."""
    text = ''.join(traceback.format_exception(type(error), error, error.__traceback__))
    if os.environ.get(TRACEBACK):
        print(text, file=sys.stderr)
    logger = getattr(runner_of(frames(error)), 'logger', None)
    for handler in logger.handlers if logger else ():
        if isinstance(handler, logging.FileHandler):
            handler.handle(logging.makeLogRecord(dict(msg=text, levelname='ERROR')))


def is_first_error() -> bool:
    """Return whether this is the first process of its launcher to print an error."""
    try:
        os.close(os.open(os.environ[FIRST_ERROR], os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        return False
    except (KeyError, OSError):  # no launcher, or the launcher has ended
        pass
    return True


def one_line(error: BaseException) -> Optional[str]:
    """Return the line for an error, None for an error with a traceback."""
    line, first = None, first_line(error)
    if 'ConfigError: ' in str(error):  # of a loading worker, after its traceback
        line = str(error).rsplit('ConfigError: ')[-1]
    elif isinstance(error, (ConfigError, FloatingPointError)):
        line = str(error)
    elif lost_peer(error):
        line = (f'Another process of this run has ended or hangs ({first}): its error is above; '
                'continue by --resume.')
    else:
        lines = (line.format(first) for kind, text, line in COMMON_ERRORS
                 if isinstance(error, kind) and re.search(text, str(error)))
        line = next(lines, None) or setup_error(error)
    return line and ' '.join(line.split())


def lost_peer(error: BaseException) -> bool:
    """Return whether an error means that another process of the run has ended or hangs."""
    in_dist = any({'distributed', 'autograd'} & {*Path(frame.f_code.co_filename).parts}
                  for frame in frames(error))
    return is_distributed() and (
        isinstance(error, getattr(torch.distributed, 'DistError', ())) or
        isinstance(error, RuntimeError) and in_dist and bool(re.search(PEER_LOST, str(error))))


def setup_error(error: BaseException) -> Optional[str]:
    """Return the line for a library's error before the first step, None for other errors.

    The line begins with the part of the config that was being built.
    """
    stack, text = frames(error), str(error)
    in_worker = ' in DataLoader worker process ' in text
    file = ([stack[-1].f_code.co_filename] + re.findall('File "(.+?)", line', text))[-1]
    is_library = LIBRARIES & {*Path(file).parts} or file.startswith(STDLIB)
    if has_stepped(error, stack) or not is_library and os.path.isfile(file):
        return None
    words = text.strip().splitlines()[-1] if in_worker else first_line(error)
    if isinstance(error, (KeyError, AttributeError)) and not in_worker:
        words = f'{type(error).__name__}: {words}'.partition('. Please check')[0]
    part = config_part(stack)
    return f'{part}{": " * bool(part)}{words}{hint(words, stack)}; {TRACEBACK}=1 shows where.'


def frames(error: BaseException) -> List[FrameType]:
    """Return the frames of an exception, the innermost last."""
    return [frame for frame, _ in traceback.walk_tb(error.__traceback__)]


def runner_of(stack: List[FrameType]) -> Optional[Runner]:
    """Return the runner among the ``self`` of frames, None without a runner."""
    return next((x for x in (frame.f_locals.get('self') for frame in stack)
                 if isinstance(x, Runner)), None)


def has_stepped(error: BaseException, stack: List[FrameType]) -> bool:
    """Return whether a run has done its first step, or, without a run, has built all parts."""
    runner = runner_of(stack)
    if runner is not None:
        return getattr(runner, 'has_stepped', False)
    is_path = isinstance(error, OSError) and error.filename
    return not is_path and not SETUP_FUNCTIONS & {frame.f_code.co_name for frame in stack}


def config_part(stack: List[FrameType]) -> str:
    """Return the config key of the part that was being built or run, '' if unknown."""
    runner, calls = runner_of(stack), {frame.f_code.co_name for frame in stack}
    configs = (x for frame in stack for x in frame.f_locals.values() if isinstance(x, Config))
    cfg = getattr(runner, 'cfg', None) or next(configs, {})
    mode = next((x for x in ('test', 'val', 'train') if f'build_{x}_loop' in calls), '')
    parts = sorted((pair for name in cfg for pair in iter_dicts(cfg[name], name)),
                   key=lambda pair: not pair[0].startswith(mode))
    model = getattr(runner, 'model', None)
    children = unwrapped(model).named_children() if isinstance(model, nn.Module) else ()
    children = [(name, {*module.modules()}) for name, module in children]
    for frame in reversed(stack):
        owner, built = frame.f_locals.get('self'), frame.f_locals.get('cfg')
        if isinstance(owner, BaseTransform):
            return type(owner).__name__
        for name, modules in children:
            if isinstance(owner, nn.Module) and owner in modules:
                return f'model.{name}'
        if frame.f_code.co_name == 'build_dataloader':
            return f'{mode}_dataloader'
        if frame.f_code.co_name == 'build_from_cfg':
            same = [key for key, part in parts if part.get('type', 0) == built.get('type')]
            if same:
                equal = [key for key, part in parts if part == built]
                return (equal or same)[0]
    return ''
