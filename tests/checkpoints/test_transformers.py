"""The round trip with Hugging Face's transformers: what leaves detects the same, and returns."""
import base64
import http.server
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any, Dict, Iterator, Tuple

import numpy as np
import pytest
import torch
from builders import build, make_batch, perturbed
from family_builders import family_config
from layout_builders import write_layout
from mask_builders import mask2former_config
from mmdet.datasets import CocoDataset
from mmdet.registry import MODELS
from mmdet.structures.bbox import bbox_overlaps
from mmengine.config import Config
from mmengine.registry import init_default_scope
from PIL import Image
from running import run_tool
from tiny import CLASSES, tiny_config
from torch import Tensor, nn

from groupdetr_mmdet.checkpoints.convert import convert
from groupdetr_mmdet.checkpoints.loading import load_weights
from groupdetr_mmdet.checkpoints.named import resolve_weights, saved_numbers
from groupdetr_mmdet.checkpoints.names import COCO_IDS, rename
from groupdetr_mmdet.checkpoints.reading import read_checkpoint
from groupdetr_mmdet.checkpoints.stock import build_without_memory, one_group
from groupdetr_mmdet.checkpoints.transformers import push, read_folder, rules_for
from groupdetr_mmdet.checkpoints.transformers_out import (backbone_config, config_for,
                                                          write_folder)
from groupdetr_mmdet.commands.model_card import metrics_of
from groupdetr_mmdet.config import read_config
from groupdetr_mmdet.data.shapes import make_shapes
from groupdetr_mmdet.deploy.inference import Inferencer
from groupdetr_mmdet.errors import ConfigError

transformers = pytest.importorskip('transformers')
transformers.utils.logging.set_verbosity_error()
transformers.utils.logging.disable_progress_bar()

FAMILIES = ('conditional', 'dab', 'dab_patterns', 'deformable', 'refine', 'two_stage',
            'mask2former')
LABELS = tuple('abcdefg')
GROUP = 2
SIZES = (192, 128), (128, 192)
PREPROCESSING = dict(mean=[0.] * 3, std=[255.] * 3, channels='RGB',
                     resize=dict(scale=None, keep_ratio=False))


def config_of(family: str, num_classes: int = len(LABELS), groups: int = 3) -> dict:
    """Config of a small detector; transformers' normalization has 32 groups of channels."""
    if family == 'mask2former':
        config = mask2former_config(groups, num_things=num_classes)
        decoder = config.panoptic_head.pixel_decoder
        decoder.norm_cfg.num_groups, decoder.encoder.layer_cfg.self_attn_cfg.num_points = 32, 4
        config.test_cfg.query_group = GROUP
        return config
    config = family_config(family, groups)
    config['test_cfg']['query_group'] = GROUP
    config['bbox_head']['num_classes'] = num_classes
    if config['neck']['norm_cfg']:
        config['neck'].update(norm_cfg=dict(type='GN', num_groups=32), bias=True)
    return config


def one_group_of(config: dict, state_dict: Dict[str, Tensor]) -> nn.Module:
    detector = MODELS.build(dict(one_group(config), train_cfg=None))
    detector.load_state_dict(state_dict)
    return detector.eval()


@pytest.fixture(scope='module')
def folders(tmp_path_factory) -> Any:
    """Make the detector with groups of a family and the folder of its group 2, once."""
    made: Dict[str, Tuple[dict, nn.Module, Path]] = {}

    def make(family: str) -> Tuple[dict, nn.Module, Path]:
        init_default_scope('mmdet')
        if family not in made:
            config, folder = config_of(family), tmp_path_factory.mktemp('hf') / family
            model = perturbed(build(config)).eval()
            meta = dict(dataset_meta=dict(classes=LABELS))
            left = convert(dict(state_dict=model.state_dict(), meta=meta), config,
                           to='transformers', query_group=GROUP).state_dict
            write_folder(folder, one_group_of(config, left), LABELS, PREPROCESSING, 'card')
            made[family] = config, model, folder
        return made[family]

    return make


@torch.no_grad()
def outputs(model: nn.Module) -> Tuple[Tensor, Tensor]:
    """Logits and boxes of two images of two sizes, padded to a batch."""
    images, samples = make_batch(SIZES)
    if isinstance(model, transformers.PreTrainedModel):
        mask = torch.zeros(2, *images.shape[-2:], dtype=torch.long)
        for inside, (height, width) in zip(mask, SIZES):
            inside[:height, :width] = 1
        found = model.eval()(pixel_values=images, pixel_mask=mask)
        if 'masks_queries_logits' in found:
            return found.class_queries_logits, found.masks_queries_logits
        return found.logits, found.pred_boxes
    logits, boxes, *_ = model.eval()._forward(images, samples)
    return logits[-1], boxes[-1]


def assert_same_outputs(one: nn.Module, other: nn.Module) -> None:
    for x, y, tolerance in zip(outputs(one), outputs(other), (1e-4, 1e-5)):
        torch.testing.assert_close(x, y, atol=tolerance, rtol=1e-5)


def weights(state_dict: Dict[str, Tensor]) -> Dict[str, Tensor]:
    return {name: x for name, x in state_dict.items() if 'num_batches' not in name}


@pytest.mark.parametrize('family', FAMILIES)
def test_a_group_detects_the_same_in_transformers(family, folders):
    _, model, folder = folders(family)
    kind = 'UniversalSegmentation' if family == 'mask2former' else 'ObjectDetection'
    theirs = getattr(transformers, f'AutoModelFor{kind}').from_pretrained(folder)
    assert_same_outputs(theirs, model)
    assert tuple(theirs.config.id2label.values()) == LABELS


@pytest.mark.parametrize('family', FAMILIES)
def test_out_and_in_gives_the_same_bits(family, folders):
    config, model, folder = folders(family)
    back = convert(read_checkpoint(folder), config, to='transformers').state_dict
    wanted = weights(model.stock_state_dict(GROUP))
    torch.testing.assert_close(weights(back), wanted, atol=0, rtol=0)


@pytest.mark.parametrize('family', ['conditional', 'two_stage'])
def test_what_comes_in_gets_groups(family, folders):
    config, model, folder = folders(family)
    grown = build(config)
    load_weights(grown, read_checkpoint(folder), str(folder))
    torch.testing.assert_close(weights(grown.stock_state_dict(0)),
                               weights(model.stock_state_dict(GROUP)), atol=0, rtol=0)
    for name, rows in grown.group_parameters():
        first, second, _ = rows.chunk(3)
        assert not torch.equal(first, second), name


def save_coco_model(config: dict, folder: Path, **changes) -> nn.Module:
    """Save a detector of transformers' own with a row for every id of COCO, in several files."""
    labels = ['N/A'] * 91
    for i, name in zip(COCO_IDS, CocoDataset.METAINFO['classes']):
        labels[i] = name
    settings = config_for(build_without_memory(one_group(config)), labels)
    settings.id2label = dict(enumerate(labels))  # of which some names are equal
    torch.manual_seed(0)
    model = perturbed(getattr(transformers, type(settings).__name__.replace(
        'Config', 'ForObjectDetection'))(settings))
    model.save_pretrained(folder, max_shard_size='200KB', **changes)
    return model


@pytest.mark.parametrize('family', ['conditional', 'dab', 'refine'])
def test_a_detector_of_transformers_comes_in_with_the_classes_of_coco(family, tmp_path):
    config = config_of(family, num_classes=80)
    model = save_coco_model(config, tmp_path / 'hf')
    assert len(list((tmp_path / 'hf').glob('*.safetensors'))) > 1
    converted = convert(read_checkpoint(tmp_path / 'hf'), config, to='transformers')
    assert converted.meta['dataset_meta'] == CocoDataset.METAINFO
    ours = one_group_of(config, converted.state_dict)
    for x, y, tolerance in zip(outputs(ours), outputs(model), (1e-4, 1e-5)):
        y = y[..., COCO_IDS] if y.shape[-1] == 91 else y
        torch.testing.assert_close(x, y, atol=tolerance, rtol=0)


def test_timm_names_are_those_of_mmdet(folders, tmp_path):
    from safetensors.torch import load_file, save_file
    folder = folders('conditional')[2]
    shutil.copytree(folder, tmp_path / 'hf')
    start, tensors = 'model.backbone.conv_encoder.model.', {}
    saved = load_file(folder / 'model.safetensors')
    for name, x in saved.items():
        ours = rename(name, rules_for(saved, 'ConditionalDETR'))
        tensors[ours.replace('backbone.', start) if name.startswith(start) else name] = x
    assert f'{start}layer1.0.conv1.weight' in tensors
    save_file(tensors, tmp_path / 'hf/model.safetensors')
    torch.testing.assert_close(read_folder(tmp_path / 'hf')['state_dict'],
                               read_folder(folder)['state_dict'], atol=0, rtol=0)


def test_a_neck_without_bias_leaves_and_comes_back(folders, tmp_path):
    config = config_of('deformable')
    config['neck']['bias'] = 'auto'
    detector = perturbed(build(dict(one_group(config)))).eval()
    write_folder(tmp_path / 'hf', detector, LABELS, PREPROCESSING, '')
    back = convert(read_checkpoint(tmp_path / 'hf'), config, to='transformers').state_dict
    torch.testing.assert_close(weights(back), weights(detector.state_dict()), atol=0, rtol=0)
    with pytest.raises(ConfigError, match='neck.convs.0.conv.bias is not zero.*neck.bias=True'):
        convert(read_checkpoint(folders('deformable')[2]), config)


# Commands


@pytest.fixture
def trained(tiny_coco, tmp_path) -> Tuple[Path, Path]:
    """A config that reads BGR images, and a checkpoint of three groups."""
    config = tiny_config(tiny_coco, num_query_groups=3)
    config.model.data_preprocessor.update(mean=[90., 100., 110.], bgr_to_rgb=False)
    config.dump(tmp_path / 'tiny.py')
    model = perturbed(build({key: x for key, x in config.model.items()
                             if key != 'data_preprocessor'}))
    torch.save(dict(state_dict=model.state_dict(), meta=dict(
        dataset_meta=dict(classes=CLASSES), epoch=2)), tmp_path / 'tiny.pth')
    return tmp_path / 'tiny.py', tmp_path / 'tiny.pth'


@pytest.fixture
def photos(tmp_path) -> Path:
    """A folder of images of odd sizes."""
    numbers = np.random.default_rng(0)
    (tmp_path / 'photos').mkdir()
    for i, (width, height) in enumerate(((500, 375), (427, 641))):
        pixels = numbers.integers(256, size=(height // 8, width // 8, 3), dtype=np.uint8)
        Image.fromarray(pixels).resize((width, height)).save(tmp_path / f'photos/{i}.jpg')
    return tmp_path / 'photos'


@pytest.mark.slow
def test_the_pipeline_finds_what_predict_finds(trained, photos, tiny_coco, tmp_path, monkeypatch,
                                               capsys):
    """With the test pipeline that ``prepare`` writes, which shrinks the images."""
    config, checkpoint = trained
    monkeypatch.chdir(tmp_path)
    assert run_tool('prepare', write_layout('yolo', tiny_coco, tmp_path / 'yolo'), '--weights',
                    'none', '--image-size', '80') == 0
    cfg = Config.fromfile(config)
    cfg.test_dataloader = Config.fromfile('yolo.py').test_dataloader
    cfg.dump(config)
    assert run_tool('convert_checkpoint', config, checkpoint, 'hf', '--to', 'transformers',
                    '--query-group', '1') == 0
    report = capsys.readouterr().out
    assert "transformers.pipeline('object-detection', 'hf')" in report and 'pillow' not in report
    assert run_tool('predict', photos, config, checkpoint, '--query-group', '1', '--score-thr',
                    '0', '--no-vis', '--out', 'found') == 0
    ours = json.loads(Path('found/results.json').read_text())
    monkeypatch.setattr(transformers.ObjectDetectionPipeline, '_get_bounding_box',
                        lambda self, box: box.tolist())  # of which it cuts the fractions
    detect = transformers.pipeline('object-detection', 'hf', device='cpu')
    for i, path in enumerate(sorted(photos.iterdir())):
        width, height = Image.open(path).size
        wanted = sorted((x for x in ours if x['image_id'] == i), key=lambda x: -x['score'])
        found = detect(str(path), threshold=0.)[:len(wanted)]
        assert [x['score'] for x in found] == pytest.approx([x['score'] for x in wanted], abs=1e-4)
        assert [x['label'] for x in found] == [CLASSES[x['category_id'] - 1] for x in wanted]
        boxes, expected = (torch.tensor([x[key] for x in rows]) for rows, key in (
            (found, 'box'), (wanted, 'bbox')))
        boxes = boxes.clamp(min=0).minimum(torch.tensor([width, height] * 2))  # as predict
        expected[:, 2:] += expected[:, :2]
        assert bbox_overlaps(boxes, expected, is_aligned=True).min() > .999


def test_a_folder_has_the_weights_of_its_group(trained, tmp_path, capsys):
    config, checkpoint = trained
    out = tmp_path / 'hf'
    arguments = 'convert_checkpoint', config, checkpoint, out, '--to', 'transformers'
    assert run_tool(*arguments, '--query-group', '1') == 0
    direct = Inferencer(read_config(str(config)), str(out)).model.state_dict()
    first = torch.load(checkpoint)['state_dict']['backbone.conv1.weight']
    assert torch.equal(direct['backbone.conv1.weight'], first)
    assert '3 x 10; the detector is group 1' in (out / 'README.md').read_text()
    assert run_tool(*arguments) == 2
    assert f'error: OUT {out}' in capsys.readouterr().err


# The hub


class Hub(http.server.SimpleHTTPRequestHandler):
    """What huggingface_hub asks the hub for, of the models in a folder, OWNER/NAME."""
    root: Path
    asked: list

    def do_POST(self) -> None:
        """Take a model of whoever has a token, all files in the commit itself."""
        self.asked.append(self.path)
        lines = self.rfile.read(int(self.headers['Content-Length'])).splitlines()
        bodies = [json.loads(line) for line in lines]
        name = '/'.join(self.path.split('/')[3:5])
        if 'Authorization' not in self.headers:
            self.send(401)
        elif self.path == '/api/repos/create':
            name = f'{bodies[0]["organization"]}/{bodies[0]["name"]}'
            self.send(409 if (self.root / name).exists() else 200, dict(
                url=f'http://{self.headers["Host"]}/{name}'))
            (self.root / name).mkdir(parents=True, exist_ok=True)
        elif '/preupload/' in self.path:
            self.send(200, dict(files=[dict(
                path=x['path'], uploadMode='regular', shouldIgnore=False)
                for x in bodies[0]['files']]))
        elif '/commit/' in self.path:
            for x in (x['value'] for x in bodies if x['key'] == 'file'):
                (self.root / name / x['path']).write_bytes(base64.b64decode(x['content']))
            self.send(200, dict(commitUrl=f'/{name}/commit/1', commitOid='1' * 40))
        else:
            self.send(200, dict(errors=[], warnings=[]))  # of the card's head

    def do_GET(self) -> None:
        self.asked += [self.path] * (self.command == 'GET')
        path = self.path.partition('?')[0].strip('/').removeprefix('api/models/').split('/')
        folder = self.root / path[0] / path[1]
        files = {x.name: x for x in folder.iterdir()} if folder.exists() else {}
        if path[2:3] == ['revision'] and files:
            self.send(200, dict(id='/'.join(path[:2]), sha='1' * 40, siblings=[
                dict(rfilename=x) for x in files]))
        elif path[2:3] == ['tree'] and files:
            self.send(200, [dict(type='file', path=name, oid=name, size=x.stat().st_size)
                            for name, x in files.items()])
        elif path[2:3] == ['resolve'] and path[-1] in files:
            self.send(200, files[path[-1]].read_bytes())
        else:
            self.send(404)

    def send(self, status: int, data: Any = None) -> None:
        data = data if isinstance(data, bytes) else json.dumps(data or {}).encode()
        self.send_response(status)
        for key, value in (('ETag', f'"{Path(self.path).name}"'), ('X-Repo-Commit', '1' * 40),
                           ('X-Error-Code', 'EntryNotFound'), ('Content-Length', len(data)),
                           ('Content-Type', 'application/json')):
            if key != 'X-Error-Code' or status == 404 and '/resolve/' in self.path:
                self.send_header(key, str(value))
        self.end_headers()
        if self.command != 'HEAD':
            self.wfile.write(data)

    do_HEAD = do_GET

    def log_message(self, *args) -> None:
        pass


@pytest.fixture
def hub(folders, tmp_path, monkeypatch) -> Iterator[type]:
    """A stand-in of the hub on this machine, with ``me/detector``, and an empty cache."""
    constants = pytest.importorskip('huggingface_hub').constants
    monkeypatch.setattr(constants, 'HF_HUB_CACHE', str(tmp_path / 'cache'))
    handler = type('Handler', (Hub, ), dict(root=tmp_path / 'hub', asked=[]))
    (handler.root / 'me').mkdir(parents=True)
    (handler.root / 'me/detector').symlink_to(folders('conditional')[2])
    with http.server.ThreadingHTTPServer(('127.0.0.1', 0), handler) as server:
        address = f'http://127.0.0.1:{server.server_port}'
        monkeypatch.setenv('HF_ENDPOINT', address)  # of processes that the test starts
        monkeypatch.setenv('HF_HOME', str(tmp_path / 'home'))
        monkeypatch.setattr(constants, 'ENDPOINT', address)
        monkeypatch.setattr(constants, 'HUGGINGFACE_CO_URL_TEMPLATE',
                            f'{address}/{{repo_id}}/resolve/{{revision}}/{{filename}}')
        threading.Thread(target=server.serve_forever, args=(.01, ), daemon=True).start()
        yield handler
        server.shutdown()


def test_a_name_of_the_hub_is_fetched_once(hub, folders):
    _, model, folder = folders('conditional')
    found = read_checkpoint('hf://me/detector')['state_dict']
    torch.testing.assert_close(found, read_folder(folder)['state_dict'], atol=0, rtol=0)
    files = [x for x in hub.asked if '/resolve/' in x]
    assert any(x.endswith('model.safetensors') for x in files)
    assert not any(x.endswith('README.md') for x in files)
    read_checkpoint('hf://me/detector')
    assert files == [x for x in hub.asked if '/resolve/' in x]


@pytest.mark.parametrize('name, endpoint', [('else', None), ('detector', 'http://127.0.0.1:9')])
def test_what_cannot_be_fetched_is_one_sentence(hub, name, endpoint, monkeypatch):
    if endpoint:
        monkeypatch.setattr(pytest.importorskip('huggingface_hub').constants, 'ENDPOINT', endpoint)
    with pytest.raises(ConfigError, match=f'hf://me/{name} cannot be fetched .*folder') as error:
        read_checkpoint(f'hf://me/{name}')
    assert f'model.safetensors of https://huggingface.co/me/{name}' in str(error.value)


def test_a_run_begins_with_a_name_of_the_hub(hub, tiny_config_file, tmp_path):
    """Its classes are others, and it has one group of 6 queries."""
    assert run_tool('train', tiny_config_file, '--work-dir', tmp_path / 'run', '--cfg-options',
                    'load_from=hf://me/detector', 'model.num_queries=6',
                    'train_cfg.max_epochs=1') == 0
    log = next((tmp_path / 'run').glob('*/*.log')).read_text()
    assert 'load_from has 7 classes and the model 3' in log
    assert 'num_query_groups=1 in the checkpoint, 3 in the model' in log


def test_prepare_takes_names_and_folders(folders):
    folder = str(folders('conditional')[2])
    assert resolve_weights('hf://me/detector', None) == 'hf://me/detector'
    assert resolve_weights(folder, None) == folder


def test_prepare_writes_the_number_of_queries_of_a_name_of_the_hub(hub, monkeypatch):
    assert saved_numbers('hf://me/detector') == dict(num_queries=6)
    assert not any('safetensors' in x for x in hub.asked if '/resolve/' in x)
    monkeypatch.setattr(pytest.importorskip('huggingface_hub').constants, 'ENDPOINT',
                        'http://127.0.0.1:9')
    assert saved_numbers('hf://me/other') == {}


def test_the_option_that_convert_prints_resizes_as_transformers(trained, tmp_path, capsys):
    arguments = 'convert_checkpoint', *trained, '--to', 'transformers'
    assert run_tool(*arguments[:3], tmp_path / 'hf', *arguments[3:]) == 0
    options = re.search(r'--cfg-options (.*)', capsys.readouterr().out)[1].split()
    assert run_tool(*arguments[:3], tmp_path / 'again', *arguments[3:], '--cfg-options',
                    *options) == 0
    assert '--cfg-options' not in capsys.readouterr().out


def test_a_detector_is_pushed(hub, trained, tmp_path, monkeypatch, capsys):
    arguments = 'convert_checkpoint', *trained, tmp_path / 'hf', '--push-to', 'you/cells'
    assert run_tool(*arguments) == 2
    assert 'add' in capsys.readouterr().err
    monkeypatch.setenv('HF_TOKEN', 'of-nobody')
    for _ in range(2):  # the second time to what is there
        assert run_tool(*arguments, '--to', 'transformers') == 0
        assert '/you/cells' in capsys.readouterr().out
        names = {x.name for x in (tmp_path / 'hf').iterdir()}
        assert {'config.json', 'model.safetensors', 'preprocessor_config.json'} <= names
        assert {x.name: x.read_bytes() for x in (hub.root / 'you/cells').iterdir()} == {
            x.name: x.read_bytes() for x in (tmp_path / 'hf').iterdir()}
        shutil.rmtree(tmp_path / 'hf')


def test_what_cannot_be_pushed_stays(hub, trained, tmp_path, monkeypatch, capsys):
    monkeypatch.delenv('HF_TOKEN', raising=False)
    assert run_tool('convert_checkpoint', *trained, tmp_path / 'hf', '--to', 'transformers',
                    '--push-to', 'you/cells') == 2
    error = capsys.readouterr().err
    assert '401' in error and f'hf upload you/cells {tmp_path / "hf"}' in error
    assert error.count('\n') == 1
    monkeypatch.setitem(sys.modules, 'huggingface_hub', None)
    with pytest.raises(ConfigError, match='pip install huggingface_hub'):
        push(tmp_path / 'hf', 'you/cells')


# What does not fit


@pytest.mark.parametrize('family', ['dino', 'dn', 'dab_deformable'])
def test_a_detector_that_is_not_written_is_refused(family):
    config = family_config(family)
    name = config['type'][len('Group'):]
    with pytest.raises(ConfigError, match=f'writes ConditionalDETR, .* and no {name}'):
        config_for(build_without_memory(one_group(config)), LABELS)


def test_a_backbone_that_transformers_has_not_is_refused():
    with pytest.raises(ConfigError, match='only a plain ResNet'):
        backbone_config(nn.Identity())


@pytest.mark.parametrize('part, change', [
    ('backbone', dict(dilations=(1, 1, 1, 2), strides=(1, 2, 2, 1))),
    ('backbone', dict(deep_stem=True)), ('positional_encoding', dict(temperature=20))])
def test_what_computes_something_else_is_not_written(part, change, tmp_path):
    """Such as what transformers' config cannot name."""
    config = config_of('conditional')
    config[part].update(change)
    detector = perturbed(build(one_group(config)))
    with pytest.raises(ConfigError, match='differ by'):
        write_folder(tmp_path / 'hf', detector, LABELS, PREPROCESSING, '')
    assert not list(tmp_path.iterdir())


def test_too_many_names_of_classes_are_refused(tmp_path):
    detector = perturbed(build(one_group(config_of('conditional'))))
    with pytest.raises(ConfigError, match=r'class_labels_classifier.*\(7.*\(8'):
        write_folder(tmp_path / 'hf', detector, LABELS + ('h', ), PREPROCESSING, '')


@pytest.mark.parametrize('damage, expected', [
    (lambda x: (x / 'model.safetensors').unlink(), 'model.safetensors'),
    (lambda x: (x / 'config.json').unlink(), 'is no folder of transformers'),
    (lambda x: (x / 'config.json').write_text('{"model_type": "detr"}'),
     'holds a detr of transformers: name a folder of conditional_detr'),
    (lambda x: (x / 'model.safetensors').rename(x / 'model-1.safetensors') and (
        x / 'model.safetensors.index.json').write_text(json.dumps(dict(weight_map=dict(
            a='model-1.safetensors', b='model-2.safetensors')))), 'model-2.safetensors')])
def test_a_folder_that_is_not_whole_is_one_sentence(damage, expected, folders, tmp_path):
    shutil.copytree(folders('conditional')[2], tmp_path / 'hf')
    damage(tmp_path / 'hf')
    with pytest.raises(ConfigError, match=expected):
        read_checkpoint(tmp_path / 'hf')


@pytest.mark.parametrize('family, changes, expected', [
    ('conditional', dict(num_queries=20), 'SRC has groups of 6 queries'),
    ('conditional', dict(width=64), 'shape'),
    ('conditional', dict(num_heads=2), 'encoder_attention_heads=4'),
    ('dab', {}, 'SRC holds a ConditionalDETR and CONFIG builds a DABDETR')])
def test_a_folder_of_another_detector_is_refused(family, changes, expected, folders):
    num_heads = changes.pop('num_heads', None)
    config = family_config(family, 3, **changes)
    if num_heads:
        for layers in (config['encoder'], config['decoder']):
            layers['layer_cfg']['self_attn_cfg']['num_heads'] = num_heads
    config['bbox_head']['num_classes'] = len(LABELS)
    with pytest.raises(ConfigError, match=expected):
        convert(read_checkpoint(folders('conditional')[2]), config)


def test_a_name_that_is_neither_folder_nor_address_gets_the_scheme(trained, capsys):
    assert run_tool('convert_checkpoint', trained[0], 'microsoft/detector', 'x.pth', '--from',
                    'transformers') == 2
    assert 'write hf://microsoft/detector' in capsys.readouterr().err


def test_the_page_leads_from_a_run_to_a_pipeline(hub, tmp_path, monkeypatch, capfd):
    """Its four commands run as they stand; in the last neither mmdet nor this package exists."""
    page = (Path(__file__).parents[2] / 'docs/transformers.md').read_text()
    block = re.search(r'## From a run.*?```\n(.*?)\n```', page, re.S)[1]
    *ours, upload, detect = block.split('\n')
    assert len(ours) == 2
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv('HF_TOKEN', 'of-nobody')
    monkeypatch.setenv('PATH', str(Path(sys.executable).parent), prepend=os.pathsep)
    make_shapes('data/shapes', num_train=1, num_val=2)
    Path('work_dirs/demo').mkdir(parents=True)
    model = perturbed(build(read_config('group_cond_detr_demo').model))
    model.bbox_head.fc_cls.bias.data.zero_()  # scores of about a half
    torch.save(dict(state_dict=model.state_dict()), 'work_dirs/demo/epoch_1.pth')
    for line in ours:
        program, command, *arguments = shlex.split(line)
        assert program == 'groupdetr'
        run_tool(dict(convert='convert_checkpoint').get(command, command), *arguments)
    subprocess.run(upload, shell=True, check=True, timeout=300)
    for name in ('mmdet', 'groupdetr_mmdet'):
        Path(f'absent/{name}').mkdir(parents=True)
        Path(f'absent/{name}/__init__.py').write_text('raise ImportError')
    monkeypatch.setenv('PYTHONPATH', 'absent')
    capfd.readouterr()
    subprocess.run(detect, shell=True, check=True, timeout=300)
    assert re.search(r"'label': '(circle|square|triangle|star)'", capfd.readouterr().out)


def test_masks_leave_by_the_command(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    make_shapes('data/shapes', num_train=1, num_val=1)
    model = build(read_config('group_mask2former_demo').model)
    torch.save(dict(state_dict=model.state_dict()), 'masks.pth')
    assert run_tool('convert_checkpoint', 'group_mask2former_demo', 'masks.pth', 'hf', '--to',
                    'transformers') == 0
    assert "pipeline('image-segmentation', 'hf')" in capsys.readouterr().out
    segment = transformers.pipeline('image-segmentation', 'hf', device='cpu')
    found = segment('data/shapes/val/000000.jpg', subtask='instance', threshold=0.)
    assert {x['label'] for x in found} <= {'circle', 'square', 'triangle', 'star'}


def test_the_card_has_the_ap_of_the_epoch(tmp_path):
    logs = tmp_path / 'run/vis_data'
    logs.mkdir(parents=True)
    logs.joinpath('scalars.json').write_text('\n'.join(json.dumps(x) for x in (
        dict(loss=1., step=1, epoch=1, time=1.), {'coco/bbox_mAP': .25, 'step': 1},
        dict(loss=1., step=2, epoch=2, time=1.),
        {'coco/bbox_mAP': .5, 'coco/bbox_mAP_50': .75, 'step': 2})))
    assert metrics_of(tmp_path / 'epoch_2.pth', dict(epoch=2)) == dict(AP=.5, AP50=.75)
    assert metrics_of(tmp_path / 'epoch_3.pth', dict(epoch=3)) == {}
    assert metrics_of(logs / 'epoch_2.pth', dict(epoch=2)) == {}
