"""``tools/predict.py`` finds what mmdet's inferencer finds, in whatever images it is given."""
import json
import shutil
from pathlib import Path

import cv2
import pytest
import torch
from mmdet.apis import DetInferencer
from mmdet.datasets import CocoDataset
from mmengine.config import Config
from pycocotools.coco import COCO
from running import run_tool
from tiny import CLASSES, write_detector

from groupdetr_mmdet.checkpoints.convert import COCO_IDS
from groupdetr_mmdet.deploy.inference import CocoIds, find_images
from groupdetr_mmdet.errors import ConfigError


@pytest.fixture(scope='module')
def files(tmp_path_factory):
    return write_detector(tmp_path_factory.mktemp('predict'))


@pytest.fixture
def predict(files, tmp_path):
    """Run the tool on images and return its status and results."""

    def run(images, *options):
        out = tmp_path / 'out'
        shutil.rmtree(out, ignore_errors=True)
        images = images if isinstance(images, tuple) else (images, )
        status = run_tool('predict', *images, files.config, files.checkpoint, '--out', out,
                          *options)
        results = out / 'results.json'
        return status, json.loads(results.read_text()) if results.exists() else None

    return run


def by_file(results: list) -> dict:
    groups = {}
    for result in results:
        groups.setdefault(result['file_name'], []).append(result)
    return groups


def test_all_detections_are_those_of_the_inferencer_of_mmdet(predict, files, tmp_path):
    images = sorted(str(path) for path in files.data.glob('images/val_*.jpg'))
    status, results = predict(files.data / 'images/val_*.jpg', '--score-thr', 0,
                              '--ann-file', files.data / 'val.json')
    inferencer = DetInferencer(str(files.config), str(files.checkpoint), device='cpu')
    expected = inferencer(images)['predictions']
    assert status == 0 and len(expected) == 4
    for image, prediction in zip(images, expected):
        found = by_file(results)[Path(image).name]
        assert [x['score'] for x in found] == pytest.approx(prediction['scores'], abs=1e-6)
        assert [x['category_id'] - 1 for x in found] == prediction['labels']
        for x, (left, top, right, bottom) in zip(found, prediction['bboxes']):
            assert x['bbox'] == pytest.approx([left, top, right - left, bottom - top], abs=1e-3)
    coco = COCO(files.data / 'val.json')
    assert len(coco.loadRes(str(tmp_path / 'out/results.json')).anns) == len(results)
    names = {x['id']: x['file_name'] for x in coco.dataset['images']}
    assert all(names[x['image_id']] == x['file_name'] for x in results)


def in_a_wrapper(cfg):
    cfg.test_dataloader.dataset = dict(type='ConcatDataset', datasets=[
        dict(type='RepeatDataset', times=2, dataset=cfg.test_dataloader.dataset)])


def by_full_names(cfg):
    """As in the config that a training in pure Python writes."""
    cfg.test_dataloader.dataset.pipeline[0].type = 'mmcv.transforms.loading.LoadImageFromFile'


@pytest.mark.parametrize(('change', 'meta'), [
    (in_a_wrapper, None), (by_full_names, dict(dataset_meta=dict(palette=[(0, 0, 0)] * 3)))])
def test_test_data_written_in_another_way_prepare_the_same_images(change, meta, predict, files,
                                                                  tmp_path):
    status, expected = predict(files.data / 'images', '--score-thr', 0)
    cfg = Config.fromfile(files.config)
    change(cfg)
    cfg.dump(tmp_path / 'changed.py')
    torch.save(dict(torch.load(files.checkpoint), meta=meta), tmp_path / 'bare.pth')
    assert run_tool('predict', files.data / 'images', tmp_path / 'changed.py',
                    tmp_path / 'bare.pth', '--out', tmp_path / 'out', '--score-thr', 0) == status
    assert json.loads((tmp_path / 'out/results.json').read_text()) == expected != []


def test_the_batch_size_changes_nothing_for_images_of_one_size(predict, files):
    one, four = (predict(files.data / 'images', '--score-thr', 0, '--batch-size', size)[1]
                 for size in (1, 4))
    assert [x['file_name'] for x in one] == [x['file_name'] for x in four]
    assert [x['score'] for x in one] == pytest.approx([x['score'] for x in four], abs=1e-6)


def test_scores_and_classes_filter_the_detections(predict, files):
    image = files.data / 'images/val_0.jpg'
    every = predict(image, '--score-thr', 0)[1]
    threshold = sorted(x['score'] for x in every)[len(every) // 2]
    some = predict(image, '--score-thr', threshold, '--classes', CLASSES[2], CLASSES[0])[1]
    expected = [x for x in every if x['score'] >= threshold and x['category_id'] in (1, 3)]
    assert some == expected and 0 < len(expected) < len(every)


def test_each_group_of_queries_can_be_asked(predict, files):
    image = files.data / 'images/val_0.jpg'
    groups = [predict(image, '--score-thr', 0, '--query-group', group)[1] for group in range(3)]
    default = predict(image, '--score-thr', 0)[1]
    assert default == groups[0]
    assert len({groups[i][0]['score'] for i in range(3)}) == 3


@pytest.mark.parametrize('content', [b'no image', 'cut', None], ids=['text', 'cut', 'missing'])
def test_an_unreadable_image_is_reported_and_skipped(content, predict, files, tmp_path, capsys):
    good, bad = files.data / 'images/val_0.jpg', tmp_path / 'bad.jpg'
    if content is not None:
        data = good.read_bytes()
        bad.write_bytes(data[:len(data) * 2 // 3] if content == 'cut' else content)
    status, results = predict((bad, good), '--score-thr', 0, '--batch-size', 2)
    assert status == 1
    assert {x['file_name'] for x in results} == {'val_0.jpg'}
    assert f'skipped {bad}: ' in capsys.readouterr().err


def test_an_image_that_cannot_be_drawn_keeps_its_detections(predict, files, tmp_path, capsys):
    """A TIFF of 32-bit colors, which OpenCV reads only unchanged."""
    good, odd = files.data / 'images/val_0.jpg', str(tmp_path / 'odd.tiff')
    cv2.imwrite(odd, cv2.imread(str(good)).astype('float32'))
    status, results = predict((odd, good), '--score-thr', 0, '--cfg-options',
                              'test_dataloader.dataset.pipeline.0.color_type=unchanged')
    assert status == 1 and {*by_file(results)} == {'odd.tiff', 'val_0.jpg'}
    assert f'skipped {odd}: there is no picture' in capsys.readouterr().err


def test_pictures_have_the_detections_and_keep_their_folders(predict, files, tmp_path):
    for i in range(2):
        (tmp_path / f'in/{i}').mkdir(parents=True)
        shutil.copy(files.data / f'images/val_{i}.jpg', tmp_path / f'in/{i}/same.jpg')
    # A palette of fewer colors than classes, as CocoDataset has for a set of many classes
    status, _ = predict(tmp_path / 'in/**/*.jpg', '--score-thr', 0, '--cfg-options',
                        'test_dataloader.dataset.metainfo.palette=[(255,0,0)]')
    assert status == 0
    for i in range(2):
        picture = cv2.imread(str(tmp_path / f'out/vis/{i}/same.jpg'))
        image = cv2.imread(str(tmp_path / f'in/{i}/same.jpg'))
        assert picture.shape == image.shape
        assert abs(picture.astype(int) - image).max() > 50  # something is drawn
    predict(tmp_path / 'in/0', '--no-vis')
    assert not (tmp_path / 'out/vis').exists()


def test_a_picture_gets_a_suffix_that_can_be_written(predict, files, tmp_path):
    folder = tmp_path / 'in'
    folder.mkdir()
    names = ['noext', 'noext.jpg', 'gray.pgm', 'photo.JPG', '.png']
    for name in names:
        shutil.copy(files.data / 'images/val_0.jpg', folder / name)
    status, results = predict(tuple(folder / name for name in names), '--score-thr', 0)
    assert status == 0 and set(by_file(results)) == set(names)
    pictures = {'noext.jpg.jpg', 'noext.jpg', 'gray.pgm.jpg', 'photo.JPG', '.png.jpg'}
    assert {path.name for path in (tmp_path / 'out/vis').iterdir()} == pictures


def test_images_are_found_in_folders_and_patterns(tmp_path, monkeypatch):
    for name in ('b.png', 'a.JPG', 'note.txt', 'sub/c.jpg', 'deep/er/d.jpg'):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    monkeypatch.chdir(tmp_path)
    for inputs, found in (
            (['.'], ['./a.JPG', './b.png']), (['deep'], ['deep/er/d.jpg']),
            (['**/*.jpg'], ['deep/er/d.jpg', 'sub/c.jpg']),
            (['http://host/a.jpg?size=9'], ['http://host/a.jpg?size=9']),
            (['b.png', 'sub/../b.png', str(tmp_path), './no.jpg', 'no.jpg'],
             ['b.png', f'{tmp_path}/a.JPG', './no.jpg'])):
        assert find_images(inputs) == found
    with pytest.raises(ConfigError, match='has no image'):
        find_images(['*.bmp'])


def test_ids_are_those_of_coco():
    names = CocoDataset.METAINFO['classes']
    ids = CocoIds(names, ['x/000000000139.jpg', '000000000285.jpg'])
    assert [*ids.images.values()] == [139, 285] and list(ids.categories) == COCO_IDS
    ids = CocoIds(['cat', 'dog'], ['7.jpg', 'x/7.png', 'b.jpg'])
    assert [*ids.images.values()] == [1, 2, 3] and list(ids.categories) == [1, 2]


def test_ids_of_annotations_are_checked(tmp_path):
    ann_file = tmp_path / 'ann.json'
    ann_file.write_text(json.dumps(dict(
        images=[dict(id=42, file_name='d/a.jpg')],
        categories=[dict(id=9, name='dog'), dict(id=7, name='cat')])))
    ids = CocoIds(['cat', 'dog'], ['a.jpg'], str(ann_file))
    assert ids.images == {'a.jpg': 42} and list(ids.categories) == [7, 9]
    for name, image, words in (('cat', 'b.jpg', 'has no b.jpg'), ('cow', 'a.jpg', 'has no cow')):
        with pytest.raises(ConfigError, match=words):
            CocoIds([name], [image], str(ann_file))
    ann_file.write_text('[]')
    with pytest.raises(ConfigError, match='not in COCO format'):
        CocoIds(['cat'], ['a.jpg'], str(ann_file))


@pytest.mark.parametrize(('options', 'words'), [
    (['--classes', 'dog'], ['--classes dog', 'red, green, blue']),
    (['--score-thr', 2], ['--score-thr 2']),
    (['--device', 'nowhere'], ['--device nowhere']),
    (['--query-group', 3], ['query_group=3', '0 to 2']),
    (['--query-group', 'best'], ['--query-group best', 'weights.groups.json']),
    (['--out', __file__], ['--out', __file__]),
])
def test_a_wrong_option_gets_a_sentence(options, words, predict, files, capsys):
    status, results = predict(files.data / 'images/val_0.jpg', *options)
    error = capsys.readouterr().err
    assert status == 2 and results is None
    assert all(word in error for word in words), error
