"""Run blocks of Python, each in a process that has imported nothing of this package or mmdet.

Standard input has the blocks by name, in JSON. The process is forked after the libraries below
are imported, which spares their seconds. What fails is printed.
"""
import json
import os
import sys
import traceback

import cv2  # noqa: F401
import matplotlib.pyplot  # noqa: F401
import mmcv  # noqa: F401
import mmengine.runner  # noqa: F401
import pycocotools.coco  # noqa: F401
import scipy.optimize  # noqa: F401
import torch
import torch._dynamo  # of transformers, which mmdet imports

torch.set_num_threads(1)
status = 0
for name, block in json.load(sys.stdin).items():
    pid = os.fork()
    if not pid:
        try:
            exec(compile(block, name, 'exec'), dict(__name__='__main__'))
            status = 0
        except BaseException:
            print(f'{name}:\n{traceback.format_exc()}', file=sys.stderr, flush=True)
            status = 1
        sys.stdout.flush()
        os._exit(status)
    status |= os.waitpid(pid, 0)[1]
sys.exit(bool(status))
