"""Images, boxes and masks are resized as transformers resizes images."""
import runpy
from pathlib import Path

import numpy as np
import pytest
from mmdet.structures.bbox import HorizontalBoxes
from mmdet.structures.mask import BitmapMasks
from PIL import Image

from groupdetr_mmdet.data.resize import DETRResize, fitted_size
from groupdetr_mmdet.deploy.preprocessing import preprocess

EXAMPLE = Path(__file__).parents[2] / 'examples/detect_onnx.py'
SIZES = (3024, 4032), (480, 640), (427, 640), (500, 333), (400, 1334)  # (h, w)


@pytest.mark.parametrize('scale', [(1333, 800), (512, 512), (160, 213)])
def test_sizes_are_those_of_transformers(scale):
    theirs = pytest.importorskip('transformers.image_transforms').get_size_with_aspect_ratio
    sizes = np.random.default_rng(0).integers(20, 4500, (5000, 2)).tolist()
    for size in (*SIZES, *map(tuple, sizes)):
        assert fitted_size(size, scale) == theirs(size, min(scale), max(scale)), size


def random_image(size: tuple) -> np.ndarray:
    return np.random.default_rng(0).integers(256, size=(*size, 3), dtype=np.uint8)


@pytest.mark.parametrize('keep_ratio, shape', [(True, (80, 106)), (False, (80, 133))])
def test_what_belongs_to_an_image_follows_it(keep_ratio, shape):
    image, ones = random_image((375, 500)), np.ones((1, 375, 500), np.uint8)
    found = DETRResize((133, 80), keep_ratio=keep_ratio, backend='pillow')(dict(
        img=image, gt_bboxes=HorizontalBoxes(np.float32([[50, 75, 500, 375]])),
        gt_masks=BitmapMasks(ones, 375, 500), gt_seg_map=ones[0]))
    height, width = shape
    assert found['img_shape'] == found['gt_seg_map'].shape == shape
    assert found['gt_masks'].masks.shape == (1, *shape)
    np.testing.assert_allclose(found['gt_bboxes'].numpy(), [
        [width / 10, height / 5, width, height]], rtol=1e-6)
    np.testing.assert_array_equal(found['img'], np.array(
        Image.fromarray(image).resize((width, height), Image.Resampling.BILINEAR)))


class Session:
    """Detects nothing, and keeps the images."""

    def run(self, names: None, inputs: dict) -> list:
        self.images, self.sizes = inputs['images'], inputs['image_sizes']
        return [np.zeros((1, 0, *shape)) for shape in ((4, ), (), ())]


@pytest.mark.parametrize('size', SIZES[1:])
@pytest.mark.parametrize('backend', ['cv2', 'pillow'])
@pytest.mark.parametrize('step', [
    dict(type='Resize', keep_ratio=True), dict(type='DETRResize', keep_ratio=True),
    dict(type='Resize', keep_ratio=False)])
def test_the_example_for_onnx_files_resizes_as_they_describe(step, backend, size):
    pytest.importorskip('onnxruntime')
    detector = object.__new__(runpy.run_path(str(EXAMPLE))['Detector'])
    resize = dict(step, scale=[133, 80], backend=backend)
    detector.__dict__.update(session=Session(), classes=[], meta=dict(channels='RGB'),
                             mean=[1., 2., 3.], std=[4., 5., 6.], resize=resize)
    image = random_image(size)
    detector(image)
    wanted = preprocess(image, dict(vars(detector), channels='RGB'))
    np.testing.assert_array_equal(detector.session.images, wanted[None])
    assert detector.session.sizes.tolist() == [[*wanted.shape[1:]]]
