"""Detect and test with detectors of mmdet, in a process that has nothing else.

Arguments: a folder with ``NAME.py``, ``NAME.pth`` and the data, and the names.
"""
import importlib.util
import json
import sys
from importlib.machinery import ModuleSpec
from types import ModuleType


class MissingOps(ModuleType):
    """mmcv-lite lacks the compiled half that mmdet imports; none of its functions is called."""

    def __getattr__(self, name: str) -> None:
        if name.startswith('__'):
            raise AttributeError(name)


if importlib.util.find_spec('mmcv._ext') is None:
    sys.modules['mmcv._ext'] = MissingOps('mmcv._ext')
    sys.modules['mmcv._ext'].__spec__ = ModuleSpec('mmcv._ext', None)

import torch  # noqa: E402
from mmdet.apis import DetInferencer  # noqa: E402
from mmengine.config import Config  # noqa: E402
from mmengine.runner import Runner  # noqa: E402

folder, *names = sys.argv[1:]
found = {}
for name in names:
    config, weights = f'{folder}/{name}.py', f'{folder}/{name}.pth'
    inferencer = DetInferencer(config, weights, device='cpu', show_progress=False)
    inferencer.model.load_state_dict(torch.load(weights)['state_dict'], strict=True)
    found[name] = inferencer([f'{folder}/coco/images/val_0.jpg'])['predictions'][0]
    found[name]['classes'] = list(inferencer.model.dataset_meta['classes'])
    cfg = Config.fromfile(config)
    cfg.update(work_dir=f'{folder}/work', load_from=weights)
    cfg.visualizer.name = name
    found[name]['metrics'] = Runner.from_cfg(cfg).test()
assert not any(module.startswith('groupdetr') for module in sys.modules)
print('FOUND', json.dumps(found))
