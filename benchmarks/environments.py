"""Install the wheel of this package into an environment, check it, and print a row of the table in
docs/environments.md. Requires the standard library alone. An environment in DIR is kept:

    python benchmarks/environments.py DIR --python python3.12 torch==2.14.1 mmcv-lite==2.1.0 \
        mmengine==0.10.7 mmdet==3.3.0
"""
import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, Callable, Dict, List, Tuple

ROOT = Path(__file__).parents[1]
CONFIG = 'demo/group_cond_detr_demo'
FAMILIES = dict(
    ConditionalDETR='conditional_detr/conditional-detr_r50_8xb2-50e_coco.py',
    DINO='dino/dino-4scale_r50_8xb2-12e_coco.py')
VERSIONS = ['torch'], ['mmcv', 'mmcv-lite', 'onedl-mmcv'], ['mmdet', 'onedl-mmdetection']


# In the environment


def mmdet_first() -> None:
    """Import mmdet before this package; its models only where mmcv has its compiled ops."""
    import importlib.util

    import mmdet
    if importlib.util.find_spec('mmcv._ext'):
        import mmdet.models  # noqa: F401
    import groupdetr_mmdet
    import mmdet.apis
    assert mmdet.apis and groupdetr_mmdet


def ours_first() -> None:
    import groupdetr_mmdet
    import mmdet.apis
    assert mmdet.apis and groupdetr_mmdet


def build(name: str, num_groups: int) -> Any:
    """Build a detector of mmdet by its own config, or with groups unless ``num_groups`` is 0."""
    import groupdetr_mmdet  # noqa: F401
    from mmdet.registry import MODELS
    from mmdet.utils import register_all_modules
    from mmengine.config import Config
    register_all_modules()
    model = Config.fromstring(f'_base_ = "mmdet::{FAMILIES[name]}"', '.py').model
    model.backbone.pop('init_cfg')
    model.num_queries = 30
    if num_groups:
        model.update(type=f'Group{name}', num_query_groups=num_groups)
        model.bbox_head.type = f'Group{model.bbox_head.type}'
        model.train_cfg.assigner.type = 'GroupHungarianAssigner'
    return MODELS.build(model)


def one_group() -> None:
    """Compare losses, and logits and boxes query by query, of one group with the stock detector's.

    Detections are sorted by score, and equal scores may change places, so the last layer's raw
    predictions are compared.
    """
    import torch
    from mmdet.structures import DetDataSample
    from mmengine.structures import InstanceData
    meta = dict(img_shape=(128, 160), batch_input_shape=(128, 160))
    truth = InstanceData(bboxes=torch.tensor([[9., 9, 60, 70], [70., 30, 150, 90]]),
                         labels=torch.tensor([3, 5]))
    batch = torch.randn(1, 3, 128, 160), [DetDataSample(metainfo=meta, gt_instances=truth)]
    for name in FAMILIES:
        stock, ours = build(name, 0), build(name, 1)
        stock.load_state_dict(ours.state_dict())
        results = []
        for model in (stock, ours):
            torch.manual_seed(0)
            model.train(name == 'DINO')  # which makes noise in training, and drops nothing out
            losses = model.loss(*batch)
            logits, boxes = model.eval()(*batch, mode='tensor')[:2]
            results.append(dict({name: x.reshape(()) for name, x in losses.items()},
                                logits=logits[-1], boxes=boxes[-1]))
        torch.testing.assert_close(*results, atol=1e-5, rtol=1e-5)


def operators() -> None:
    """Run a compiled operator, where mmcv has any; compare deformable attention with mmcv's."""
    import importlib.util
    compiled = importlib.util.find_spec('mmcv._ext')  # this package imports a stand-in

    import torch
    from groupdetr_mmdet.ops.deformable import MemorySavingAttention
    from mmcv import ops
    if compiled:
        boxes = torch.tensor([[0., 0, 9, 9], [0, 0, 9, 8], [5, 5, 9, 9]])
        assert ops.nms(boxes, torch.tensor([.9, .8, .7]), .5)[1].tolist() == [0, 2]
    shapes = torch.tensor([[16, 20], [8, 10]])
    query, value, points = torch.randn(2, 30, 64), torch.randn(2, 400, 64), torch.rand(2, 30, 2, 2)
    theirs, ours = (kind(64, 8, 2, dropout=0., batch_first=True) for kind in (
        ops.MultiScaleDeformableAttention, MemorySavingAttention))
    for x in theirs.parameters():
        torch.nn.init.normal_(x, std=.2)
    ours.load_state_dict(theirs.state_dict())
    results = []
    for layer in (theirs, ours):
        out = layer(query, value=value, reference_points=points, spatial_shapes=shapes,
                    level_start_index=torch.tensor([0, 320]))
        out.square().mean().backward()
        results.append(dict({name: x.grad for name, x in layer.named_parameters()}, out=out))
    torch.testing.assert_close(*results, atol=1e-5, rtol=1e-5)


def load_from() -> None:
    """Load a stock detector's checkpoint into three groups, as ``load_from`` does."""
    import torch
    from mmengine.runner import load_checkpoint, save_checkpoint
    stock, ours = build('DINO', 0), build('DINO', 3)
    save_checkpoint(dict(state_dict=stock.state_dict(), meta={}), 'stock.pth')
    load_checkpoint(ours, 'stock.pth', map_location='cpu', strict=True)
    for name, x in ours.stock_state_dict(0).items():
        assert torch.equal(x, stock.state_dict()[name]), name


def versions() -> None:
    """Print Python's version, and the versions of the installed libraries."""
    from importlib import metadata
    installed = {x.metadata['Name'].lower(): x.version for x in metadata.distributions()}
    print(sys.version.split()[0], *(
        next(f'{name} {installed[name]}' for name in names if name in installed)
        for names in VERSIONS), sep=' | ')


INSIDE: Tuple[Callable, ...] = (mmdet_first, ours_first, one_group, load_from, operators, versions)


# Outside


def install(args: argparse.Namespace, python: Path, wheel: Path) -> None:
    """Make the environment, unless it is there, and install into it."""

    def pip(*what: object) -> None:
        subprocess.run([python, '-m', 'pip', 'install', '-q', *map(str, what)], check=True)

    if not python.exists():
        subprocess.run([args.python, '-m', 'venv', args.env], check=True)
    pip('onnx', 'onnxruntime', *args.packages)
    for line in freeze(python):  # the same without libGL; both write to cv2/, so it comes last
        if line.startswith('opencv-python=='):
            pip('--no-deps', '--force-reinstall', line.replace('==', '-headless=='))
    before = freeze(python)
    pip(wheel)
    pip('--no-deps', '--force-reinstall', wheel)  # which may be another of the same version
    for line in sorted(before - freeze(python)):
        print('Installing this package replaced', line, flush=True)


def freeze(python: Path) -> set:
    return set(subprocess.check_output([python, '-m', 'pip', 'freeze'], text=True).splitlines())


def run(args: argparse.Namespace, python: Path) -> Dict[str, bool]:
    """Run every check in a folder of its own; what it printed is in DIR/CHECK.log."""
    here = [python, '-I', Path(__file__).resolve(), '--inside']  # -I: not the clone's package
    command = [python, '-I', '-m', 'groupdetr_mmdet']
    checks: Dict[str, List] = {x.__name__: [*here, x.__name__] for x in INSIDE[:-1]}
    checks['demo'] = [*command, 'demo', '--quick']
    checks['onnx'] = [*command, 'export', CONFIG, 'work_dirs/demo/epoch_1.pth', 'detector.onnx']
    env = {name: value for name, value in os.environ.items() if name != 'PYTHONPATH'}
    passed = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, check in checks.items():
            with open(args.env / f'{name}.log', 'w') as log:
                passed[name] = not subprocess.run(
                    check, cwd=folder, env=env, stdout=log, stderr=log).returncode
            print(name, 'passed' if passed[name] else f'failed: {log.name}', flush=True)
    row = subprocess.check_output([*here, 'versions'], text=True).strip()
    print('| Python | torch | mmcv | mmdet |', ' | '.join(passed), '|')
    print('|', row, '|', ' | '.join('yes' if x else 'no' for x in passed.values()), '|')
    return passed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('env', metavar='DIR', type=Path, help='environment to make or to use')
    parser.add_argument('packages', nargs='*', metavar='PACKAGE', help='what pip installs first')
    parser.add_argument('--python', default=sys.executable, help='that makes the environment')
    parser.add_argument('--wheel', type=Path, help='of this package; built if not given')
    args = parser.parse_intermixed_args()  # options may stand between DIR and PACKAGE
    python = args.env.absolute() / 'bin' / 'python'
    with tempfile.TemporaryDirectory() as folder:
        if not args.wheel:
            source = shutil.copytree(ROOT, Path(folder, 'source'), ignore=shutil.ignore_patterns(
                '.*env*', '.git', 'data', 'work_dirs', 'build'))
            subprocess.run([sys.executable, '-m', 'pip', 'wheel', '-q', '--no-deps', '-w', folder,
                            source], check=True)
            args.wheel = next(Path(folder).glob('*.whl'))
        install(args, python, args.wheel)
    sys.exit(not all(run(args, python).values()))


if __name__ == '__main__':
    if sys.argv[1:2] == ['--inside']:
        {x.__name__: x for x in INSIDE}[sys.argv[2]]()
    else:
        main()
