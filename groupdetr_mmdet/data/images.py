"""Image files: one sentence for a file that cannot be used, before the first step where possible."""
import os
import os.path as osp
from typing import List, Optional, Sequence, Tuple

import cv2
import numpy as np
from mmcv import rescale_size
from mmcv.transforms import LoadImageFromFile, Resize
from mmdet.registry import TRANSFORMS
from mmengine.dataset import Compose
from PIL import ExifTags, Image

from ..errors import ConfigError, warn_once
from ..io import irregular

JPEG_START, JPEG_SCAN, JPEG_END = b'\xff\xd8', b'\xff\xda', b'\xff\xd9'
PNG_START, PNG_END = b'\x89PNG\r\n\x1a\n', b'IEND\xae\x42\x60\x82'
TURNED = range(5, 9)  # EXIF's orientations that exchange width and height
PROBED = 200  # training images whose headers are read before the first step
DECODED = 8  # images that are decoded before the first step, to look at their values


@TRANSFORMS.register_module()
class CheckedLoadImageFromFile(LoadImageFromFile):
    """``LoadImageFromFile`` of a training pipeline, with a sentence for an unreadable image.

    A file that is missing, empty, cut short or no image stops the training. With
    ``ignore_empty=True`` the dataset takes another image in its place, and each process that
    loads data logs the file once.

    A test pipeline keeps ``LoadImageFromFile``, since no image of an evaluation can be left out
    and mmdet's inferencer looks for that name.
    """

    def transform(self, results: dict) -> Optional[dict]:
        """Load the image of ``img_path``, or return None to leave it out.

        It becomes ``img``, an array of shape (h, w, 3) in BGR, with ``img_shape`` and
        ``ori_shape``, both (h, w) in pixels.

        Raises:
            ConfigError: If the image cannot be read, unless ``ignore_empty``, or has another size
                than its annotations say.
        """
        path = results['img_path']
        try:
            check_whole(path)
            loaded = super().transform(results)
        except Exception as error:
            if not self.ignore_empty:
                raise unreadable(path, error, training=True) from error
            loaded = None
        if loaded is None:
            warn_once(f'Image {path} cannot be read and is left out, as ignore_empty=True asks.')
        else:
            check_size(results, loaded['ori_shape'][::-1])
        return loaded


def unreadable(path: str, error: Exception, training: bool) -> ConfigError:
    """The sentence for an image that cannot be read; a training may go without it."""
    fix = (', or train without such images by ignore_empty=True on CheckedLoadImageFromFile in '
           'the pipeline' if training else '')
    return ConfigError(
        f'Image {path} cannot be read ({fault(path, error)}): put the whole image there, or '
        f'correct data_prefix.img or ann_file of the dataset{fix}.')


def fault(path: str, error: Exception) -> str:
    """Say in a few words what is wrong with an image file."""
    if os.path.isfile(path) and os.path.getsize(path) == 0:
        return 'the file is empty'
    if isinstance(error, AssertionError):  # the decoder returned nothing
        return 'it is cut short, not an image, or has 32 bits for a color'
    if isinstance(error, cv2.error) and 'MAX_IMAGE' in str(error):
        return 'OpenCV reads at most 2**30 pixels'
    return getattr(error, 'strerror', None) or ' '.join(str(error).split())


def check_whole(path: str) -> None:
    """Refuse half an image, and what is no file: for some a reader would wait for ever.

    Raises:
        OSError: If it is one of these. Whether the rest is an image, the decoder finds out.
    """
    if kind := irregular(path):
        raise OSError(f'it is {kind} and not a file')
    if is_cut_short(path):
        raise OSError('it is cut short')


def check_size(results: dict, size: Tuple[int, int]) -> None:
    """Compare width and height of a decoded image with those in its annotations, if any."""
    said = results.get('width', size[0]), results.get('height', size[1])
    if said != tuple(size):
        turned = (' (its EXIF data may turn it: write the image upright without EXIF data, or load '
                  "it by color_type='color_ignore_orientation')" * (said == tuple(size[::-1])))
        raise ConfigError(
            f'Image {results["img_path"]} is {size[0]} x {size[1]} pixels when it is read and '
            f'{said[0]} x {said[1]} in ann_file, so its boxes would not fit{turned}: correct '
            'ann_file, or use the images that it was made for.')


def is_cut_short(path: str) -> bool:
    """Whether a local JPEG or PNG file ends inside its image; no other file is looked at.

    OpenCV 4 decodes such a file without an error, and fills the rest of the image with whatever
    was in memory.
    """
    if not osp.isfile(path):
        return False
    with open(path, 'rb') as file:
        start = file.read(len(PNG_START))
        is_jpeg = start.startswith(JPEG_START)
        end = JPEG_END if is_jpeg else PNG_END
        if not is_jpeg and start != PNG_START:
            return False
        file.seek(-len(end), os.SEEK_END)
        if file.read() == end:
            return False
        file.seek(0)
        data = file.read()
    return data.find(end, scan_start(data) if is_jpeg else 0) < 0


def scan_start(data: bytes) -> int:
    """Offset of a JPEG's first scan, behind the header, whose thumbnail has an end of its own."""
    position = len(JPEG_START)
    while position < len(data) and data[position:position + 2] != JPEG_SCAN:
        position += 2 + int.from_bytes(data[position + 2:position + 4], 'big')
    return position


# Before the first step


def check_files(images: Sequence[dict], ann_file: str, pipeline: Compose, every: bool) -> None:
    """Check the files of a data set's images without decoding them.

    Args:
        images (Sequence[dict]): mmdet's entries, with ``img_path``, ``width`` and ``height``.
        ann_file (str): The file that lists them, for the message.
        pipeline (Compose): The transforms; without one that loads local files there is no check.
        every (bool): Whether to read all headers, as an evaluation needs all, or of a sample.

    Raises:
        ConfigError: If a file is missing, is no regular file or no whole image, has another size
            than its annotations say, or disappears when it is resized.
    """
    loader = next((x for x in pipeline.transforms if isinstance(x, LoadImageFromFile)), None)
    if loader is None or loader.file_client_args is not None or \
            (loader.backend_args or {}).get('backend', 'local') != 'local':
        return
    images = [image for image in images if '://' not in image['img_path']]
    check_presence([image['img_path'] for image in images], ann_file, loader.ignore_empty)
    for transform in pipeline.transforms:
        if isinstance(transform, Resize):
            check_resize(images, transform)
    for image in images[::1 if every else max(1, len(images) // PROBED)]:
        try:
            said = image['width'], image['height']
            check_size(image, image_size(image['img_path'], loader, said))
        except OSError as error:
            if not loader.ignore_empty:  # which leaves it out when its turn comes
                raise unreadable(image['img_path'], error, not every) from error
    if loader.imdecode_backend == 'cv2' and loader.color_type != 'unchanged':
        step = max(1, len(images) // DECODED)
        check_depth([image['img_path'] for image in images[::step]], ann_file)


def check_presence(paths: Sequence[str], ann_file: str, ignore_empty: bool) -> None:
    """Check that all images are there."""
    missing = find_missing(paths)
    found = f'{len(missing)} of {len(paths)} images of ann_file {ann_file} are missing, first '
    if missing and not ignore_empty:
        raise ConfigError(f'{found}{missing[0]}: put them there, or correct data_prefix.img or '
                          'ann_file of the dataset.')
    if missing:
        warn_once(f'{found}{missing[0]}; they are left out, as ignore_empty=True asks.')


def find_missing(paths: Sequence[str]) -> List[str]:
    """Return the paths where nothing is, in order; each folder is listed once, which is quick."""
    folders = set(map(osp.dirname, paths))
    there = {osp.join(folder, name) for folder in folders if osp.isdir(folder)
             for name in os.listdir(folder)}
    return [path for path in paths if path not in there and not osp.exists(path)]


def check_resize(images: Sequence[dict], resize: Resize) -> None:
    """Check that no side of an image becomes 0 when it is resized to a fixed scale."""
    if not resize.keep_ratio or not isinstance(resize.scale, (tuple, list)):
        return
    scale = tuple(resize.scale)
    for image in images:
        size = image['width'], image['height']
        if 0 in rescale_size(size, scale):
            raise ConfigError(
                f'Image {image["img_path"]} of {size[0]} x {size[1]} pixels has a side of 0 '
                f'pixels after Resize to scale={scale}: leave it out of ann_file, or use a '
                'larger scale or keep_ratio=False.')


def image_size(path: str, loader: Optional[LoadImageFromFile] = None,
               said: Optional[Tuple[int, int]] = None) -> Tuple[int, int]:
    """Width and height of an image as a loader gives it, read from the header where that will do.

    Args:
        path (str): The file.
        loader (LoadImageFromFile, optional): mmcv's by default.
        said (tuple, optional): The size in the labels; if it differs, the image is decoded.

    Raises:
        OSError: If the file is no whole image that can be loaded.
    """
    check_whole(path)
    loader = loader or LoadImageFromFile()
    try:
        size = header_size(path, loader)
        if size and said in (None, size):
            return size
    except Exception:  # a kind of image that the loader alone may know
        pass
    try:
        return LoadImageFromFile.transform(loader, dict(img_path=path))['ori_shape'][::-1]
    except Exception as error:
        raise OSError(fault(path, error)) from error


def header_size(path: str, loader: LoadImageFromFile) -> Optional[Tuple[int, int]]:
    """The size in an image's header, turned as by the loader; None where it may not be loaded."""
    with Image.open(path) as image:
        if image.mode in ('F', 'I'):  # which may have 32 bits
            return None
        # Pillow turns the size of a TIFF, and of no other.
        tags = getattr(image, 'tag_v2', {})
        size = tags.get(ExifTags.Base.ImageWidth), tags.get(ExifTags.Base.ImageLength)
        size = size if all(size) else image.size
        orientation = orientation_of(image, loader)
    if 1 < orientation < min(TURNED) or orientation in TURNED and size[0] == size[1]:
        warn_once(f'Image {path} is turned when it is read, as its EXIF data asks: its boxes must '
                  'be those of the turned image.')
    return size[::-1] if orientation in TURNED else size


def orientation_of(image: Image.Image, loader: LoadImageFromFile) -> int:
    """How a loader turns an image as its EXIF data ask, 1 to 8; 1 turns nothing."""
    orientation = image.getexif().get(ExifTags.Base.Orientation)
    turns = (loader.imdecode_backend in (None, 'cv2', 'pillow')
             and loader.color_type in ('color', 'grayscale'))
    return orientation if turns and orientation in range(1, 9) else 1


def check_depth(paths: Sequence[str], ann_file: str) -> None:
    """Warn if images have 16 bits for a color and use few of them: OpenCV keeps the upper 8."""
    most = -1
    for path in paths:
        try:
            image = cv2.imread(path, cv2.IMREAD_UNCHANGED)
        except cv2.error:
            continue
        if image is not None and image.dtype == np.uint16:
            most = max(most, int(image.max()))
    if 0 <= most < 2**12:
        warn_once(f'Images of ann_file {ann_file} have 16 bits for a color, and the largest value '
                  f'in {len(paths)} of them is {most}: loaded with 8 bits, values are 0 to '
                  f'{most // 2**8}. Scale the images to 0 to 65535, or write them with 8 bits.')
