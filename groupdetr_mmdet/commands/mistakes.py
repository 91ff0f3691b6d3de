"""How a command ends: a user's mistake with its sentence, a bug with its traceback.

A mistake of the user's is what :class:`ConfigError` says, what the system refuses (a full disk, a
port in use, a package that is missing), and what a library refuses while it builds what a config
says. An exception out of this package's own code is a bug, whatever it says.
"""
import errno
import inspect
import logging
import os
import re
import signal
import sys
import time
import traceback
from pathlib import Path
from types import FrameType
from typing import Callable, NoReturn, Optional

import torch
from mmengine.dist import is_distributed
from mmengine.runner import BaseLoop, Runner
from torch import nn

from ..errors import ConfigError
from ..blame import failing_library, first_line, frames
from ..config_check import correction, signature_of
from ..processes import launched_rank, unwrapped

MISTAKE = 2  # the status
TRACEBACK = 'GROUPDETR_TRACEBACK'  # an environment variable that asks for it, above the sentence
TOLD = 'GROUPDETR_TOLD'  # another: the file that the first process to tell a mistake makes
INTERRUPTED = 130  # what shells call Ctrl+C
UNREAD = 141  # and an output whose reader has enough of it, as `head`
PACKAGE = str(Path(__file__).parents[1])
BUILDERS = {'build_from_cfg', 'build_model_from_cfg', 'build_runner_from_cfg', 'build_runner',
            'from_cfg', 'build_dataloader', 'build_optim_wrapper', 'build_param_scheduler',
            'build_train_loop', 'build_val_loop', 'build_test_loop', 'build_evaluator',
            'init_weights', '_init_pipeline'}
REFUSED = (TypeError, ValueError, KeyError, AssertionError, AttributeError, IndexError,
           NotImplementedError, RuntimeError, ZeroDivisionError)
# Of what the system refuses a file, what to do.
WRITES = {
    errno.ENOSPC: 'free space on the disk, or name another --work-dir or --out',
    errno.EDQUOT: 'free space, or name another --work-dir or --out',
    errno.EROFS: 'name a place that can be written',
    errno.EACCES: 'correct its permissions, or name another place',
    errno.EPERM: 'correct its permissions, or name another place',
    errno.ENOTDIR: 'a file is in the place of a folder: name another place',
    errno.EEXIST: 'a file is in its place: name another place',
    errno.ENOENT: 'it is not there, or was removed while the command ran: name a place that is',
    errno.EISDIR: 'name a file and not a folder',
    errno.ENAMETOOLONG: 'name a shorter path',
    errno.EMFILE: 'raise the limit of open files (ulimit -n), or lower num_workers',
    errno.EIO: 'look at the disk',
}
PACKAGES = dict(cv2='opencv-python', skimage='scikit-image', sklearn='scikit-learn',
                PIL='pillow', yaml='pyyaml')
MEMORY = ('The memory is full ({}): lower train_dataloader.batch_size, model.num_query_groups or '
          'the image scale, or set model.decoder.num_cp.')
# Of errors known by their class and their text, what to say; {} is the text's first line.
KNOWN = (
    (Exception, f'EADDRINUSE|{os.strerror(errno.EADDRINUSE)}',
     'The port of the launcher is in use, maybe by another run: set PORT (or MASTER_PORT, '
     '--master_port) to another one.'),
    ((torch.cuda.OutOfMemoryError, MemoryError), '', MEMORY),
    (Exception, "can't allocate memory", MEMORY),
    (RuntimeError, r'\ADataLoader worker \(pid',
     '{}: the system killed a process that loads data, mostly for lack of memory; lower '
     'num_workers or batch_size of the dataloader, and continue by --resume.'),
)
PLAIN = re.compile("'(NoneType|str|int|float|bool|list|tuple|dict|ConfigDict)' object")
PEER_LOST = re.compile(
    'Connection (closed|reset|refused)|Broken pipe|[Tt]imed? ?out|peer|NCCL|store', re.IGNORECASE)


def end_mistakes(command: Callable[[], None]) -> None:
    """Run a command; a user's mistake ends the process with its sentence and status 2."""
    logging.raiseExceptions = False  # a log that cannot be written is no news of each line
    try:
        command()
        sys.stdout.flush()
    except KeyboardInterrupt:
        if tells_first():
            print('interrupted', file=sys.stderr)
        end(INTERRUPTED)
    except BrokenPipeError:
        end(UNREAD)
    except Exception as error:
        said = sentence(error)
        if said is None:
            raise
        if os.environ.get(TRACEBACK):
            traceback.print_exc()
        signal.signal(signal.SIGTERM, signal.SIG_DFL)  # the launcher may end this process now
        time.sleep(waiting_time(error))
        if tells_first():
            print('error:', said, file=sys.stderr)
            sys.stderr.flush()
        end(MISTAKE)


def end(status: int) -> NoReturn:
    """End the process; what its output does not take any more is given up."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    sys.exit(status)


def waiting_time(error: Exception) -> float:
    """Seconds in which another process may tell the reason, end, and have the launcher end all."""
    if peer(error):
        return 30
    rank = 0 if TOLD in os.environ else launched_rank()
    return 10 + min(rank, 20) / 2 if rank else 0


def tells_first() -> bool:
    """Whether no other process of this launcher has told a mistake."""
    try:
        os.close(os.open(os.environ[TOLD], os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        return False
    except (KeyError, OSError):  # there is no launcher, or it is gone, and its folder
        pass
    return True


def sentence(error: BaseException) -> Optional[str]:
    """What to tell the user, or None for a bug, whose traceback is told."""
    is_refusal = isinstance(error, REFUSED)
    refusals = (built, resumed, first_step) if is_refusal else ()
    for tell in (told, peer, known, system, package, *refusals):
        said = tell(error)
        if said:
            return ' '.join(said.split())
    return sentence(error.__cause__) if is_refusal and error.__cause__ is not None else None


def told(error: BaseException) -> Optional[str]:
    """A sentence of this package's; out of a data loader's worker it follows a traceback."""
    if isinstance(error, (ConfigError, FloatingPointError)) or 'ConfigError: ' in str(error):
        return str(error).rsplit('ConfigError: ')[-1]
    return None


def peer(error: BaseException) -> Optional[str]:
    """What to say where another process of a distributed run has gone, or hangs."""
    dist_errors = getattr(torch.distributed, 'DistError', ())
    in_dist = any({'distributed', 'autograd'} & {*Path(frame.f_code.co_filename).parts}
                  for frame in frames(error))
    if not is_distributed() or not isinstance(error, dist_errors) and not (
            isinstance(error, RuntimeError) and in_dist and PEER_LOST.search(str(error))):
        return None
    return (f'Another process of this run has ended or hangs ({first_line(error)}): what it said '
            'above is the reason; continue by --resume.')


def known(error: BaseException) -> Optional[str]:
    """What ``KNOWN`` says of an error."""
    return next((said.format(first_line(error)) for kind, words, said in KNOWN
                 if isinstance(error, kind) and re.search(words, str(error))), None)


def system(error: BaseException) -> Optional[str]:
    """What the system refused: a file or a folder."""
    if not isinstance(error, OSError) or isinstance(error, ConnectionError) or \
            error.errno not in WRITES and not (error.errno and error.filename):
        return None
    what = error.filename or 'a file that the run writes'
    return f'{what}: {error.strerror}; {WRITES.get(error.errno, "name another path")}.'


def package(error: BaseException) -> Optional[str]:
    """A package that is optional, or that the config asks for."""
    if not isinstance(error, ImportError) or not isinstance(error.name or '', str):
        return None
    name = (error.name or '').split('.')[0]
    wanted = re.search(r'pip install ([\w ,.-]+)', str(error)) or \
        re.search(r'[Pp]lease install (\S+)', str(error))
    if name == Path(PACKAGE).name or not name and not wanted:
        return None
    install = wanted[1].strip() if wanted else PACKAGES.get(name, name)
    return f'{first_line(error)}: a package is missing; run pip install {install}.'


def built(error: BaseException) -> Optional[str]:
    """What a library refused to build from the config."""
    stack = frames(error)
    building = [frame for frame in stack if frame.f_code.co_name in BUILDERS]
    if not building:
        return None
    keyword = re.match(r"([\w.]+)\(\) (?:got an unexpected keyword argument '(\w+)'|missing \d+ "
                       r'required \S+ arguments?: (.*))', str(error))
    if keyword and isinstance(error, TypeError):
        return misspelt(keyword, stack[-1])
    if stack[-1].f_code.co_filename.startswith(PACKAGE) or isinstance(error, AttributeError) and \
            not PLAIN.match(str(error)) and failing_library(error) is None:
        return None
    types = [frame.f_locals.get('obj_type') for frame in building]
    built_last = next(filter(None, reversed(types)), 'A part of the config')
    return (f'{getattr(built_last, "__name__", built_last)} cannot be built as the config says '
            f'({first_line(error)}): correct its values.')


def resumed(error: BaseException) -> Optional[str]:
    """What a library refuses of a checkpoint's state beside the weights."""
    owners = [x.f_locals.get('self') for x in frames(error) if x.f_code.co_name == 'resume']
    if not owners or failing_library(error) is None:
        return None
    return (f'--resume: {owners[0]._load_from or "the latest checkpoint"} holds a state that this '
            f'run cannot go on with ({first_line(error)}): name another checkpoint, or begin a '
            'new training from it with load_from.')


def first_step(error: BaseException) -> Optional[str]:
    """What a library refuses at the start of a run: values that it took when it was built."""
    runner = next((x for x in map(starting, frames(error)) if x), None)
    at = failing_library(error)
    if runner is None or at is None or re.search('CUDA|NCCL|cuDNN', str(error)):
        return None
    names = {module: name for name, module in unwrapped(runner.model).named_modules()}
    modules = [names[x] for x in (frame.f_locals.get('self') for frame in frames(error))
               if isinstance(x, nn.Module) and names.get(x)]
    part = f'model.{modules[-1].split(".")[0]}' if modules else 'A part'
    return (f'{part} does not work as the config says: {at.f_code.co_name} of '
            f'{at.f_globals["__name__"]} fails when it starts ({first_line(error)}); correct its '
            f'values. {TRACEBACK}=1 shows where.')


def starting(frame: FrameType) -> Optional[Runner]:
    """The runner whose first step or first hooks a call is, None for another call."""
    name, values, owner = frame.f_code.co_name, frame.f_locals, frame.f_locals.get('self')
    if name == 'run_iter' and isinstance(owner, BaseLoop):
        return owner.runner if not values.get('idx') and owner.runner.epoch <= 1 else None
    starts = name == 'call_hook' and isinstance(owner, Runner)
    return owner if starts and values['fn_name'].startswith('before_') else None


def misspelt(found: 're.Match', frame: FrameType) -> str:
    """The sentence for an argument that a class does not know or misses."""
    owner, unknown, missing = found[1].split('.')[0], found[2], found[3]
    if missing:
        return f'{owner} misses {missing} in the config: add it.'
    known = (*frame.f_globals.values(), *frame.f_locals.values(), type(frame.f_locals.get('self')))
    bases = (base for x in known if inspect.isclass(x) for base in inspect.getmro(x))
    cls = next((base for base in bases if base.__name__ == owner), None)  # or a parent, by super()
    return f'{unknown} is unknown, {owner} has no such parameter' + correction(
        unknown, signature_of(cls)[0] if cls else (), ': correct or remove it in the config.')
