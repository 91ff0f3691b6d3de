"""Checks of image files, before the first step if possible."""
import contextlib
import os
import os.path as osp
from typing import Optional, Sequence, Tuple

import cv2
import numpy as np
from mmcv.transforms import LoadImageFromFile
from mmdet.registry import TRANSFORMS
from mmengine.dataset import Compose
from PIL import ExifTags, Image

from ..errors import ConfigError, warn_once
from ..io import irregular

END_MARKERS = {b'\xff\xd8': b'\xff\xd9', b'\x89P': b'IEND\xae\x42\x60\x82'}  # JPEG, PNG
ROTATED = range(5, 9)  # EXIF orientations that exchange width and height
NUM_HEADERS = 200  # training images whose headers are read before the first step
NUM_DECODED = 8  # images decoded before the first step


@TRANSFORMS.register_module()
class CheckedLoadImageFromFile(LoadImageFromFile):
    """``LoadImageFromFile`` for training pipelines, whose error names an unreadable image.

    With ``ignore_empty=True`` an unreadable image is replaced by another image of the dataset, and
    logged once. Test pipelines keep ``LoadImageFromFile``: an evaluation needs every image, and
    mmdet's inferencer searches the pipeline for that name.
    """

    def transform(self, results: dict) -> Optional[dict]:
        """Load ``img``, shape (h, w, 3) in BGR, from ``img_path``; None to leave it out.

        Raises:
            ConfigError: If it cannot be read, or has another size than in the annotations.
        """
        path = results['img_path']
        try:
            check_whole(path)
            loaded = super().transform(results)
        except Exception as error:
            if not self.ignore_empty:
                raise unreadable(path, error) from error
            loaded = None
        if loaded is None:
            warn_once(f'Image {path} cannot be read and is left out (ignore_empty=True).')
        else:
            check_size(results, loaded['ori_shape'][::-1])
        return loaded


def unreadable(path: str, error: Exception) -> ConfigError:
    """Return the error for an image that cannot be read."""
    return ConfigError(
        f'Image {path} cannot be read ({fault(path, error)}): replace it, correct data_prefix.img '
        'or ann_file of the dataset, or leave such images out of training by ignore_empty=True '
        'on CheckedLoadImageFromFile.')


def fault(path: str, error: Exception) -> str:
    """Describe, in a few words, why an image file cannot be read."""
    if osp.isfile(path) and osp.getsize(path) == 0:
        return 'the file is empty'
    if isinstance(error, AssertionError):  # the decoder returned nothing
        return 'it is cut short, not an image, or has 32 bits for a color'
    if isinstance(error, cv2.error) and 'MAX_IMAGE' in str(error):
        return 'OpenCV reads at most 2**30 pixels'
    return getattr(error, 'strerror', None) or ' '.join(str(error).split())


def check_whole(path: str) -> None:
    """Raise an OSError for a truncated JPEG or PNG, and for a folder, pipe or device.

    OpenCV decodes a truncated file without an error, and waits for a pipe for ever.
    """
    if kind := irregular(path):
        raise OSError(f'it is {kind} and not a file')
    if not osp.isfile(path):
        return
    with open(path, 'rb') as file:
        if not (end := END_MARKERS.get(file.read(2))):
            return
        file.seek(-len(end), os.SEEK_END)
        if file.read() == end:
            return
    try:  # cameras append data after the end
        with Image.open(path) as image:
            image.load()
    except Image.DecompressionBombError:
        return  # the loader raises an error later
    except (OSError, SyntaxError) as error:
        raise OSError('it is cut short') from error


def check_size(results: dict, size: Tuple[int, int]) -> None:
    """Raise a ConfigError if an image has another width or height than in its annotations."""
    listed = results.get('width', size[0]), results.get('height', size[1])
    if listed != tuple(size):
        raise ConfigError(
            f'Image {results["img_path"]} is {size[0]} x {size[1]} pixels when it is read and '
            f'{listed[0]} x {listed[1]} in ann_file: correct ann_file. If EXIF data turn the '
            "image, write it upright, or load it with color_type='color_ignore_orientation'.")


def check_files(images: Sequence[dict], ann_file: str, pipeline: Compose, every: bool) -> None:
    """Check that a data set's local images exist, are whole and have the annotated size.

    Args:
        images (Sequence[dict]): mmdet's entries, with ``img_path``, ``width`` and ``height``.
        ann_file (str): Name of the annotation file, for messages.
        pipeline (Compose): Has the transform that loads the images.
        every (bool): Whether to read the size of every image or of a sample.

    Raises:
        ConfigError: If an image is missing, unreadable or of another size.
    """
    loader = next((x for x in pipeline.transforms if isinstance(x, LoadImageFromFile)), None)
    if loader is None or loader.file_client_args is not None or \
            (loader.backend_args or {}).get('backend', 'local') != 'local':
        return
    images = [image for image in images if '://' not in image['img_path']]
    paths = [image['img_path'] for image in images]
    check_presence(paths, ann_file, loader.ignore_empty)
    for image in images[::1 if every else max(1, len(images) // NUM_HEADERS)]:
        try:
            listed = image['width'], image['height']
            check_size(image, image_size(image['img_path'], loader, listed))
        except OSError as error:
            if not loader.ignore_empty:
                raise unreadable(image['img_path'], error) from error
    if loader.imdecode_backend == 'cv2' and loader.color_type != 'unchanged':
        check_depth(paths[::max(1, len(images) // NUM_DECODED)], ann_file)


def check_presence(paths: Sequence[str], ann_file: str, ignore_empty: bool) -> None:
    """Raise a ConfigError or warn for missing images; lists each folder once, which is fast."""
    there = {osp.join(folder, name) for folder in set(map(osp.dirname, paths))
             if osp.isdir(folder) for name in os.listdir(folder)}
    missing = [path for path in paths if path not in there and not osp.exists(path)]
    if missing:
        found = (f'{len(missing)} of {len(paths)} images of ann_file {ann_file} are missing, '
                 f'first {missing[0]}')
        if not ignore_empty:
            raise ConfigError(f'{found}: correct data_prefix.img or ann_file of the dataset.')
        warn_once(f'{found}; they are left out (ignore_empty=True).')


def image_size(path: str, loader: Optional[LoadImageFromFile] = None,
               listed: Optional[Tuple[int, int]] = None) -> Tuple[int, int]:
    """Return width and height of an image as ``loader`` loads it.

    The image is decoded only if its header cannot be read, or differs from ``listed``.

    Raises:
        OSError: If it cannot be read.
    """
    check_whole(path)
    loader = loader or LoadImageFromFile()
    with contextlib.suppress(Exception):  # the loader may read files that Pillow cannot
        size = header_size(path, loader, listed)
        if listed in (None, size):
            return size
    try:
        return LoadImageFromFile.transform(loader, dict(img_path=path))['ori_shape'][::-1]
    except Exception as error:
        raise OSError(fault(path, error)) from error


def header_size(path: str, loader: LoadImageFromFile,
                listed: Optional[Tuple[int, int]]) -> Tuple[int, int]:
    """Return the size in an image's header, turned by EXIF data if the loader turns it.

    Warn once per folder of turned images if ``listed`` cannot show whose boxes the labels have.
    """
    with Image.open(path) as image:
        if image.mode in ('F', 'I'):
            raise OSError('has 32 bits for a color, which not every loader reads')
        orientation = image.getexif().get(ExifTags.Base.Orientation)
        if image.format == 'TIFF' or loader.imdecode_backend not in (None, 'cv2', 'pillow') or \
                loader.color_type not in ('color', 'grayscale'):
            orientation = 1  # Pillow has already turned the size of a TIFF
    if orientation in (2, 3, 4) or orientation in ROTATED and (
            listed is None or image.width == image.height):
        warn_once(f'EXIF data turn images of {osp.dirname(path)} when they are read: their boxes '
                  'must be boxes of the turned images.')
    return image.size[::-1] if orientation in ROTATED else image.size


def check_depth(paths: Sequence[str], ann_file: str) -> None:
    """Warn of 16-bit images that use the lower bits alone: OpenCV keeps the upper 8 bits."""
    most = -1
    for path in paths:
        with contextlib.suppress(cv2.error):
            image = cv2.imread(path, cv2.IMREAD_UNCHANGED)
            if image is not None and image.dtype == np.uint16:
                most = max(most, int(image.max()))
    if 0 <= most < 2**12:
        warn_once(f'Images of ann_file {ann_file} have 16 bits for a color, and values up to '
                  f'{most}: loading keeps 8 bits, 0 to {most // 2**8}. Scale the images to 0 to '
                  '65535, or write them with 8 bits.')
