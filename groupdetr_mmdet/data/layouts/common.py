"""Shared by the readers of all layouts: images, boxes, faults."""
import math
import os
import re
import unicodedata
from collections import Counter, defaultdict
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Dict, Iterable, Iterator, List, NamedTuple, Optional, Sequence, Tuple

from mmdet.apis.det_inferencer import IMG_EXTENSIONS
from rich.progress import track

from ...errors import ConfigError
from ..annotations import LARGEST_BOX
from ..images import image_size

SPLITS = dict(train='train', training='train', val='val', valid='val', validation='val',
              eval='val', evaluation='val', minival='val', dev='val', test='test', testing='test')
HIDDEN = '.', '__', '@eaDir', '#recycle', '$RECYCLE.BIN', 'lost+found'  # made by systems
NOT_PHOTOS = re.compile('annot|label|mask|segment|thumb|vis', re.I)  # folders without photos


class LabelError(ConfigError):
    """A wrong label; errors of the same ``kind`` are counted together."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind


@dataclass(frozen=True)
class LabeledBox:
    """An object of an image."""
    name: str  # of the class
    xyxy: Tuple[float, float, float, float]  # in pixels, or relative to the image's size
    place: Any = field(default='', compare=False)  # file and line, for messages
    iscrowd: bool = False  # as in COCO


class Labels(NamedTuple):
    """The labels of an image, before they are checked."""
    path: Optional[Path]  # of the image, None if it is missing
    place: Any  # file of the labels, for messages
    boxes: Iterable[LabeledBox]  # raises a LabelError at a wrong label
    size: Sequence[Any] = ()  # width and height in pixels, if the labels have them


@dataclass
class LabeledImage:
    """An image and its objects."""
    path: Path
    width: int  # in pixels, as it is loaded
    height: int
    boxes: List[LabeledBox]


@dataclass
class Dataset:
    """The splits of a data set."""
    layout: str  # name of the layout
    classes: List[str]  # names, in the order of their labels
    splits: Dict[str, List[LabeledImage]]  # 'train', and 'val' and 'test' if they exist
    notes: List[str] = field(default_factory=list)  # labels left out or changed

    @property
    def root(self) -> Path:
        """The folder of all images."""
        return Path(os.path.commonpath(
            [image.path.parent for images in self.splits.values() for image in images]))


class Source:
    """Files of a data set, and what its reader has noted.

    Args:
        path (Path): The folder, or the label file to read.
        root (Path, optional): Folder of the images of a label file. Defaults to the folder of the
            file, or to its parent if it has no images.
    """

    def __init__(self, path: Path, root: Optional[Path] = None) -> None:
        if not path.exists():
            raise ConfigError(f'DATA {path} does not exist: name a folder of images and labels.')
        path = Path(os.path.abspath(path))
        self.only = path if path.is_file() else None
        self.root = Path(os.path.abspath(root or (path.parent if self.only else path)))
        if self.only and not root and not any(map(is_image, visible_files(self.root))):
            self.root = self.root.parent
        self.files = sorted(visible_files(self.root))
        self.images = list(filter(is_image, self.files))
        self.by_stem = defaultdict(list)
        for file in self.images:
            self.by_stem[comparable(file.stem)].append(file)
        self.noted: Dict[str, List[str]] = defaultdict(list)
        self.faults: Dict[str, List[LabelError]] = defaultdict(list)

    def notes(self) -> List[str]:
        """Return a line for each kind of note."""
        return [f'{what}: {len(places)}, first {places[0]}' for what, places in self.noted.items()]

    def note(self, what: str, where: Any) -> None:
        """Count a label or file that is left out or changed."""
        self.noted[what].append(str(where).encode(errors='replace').decode())

    def add_fault(self, fault: LabelError) -> None:
        """Count a wrong label."""
        self.faults[fault.kind].append(fault)

    def check_faults(self) -> None:
        """Raise a ConfigError with the first fault of every kind, if there are faults."""
        shown = [str(first) + f' (and {len(more)} more like this)' * bool(more)
                 for first, *more in self.faults.values()]
        if shown:
            raise ConfigError(f'{"; ".join(shown)}: correct these labels.')

    def label_files(self, *patterns: str) -> List[Path]:
        """Return the files whose names match a pattern."""
        files = [self.only] if self.only else self.files
        return [file for file in files if any(map(Path(file.name.lower()).match, patterns))]

    def split_of(self, path: Path) -> Optional[str]:
        """Return 'train', 'val' or 'test' if the name of a file or its folders has it."""
        inside = self.root in (path, *path.parents)
        parts = path.relative_to(self.root).parts if inside else path.parts[-1:]
        words = (word for part in reversed(parts) for word in re.findall('[a-z]+', part.lower()))
        return next((SPLITS[word] for word in words if word in SPLITS), None)

    def find_images(self, names: Sequence[Sequence[str]], folder: Path,
                    split: Optional[str]) -> List[Optional[Path]]:
        """Find the file of each image, None for a missing image.

        A name may have another suffix, or the folders of another machine. Masks and images of
        other splits may have the same names: a folder counts only if most of its images of these
        names are found as the best match.

        Args:
            names (Sequence[Sequence[str]]): Possible names of each image, the most probable first.
            folder (Path): Folder of the labels.
            split (str, optional): Split of the labels.
        """
        found, paths = [self.find_image(choice, folder, split) for choice in names], []
        meant = Counter(path.parent for path in {best[0] for best, _, _ in found if best})
        there = Counter(path.parent for path in {path for _, alike, _ in found for path in alike})
        for (name, *_), (best, _, exact) in zip(names, found):
            path = next(iter(best), None)
            if not exact and path and 2 * meant[path.parent] <= there[path.parent]:
                path = None
            elif len(best) > 1:
                self.add_fault(LabelError(
                    'image', f'{folder} has labels for {name}, which is {path} or {best[1]}'))
            paths.append(path)
        return paths

    def find_image(self, names: Sequence[str], folder: Path, split: Optional[str]
                   ) -> Tuple[List[Path], List[Path], bool]:
        """Return the best matches, all images of the name, and whether a name is an exact path."""
        wanted = [Path(name.replace('\\', '/')) for name in names]
        alike = next(filter(None, (self.by_stem.get(comparable(name)) for x in wanted
                                    for name in (x.stem, x.name))), [])
        for place in (base / x for x in wanted for base in (folder, self.root)):
            if os.path.isfile(place):
                return [place], alike, True
        wanted = wanted[0]
        near = {*wanted.parts, *folder.parts}
        fits = {x: (comparable(x.name) == comparable(wanted.name), x.name == wanted.name,
                    not any(map(NOT_PHOTOS.search, x.relative_to(self.root).parts[:-1])),
                    len(near & {*x.parent.parts}), self.split_of(x.parent) == split)
                for x in alike}
        return [x for x in alike if fits[x] == max(fits.values())], alike, False

    def read(self, labels: Sequence[Labels], missing: str = '',
             relative: bool = False) -> List[LabeledImage]:
        """Read and check the labels of images.

        Args:
            labels (Sequence[Labels]): The labels of each image.
            missing (str): Kind of the note for a missing image.
            relative (bool): Whether boxes are relative to the image's size.
        """
        images = []
        for path, place, boxes, listed in track(labels, 'Reading labels', transient=True,
                                                disable=len(labels) < 1000):
            try:
                if path is None:
                    self.note(missing, place)
                elif size := self.size_of(path, place, listed):
                    kept = list(filter(None, (self.clip(box, size, relative) for box in boxes)))
                    images.append(LabeledImage(path, *size, list(dict.fromkeys(kept))))
                    if len(images[-1].boxes) < len(kept):
                        self.note('images with the same box twice, which counts once', path)
            except LabelError as fault:
                self.add_fault(fault)
        return images

    def size_of(self, path: Path, place: Any, listed: Sequence) -> Optional[Tuple[int, int]]:
        """Return width and height of an image, None if it cannot be read.

        Raises:
            LabelError: If ``listed``, the size in the labels, differs.
        """
        listed = tuple(to_number(x or 0, place) for x in listed)
        listed = listed if all(listed) and listed else None
        try:
            size = image_size(str(path), listed=listed)
        except OSError as error:
            self.note('unreadable images, left out', f'{path} ({error.strerror or error})')
            return None
        if listed not in (None, size):
            raise LabelError('size', (
                f'{place} has the size {listed[0]:g} x {listed[1]:g} for {path}, which is '
                f'{size[0]} x {size[1]} when it is read (EXIF data may turn it)'))
        return size

    def clip(self, box: LabeledBox, size: Tuple[int, int],
             relative: bool) -> Optional[LabeledBox]:
        """Clip a box to its image, in pixels; None if nothing is left.

        Raises:
            LabelError: If the box is not finite, too large, or has swapped corners.
        """
        xyxy = tuple(x * n for x, n in zip(box.xyxy, size * 2)) if relative else box.xyxy
        extent = xyxy[2] - xyxy[0], xyxy[3] - xyxy[1]
        fault = next((what for what, is_so in (
            ('that is not finite', not all(map(math.isfinite, xyxy))),
            (f'more than {LARGEST_BOX} times as wide or high as its image',
             any(x > LARGEST_BOX * n for x, n in zip(extent, size))),
            ('with swapped corners', min(extent) < 0)) if is_so), None)
        if fault:
            raise LabelError(fault, f'{box.place} has a box {fault} (left, top, right, bottom: '
                             f'{", ".join(f"{x:g}" for x in xyxy)})')
        left, top, right, bottom = clipped = tuple(
            min(max(x, 0.), float(limit)) for x, limit in zip(xyxy, size * 2))
        if right <= left or bottom <= top:
            self.note('boxes without area inside their image, left out', box.place)
            return None
        if max(abs(a - b) for a, b in zip(clipped, xyxy)) > 1:
            self.note('boxes over the edge of their image, clipped', box.place)
        if box.iscrowd:
            self.note('objects that are marked difficult, iscrowd or ignore, neither trained '
                      'nor scored', box.place)
        return replace(box, xyxy=clipped)


def visible_files(root: Path) -> Iterator[Path]:
    """Yield the files below a folder, following links, each folder once."""
    def refuse(error: OSError) -> None:
        raise ConfigError(f'{error.filename} cannot be read ({error.strerror}): correct its '
                          'permissions, or take it out of DATA.')

    seen = set()
    for folder, folders, names in os.walk(root, onerror=refuse, followlinks=True):
        real = os.path.realpath(folder)
        folders[:] = sorted(x for x in folders if not x.startswith(HIDDEN) and real not in seen)
        if real not in seen:
            paths = (Path(folder, x) for x in names if not x.startswith(HIDDEN))
            yield from filter(Path.is_file, paths)
        seen.add(real)


def comparable(name: str) -> str:
    """Normalize accents and capitals of a name, which differ between systems."""
    return unicodedata.normalize('NFC', name).lower()


def is_image(path: Path) -> bool:
    """Return whether the name of a file is an image's."""
    return path.suffix.lower() in IMG_EXTENSIONS


def to_number(text: Optional[str], where: Any) -> float:
    """Read a number of a label file, or raise a LabelError."""
    try:
        return float(text)
    except (TypeError, ValueError, OverflowError):
        raise LabelError('number', f'{where} has {text!r:.60} instead of a number') from None


def has_pattern(file: Path, pattern: bytes, size: int = 1 << 20) -> bool:
    """Return whether the first bytes of a file, -1 for all, match without the zeros of UTF-16."""
    with file.open('rb') as start:
        return bool(re.search(pattern, start.read(size).replace(b'\0', b''), re.M))


def read_text(file: Path) -> str:
    """Read a text file in UTF-8."""
    try:
        return file.read_text(encoding='utf-8-sig')
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f'{file} cannot be read as UTF-8 ({error}): correct it.') from error


def read_lines(file: Path) -> List[str]:
    """Return the stripped lines of a text without blank lines."""
    return list(filter(None, map(str.strip, read_text(file).splitlines())))


def has_objects(images: Sequence[LabeledImage]) -> bool:
    """Return whether there is an object other than crowds."""
    return any(not box.iscrowd for image in images for box in image.boxes)


def to_coco(images: Sequence[LabeledImage], classes: Sequence[str], root: Path) -> dict:
    """Return images in COCO's format: names relative to ``root``, category ids from 1."""
    ids = {name: i for i, name in enumerate(classes, 1)}
    entries = [dict(id=i, file_name=image.path.relative_to(root).as_posix(), width=image.width,
                    height=image.height) for i, image in enumerate(images, 1)]
    boxes = [(i, box, *box.xyxy) for i, image in enumerate(images, 1) for box in image.boxes]
    return dict(
        images=entries,
        annotations=[dict(
            id=i, image_id=image_id, category_id=ids[box.name],
            bbox=[left, top, right - left, bottom - top], area=(right - left) * (bottom - top),
            iscrowd=int(box.iscrowd))
            for i, (image_id, box, left, top, right, bottom) in enumerate(boxes, 1)],
        categories=[dict(id=i, name=name) for name, i in ids.items()])
