"""Image files: loaded with a sentence for what is wrong, and checked before they are loaded."""
import os
import os.path as osp
from typing import List, Optional, Sequence, Tuple

import cv2
from mmcv import rescale_size
from mmcv.transforms import LoadImageFromFile, Resize
from mmdet.registry import TRANSFORMS
from mmengine.dataset import Compose
from PIL import ExifTags, Image

from ..errors import ConfigError, warn_once
from ..io import irregular

JPEG_START, JPEG_SCAN, JPEG_END = b'\xff\xd8', b'\xff\xda', b'\xff\xd9'
PNG_START, PNG_END = b'\x89PNG\r\n\x1a\n', b'IEND\xae\x42\x60\x82'
TRANSPOSED = 5  # and above: EXIF's orientations that exchange width and height
PROBED = 200  # training images whose headers are read before the first step


@TRANSFORMS.register_module()
class CheckedLoadImageFromFile(LoadImageFromFile):
    """``LoadImageFromFile`` of a training pipeline, with a sentence for an unreadable image.

    A file that is missing, empty, cut short or no image stops the training, or, with
    ``ignore_empty=True``, is left out: each process that loads data logs it once, and the
    dataset takes another image in its place.

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
    return getattr(error, 'strerror', None) or str(error)


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
    """Compare width and height of a decoded image with what its annotations say, if they do."""
    path = results['img_path']
    said = results.get('width', size[0]), results.get('height', size[1])
    if said == tuple(size):
        return
    reason = 'its boxes would not fit: correct ann_file, or use the images that it was made for'
    if said == tuple(size[::-1]) and osp.isfile(path) and stored_size(path)[1] > 1:
        reason = ('its EXIF data turns it upright when it is read, but not its boxes: write the '
                  'image upright without EXIF data, or load it by '
                  "color_type='color_ignore_orientation'")
    raise ConfigError(f'Image {path} is {size[0]} x {size[1]} pixels when it is read and '
                      f'{said[0]} x {said[1]} in ann_file; {reason}.')


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
        if not is_jpeg and start != PNG_START:
            return False
        end = JPEG_END if is_jpeg else PNG_END
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
    step = 1 if every else max(1, len(images) // PROBED)
    for image in images[::step]:
        check_header(image, loader, training=not every)


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


def check_header(image: dict, loader: LoadImageFromFile, training: bool) -> None:
    """Check that a file is a whole image of the size that its annotations say."""
    path = image['img_path']
    try:
        size, orientation = stored_size(path)
    except OSError as error:
        if loader.ignore_empty:
            return  # it is left out when its turn comes
        raise unreadable(path, error, training) from error
    upright = 'ignore_orientation' not in loader.color_type and loader.color_type != 'unchanged'
    if orientation > 1 and upright and size[0] == size[1] or 1 < orientation < TRANSPOSED:
        warn_once(f'Image {path} is turned when it is read, as its EXIF data asks: its boxes must '
                  'be those of the turned image.')
    if upright and orientation >= TRANSPOSED:
        size = size[::-1]
    check_size(image, size)


def stored_size(path: str) -> Tuple[Tuple[int, int], int]:
    """Width and height of an image as it is stored, and its EXIF orientation, 1 to 8.

    Raises:
        OSError: If the file is no whole image that can be loaded.
    """
    check_whole(path)
    reason = None
    try:
        with Image.open(path) as image:
            if image.mode not in ('F', 'I'):  # which may have 32 bits
                # Pillow turns the size of a TIFF, and of no other.
                tags = getattr(image, 'tag_v2', {})
                size = tags.get(ExifTags.Base.ImageWidth), tags.get(ExifTags.Base.ImageLength)
                return (size if all(size) else image.size,
                        image.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception as error:  # a kind of image that OpenCV alone may know
        reason = getattr(error, 'strerror', None)
    decoded = cv2.imread(path, cv2.IMREAD_UNCHANGED | cv2.IMREAD_IGNORE_ORIENTATION)
    if decoded is None:
        raise OSError(reason or 'it is cut short or not an image')
    if decoded.itemsize > 2:
        raise OSError('it has 32 bits for a color, and 8 or 16 can be read')
    return decoded.shape[1::-1], 1
