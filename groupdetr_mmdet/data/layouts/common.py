"""What the readers of all layouts share: images, boxes, faults."""
import math
import os
import re
import unicodedata
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from typing import (Any, Callable, Dict, Iterable, Iterator, List, NamedTuple, NoReturn, Optional,
                    Sequence, Tuple)

from mmdet.apis.det_inferencer import IMG_EXTENSIONS
from rich.progress import track

from ...errors import ConfigError
from ...io import irregular
from ..annotations import LARGEST
from ..images import image_size

SPLITS = dict(train='train', training='train', val='val', valid='val', validation='val',
              test='test', testing='test')
# How names begin that a system or tool wrote for itself, as __MACOSX.
HIDDEN = '.', '__', '@eaDir', '#recycle', '$RECYCLE.BIN', 'lost+found'
DRAWN = re.compile('annot|label|mask|segment|thumb|vis', re.I)  # folders of no photos
SLOW = 1000  # images that take some seconds to read


class LabelError(ConfigError):
    """A label that cannot be right; those of one kind are counted together."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind


class LabeledBox(NamedTuple):
    """An object."""
    name: str  # of its class
    xyxy: Tuple[float, float, float, float]  # in pixels; of an image that was read, inside it
    iscrowd: bool = False  # in COCO's sense


@dataclass
class LabeledImage:
    """An image and its objects; ``width`` and ``height`` in pixels, as it is loaded."""
    path: Path
    width: int
    height: int
    boxes: List[LabeledBox]


class Labels(NamedTuple):
    """The labels of an image as they stand in a file."""
    where: Any  # for messages
    boxes: Iterable[Tuple[LabeledBox, Any]]  # each with the place it stands in
    size: Sequence = (0, 0)  # width and height as numbers or texts; empty or 0 is unknown
    relative: bool = False  # whether boxes are in parts of the image, and not in pixels


@dataclass
class Dataset:
    """A data set in whatever layout."""
    layout: str  # what the layout is called
    classes: List[str]  # their names, in the order of their labels
    splits: Dict[str, List[LabeledImage]]  # 'train' and, where there are any, 'val', 'test'
    notes: List[str] = field(default_factory=list)  # what was left out or mended

    @property
    def root(self) -> Path:
        """The folder that all images lie in."""
        return Path(os.path.commonpath(
            [image.path.parent for images in self.splits.values() for image in images]))


class Source:
    """A data set that is being read.

    Args:
        path (Path): Its folder, or the label file that counts, whose images are in the folder
            around it or, if there are none, in the one around that.
        root (Path, optional): Folder of the images of a label file, if it is known.
    """

    def __init__(self, path: Path, root: Optional[Path] = None) -> None:
        if not path.exists():
            raise ConfigError(f'DATA {path} does not exist: name a folder of images and labels.')
        path = Path(os.path.abspath(path))
        self.only = path if path.is_file() else None
        self.root = Path(os.path.abspath(root)) if root else path.parent if self.only else path
        if self.only and not root and not any(map(is_image, visible_files(self.root))):
            self.root = self.root.parent
        self.files = sorted(visible_files(self.root))
        self.images = [file for file in self.files if is_image(file)]
        self.by_stem = defaultdict(list)
        for file in self.images:
            self.by_stem[comparable(file.stem)].append(file)
        self.noted: Dict[str, List[str]] = defaultdict(list)
        self.faults: Dict[str, List[LabelError]] = defaultdict(list)

    @property
    def notes(self) -> List[str]:
        """What was noted, in a line for each kind."""
        return [f'{what}: {len(places)}, first {places[0]}' for what, places in self.noted.items()]

    def note(self, what: str, where: Any) -> None:
        """Note what was left out or mended, and where."""
        self.noted[what].append(str(where).encode(errors='replace').decode())

    def check_faults(self) -> None:
        """Raise a ConfigError of all kinds of faults, the first of each in full."""
        if self.faults:
            raise ConfigError('; '.join(
                f'{faults[0]}' + (f' (and {len(faults) - 1} more like this)' * (len(faults) > 1))
                for faults in self.faults.values()) + ': correct these labels.')

    def label_files(self, *patterns: str) -> List[Path]:
        """Files that may hold labels, by patterns of their names."""
        files = [self.only] if self.only else self.files
        return [file for file in files if any(map(file.match, patterns))]

    def split_of(self, path: Path) -> Optional[str]:
        """Read 'train', 'val' or 'test' from the name of a file or folder, or of one around it."""
        inside = self.root in (path, *path.parents)
        parts = path.relative_to(self.root).parts if inside else path.parts[-1:]
        for part in reversed(parts):
            for word in re.findall('[a-z]+', part.lower()):
                if word in SPLITS:
                    return SPLITS[word]
        return None

    def find_images(self, names: Sequence[Sequence[str]], folder: Path,
                    split: Optional[str]) -> List[Optional[Path]]:
        """Find images that labels in a folder name, None for one that is not there.

        An image may have another suffix, or lie in the folders of another machine. Masks and
        other splits may have the same names: a folder counts only if most of its images of these
        names are meant.

        Args:
            names (Sequence[Sequence[str]]): Of each image, the names to try, the best one first.
            folder (Path): Folder of the labels.
            split (str, optional): Its split, if it is known.
        """
        found = [self.find_image(choice, folder, split) for choice in names]
        meant = Counter(path.parent for path in {path for path, _, _ in found if path})
        there = Counter(path.parent for path in {path for _, alike, _ in found for path in alike})
        return [path if exact or path and 2 * meant[path.parent] > there[path.parent] else None
                for path, _, exact in found]

    def find_image(self, names: Sequence[str], folder: Path, split: Optional[str]
                   ) -> Tuple[Optional[Path], List[Path], bool]:
        """Find an image, all that are called alike, and whether it lies where a name says."""
        wanted = [Path(name.replace('\\', '/')) for name in names]
        alike = next(filter(None, (self.by_stem.get(comparable(x.stem)) for x in wanted)), [])
        for place in (base / x for x in wanted for base in (folder, self.root)):
            if os.path.isfile(place):
                return place, alike, True
        files, wanted = alike, wanted[0]
        near = {*wanted.parts, *folder.parts}
        for fit in (lambda x: comparable(x.name) == comparable(wanted.name),
                    lambda x: x.name == wanted.name, lambda x: len(near & {*x.parent.parts}),
                    lambda x: self.split_of(x.parent) == split,
                    lambda x: not DRAWN.search(x.parent.name)):
            if len(files) > 1:
                files = [x for x in files if fit(x) == max(map(fit, files))]
        if len(files) > 1:
            self.faults['image'].append(LabelError('image', (
                f'{folder} has labels for {wanted}, which is {files[0]} or {files[1]}')))
        return files[0] if files else None, alike, False

    def read(self, items: Sequence[Any], paths: Sequence[Optional[Path]],
             read: Callable[[Any], Labels], missing: str) -> List[LabeledImage]:
        """Read the labels of images; ``missing`` notes the ``items`` without a path."""
        images = []
        for item, path in track(list(zip(items, paths)), 'Reading labels', transient=True,
                                disable=len(items) < SLOW):
            try:
                labels = read(item)
                if path is None:
                    self.note(missing, labels.where)
                elif image := self.labeled_image(path, labels):
                    images.append(image)
            except LabelError as fault:
                self.faults[fault.kind].append(fault)
        return images

    def labeled_image(self, path: Path, labels: Labels) -> Optional[LabeledImage]:
        """Check boxes, and clip them to their image; None for an image that cannot be read."""
        said = tuple(to_number(x or 0, labels.where) for x in labels.size)
        try:
            size = image_size(str(path), said=said if all(said) else None)
        except OSError as error:
            self.note('unreadable images, left out', f'{path} ({error.strerror or error})')
            return None
        if all(said) and said != size:
            raise LabelError('size', (
                f'{labels.where} has the size {said[0]:g} x {said[1]:g} for {path}, which is '
                f'{size[0]} x {size[1]} when it is read (EXIF data may turn it)'))
        kept = []
        for box, place in labels.boxes:
            xyxy = box.xyxy
            if labels.relative:
                xyxy = tuple(x * n for x, n in zip(xyxy, size * 2))
            check_corners(xyxy, size, place)
            left, top, right, bottom = clipped = tuple(
                min(max(x, 0.), float(limit)) for x, limit in zip(xyxy, size * 2))
            if right <= left or bottom <= top:
                self.note('boxes without area inside their image, left out', place)
                continue
            if max(abs(a - b) for a, b in zip(clipped, xyxy)) > 1:
                self.note('boxes over the edge of their image, clipped', place)
            if box.iscrowd:
                self.note('objects that are marked difficult, iscrowd or ignore, neither trained '
                          'nor scored', place)
            kept.append(box._replace(xyxy=clipped))
        boxes = list(dict.fromkeys(kept))
        if len(boxes) < len(kept):
            self.note('images with the same box twice, which counts once', path)
        return LabeledImage(path, *size, boxes)


def visible_files(root: Path) -> Iterator[Path]:
    """Yield the files below a folder, also through links, each folder once."""
    def refuse(error: OSError) -> NoReturn:
        raise ConfigError(f'{error.filename} cannot be read ({error.strerror}): let it be read '
                          'or take it out of DATA.')

    seen = set()
    for folder, folders, names in os.walk(root, onerror=refuse, followlinks=True):
        if os.path.realpath(folder) in seen:
            folders.clear()
            continue
        seen.add(os.path.realpath(folder))
        folders[:] = sorted(x for x in folders if not x.startswith(HIDDEN))
        for path in (Path(folder, name) for name in names if not name.startswith(HIDDEN)):
            if path.is_file():
                yield path
            elif kind := irregular(path):  # and not a link to nothing
                raise ConfigError(f'{path} is {kind} and not a file: take it out of DATA.')


def comparable(name: str) -> str:
    """A name as systems see it that write an accent as a letter, or do not tell a from A."""
    return unicodedata.normalize('NFC', name).lower()


def is_image(path: Path) -> bool:
    """Whether the suffix is that of an image, in capitals or not."""
    return path.suffix.lower() in IMG_EXTENSIONS


def check_corners(xyxy: Sequence[float], size: Tuple[int, int], where: Any) -> None:
    """Refuse a box that is not finite or far larger than its image, or has swapped corners."""
    fault = ('that is not finite' if not all(map(math.isfinite, xyxy)) else
             f'more than {LARGEST} times as wide or high as its image of {size[0]} x {size[1]}'
             if any(b - a > LARGEST * n for a, b, n in zip(xyxy, xyxy[2:], size)) else
             'with swapped corners' if xyxy[0] > xyxy[2] or xyxy[1] > xyxy[3] else '')
    if fault:
        raise LabelError(fault, (
            f'{where} has a box {fault}, {", ".join(f"{x:g}" for x in xyxy)} (left, top, right, '
            'bottom)'))


def to_number(text: Optional[str], where: Any) -> float:
    """Read a number of a label file; NaN is one."""
    try:
        return float(text)
    except (TypeError, ValueError, OverflowError):
        raise LabelError('number', f'{where} has {text!r:.60} in the place of a number') from None


def has_pattern(file: Path, pattern: bytes, size: int = 1 << 20) -> bool:
    """Whether the first bytes of a file have a pattern; the zeros of UTF-16 do not count."""
    with file.open('rb') as start:
        return bool(re.search(pattern, start.read(size).replace(b'\0', b''), re.M))


def read_text(file: Path) -> str:
    """Read a label file, in UTF-8."""
    try:
        return file.read_text(encoding='utf-8-sig')
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f'{file} cannot be read as text ({error}): put the whole file there, in '
                          'UTF-8.') from error


def has_objects(images: Sequence[LabeledImage]) -> bool:
    """Whether there is something to train on or to score, which a crowd is not."""
    return any(not box.iscrowd for image in images for box in image.boxes)


def to_coco(images: Sequence[LabeledImage], classes: Sequence[str], root: Path) -> dict:
    """Write images in COCO's format, with file names from ``root``.

    Classes are numbered from 1 in the order that is given; objects of others are left out.
    """
    ids = {name: i for i, name in enumerate(classes, 1)}
    coco = dict(images=[], annotations=[],
                categories=[dict(id=i, name=name) for name, i in ids.items()])
    for image_id, image in enumerate(images, 1):
        coco['images'].append(dict(id=image_id, file_name=image.path.relative_to(root).as_posix(),
                                   width=image.width, height=image.height))
        for box in image.boxes:
            if box.name in ids:
                left, top, right, bottom = box.xyxy
                width, height = right - left, bottom - top
                coco['annotations'].append(dict(
                    id=len(coco['annotations']) + 1, image_id=image_id, category_id=ids[box.name],
                    bbox=[left, top, width, height], area=width * height,
                    iscrowd=int(box.iscrowd)))
    return coco
