"""What the readers of all layouts share: images, boxes, faults."""
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
from ..annotations import LARGEST
from ..images import image_size

SPLITS = dict(train='train', training='train', val='val', valid='val', validation='val',
              test='test', testing='test')
HIDDEN = '.', '__', '@eaDir', '#recycle', '$RECYCLE.BIN', 'lost+found'  # of systems and tools
DRAWN = re.compile('annot|label|mask|segment|thumb|vis', re.I)  # folders of no photos


class LabelError(ConfigError):
    """A label that cannot be right; errors of the same kind are counted together."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind


@dataclass(frozen=True)
class LabeledBox:
    """An object of an image."""
    name: str  # of its class
    xyxy: Tuple[float, float, float, float]  # in pixels, of an image that was read inside it
    place: Any = field(default='', compare=False)  # of the label, for messages
    iscrowd: bool = False  # in COCO's sense


class Labels(NamedTuple):
    """The labels of an image, as a reader finds them."""
    path: Optional[Path]  # of the image, None where it is not there
    place: Any  # of the labels, for messages
    boxes: Iterable[LabeledBox]  # a LabelError where one cannot be right
    size: Sequence[Any] = ()  # width and height in pixels, where the labels have them


@dataclass
class LabeledImage:
    """An image and its objects."""
    path: Path
    width: int  # in pixels, as it is loaded
    height: int
    boxes: List[LabeledBox]


@dataclass
class Dataset:
    """The splits of a data set, whatever its layout was."""
    layout: str  # what the layout is called
    classes: List[str]  # their names, in the order of their labels
    splits: Dict[str, List[LabeledImage]]  # 'train' and, where there are any, 'val', 'test'
    notes: List[str] = field(default_factory=list)  # what was left out or mended

    @property
    def root(self) -> Path:
        """The folder of all images."""
        return Path(os.path.commonpath(
            [image.path.parent for images in self.splits.values() for image in images]))


class Source:
    """A data set that is being read.

    Args:
        path (Path): Its folder, or the label file that counts.
        root (Path, optional): Folder of the images of a label file. Defaults to the folder of the
            file, or to the folder around that if it has no images.
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
        """One line for each kind of note."""
        return [f'{what}: {len(places)}, first {places[0]}' for what, places in self.noted.items()]

    def note(self, what: str, where: Any) -> None:
        """Count what is left out, for the notes."""
        self.noted[what].append(str(where).encode(errors='replace').decode())

    def add_fault(self, fault: LabelError) -> None:
        """Count a fault, for the error that names the first one of each kind."""
        self.faults[fault.kind].append(fault)

    def check_faults(self) -> None:
        """Raise a ConfigError of the first fault of every kind."""
        shown = [str(first) + f' (and {len(more)} more like this)' * bool(more)
                 for first, *more in self.faults.values()]
        if shown:
            raise ConfigError(f'{"; ".join(shown)}: correct these labels.')

    def label_files(self, *patterns: str) -> List[Path]:
        """Files that may hold labels, by patterns of their names."""
        files = [self.only] if self.only else self.files
        return [file for file in files if any(map(Path(file.name.lower()).match, patterns))]

    def split_of(self, path: Path) -> Optional[str]:
        """Read 'train', 'val' or 'test' from the name of a file or of a folder around it."""
        inside = self.root in (path, *path.parents)
        parts = path.relative_to(self.root).parts if inside else path.parts[-1:]
        words = (word for part in reversed(parts) for word in re.findall('[a-z]+', part.lower()))
        return next((SPLITS[word] for word in words if word in SPLITS), None)

    def find_images(self, names: Sequence[Sequence[str]], folder: Path,
                    split: Optional[str]) -> List[Optional[Path]]:
        """Find images by their ``names``, the best one first; None for a missing image.

        An image may have another suffix, or be named as on another machine. Masks and other
        splits may have the same names: a folder counts only if most of its images of these names
        are meant. ``folder`` and ``split`` belong to the labels.
        """
        found = [self.find_image(choice, folder, split) for choice in names]
        meant = Counter(path.parent for path in {path for path, _, _ in found if path})
        there = Counter(path.parent for path in {path for _, alike, _ in found for path in alike})
        return [path if exact or path and 2 * meant[path.parent] > there[path.parent] else None
                for path, _, exact in found]

    def find_image(self, names: Sequence[str], folder: Path, split: Optional[str]
                   ) -> Tuple[Optional[Path], List[Path], bool]:
        """Find an image, all images of its name, and whether a name is its exact place."""
        wanted = [Path(name.replace('\\', '/')) for name in names]
        alike = next(filter(None, (self.by_stem.get(comparable(x.stem)) for x in wanted)), [])
        for place in (base / x for x in wanted for base in (folder, self.root)):
            if os.path.isfile(place):
                return place, alike, True
        wanted = wanted[0]
        near = {*wanted.parts, *folder.parts}
        fits = {x: (comparable(x.name) == comparable(wanted.name), x.name == wanted.name,
                    not any(map(DRAWN.search, x.relative_to(self.root).parts[:-1])),
                    len(near & {*x.parent.parts}), self.split_of(x.parent) == split)
                for x in alike}
        best = [x for x in alike if fits[x] == max(fits.values())]
        if len(best) > 1:
            self.add_fault(LabelError(
                'image', f'{folder} has labels for {wanted}, which is {best[0]} or {best[1]}'))
        return best[0] if best else None, alike, False

    def read(self, labels: Sequence[Labels], missing: str = '',
             relative: bool = False) -> List[LabeledImage]:
        """Read the labels of images; ``missing`` notes the labels of missing images.

        ``relative`` boxes are in parts of the image.
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
        """Width and height of an image, which ``listed`` must be; None if it cannot be read."""
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
        """Check a box, and clip it to its image, in pixels; None if nothing of it is left."""
        xyxy = tuple(x * n for x, n in zip(box.xyxy, size * 2)) if relative else box.xyxy
        extent = xyxy[2] - xyxy[0], xyxy[3] - xyxy[1]
        fault = next((what for what, is_so in (
            ('that is not finite', not all(map(math.isfinite, xyxy))),
            (f'more than {LARGEST} times as wide or high as its image',
             any(x > LARGEST * n for x, n in zip(extent, size))),
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
    """Yield the files below a folder, also through links, each folder once."""
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
    """A name without the differences between systems: composed accents, capitals."""
    return unicodedata.normalize('NFC', name).lower()


def is_image(path: Path) -> bool:
    """Whether a file is an image by its name."""
    return path.suffix.lower() in IMG_EXTENSIONS


def to_number(text: Optional[str], where: Any) -> float:
    """Read a number of a label file."""
    try:
        return float(text)
    except (TypeError, ValueError, OverflowError):
        raise LabelError('number', f'{where} has {text!r:.60} in the place of a number') from None


def has_pattern(file: Path, pattern: bytes, size: int = 1 << 20) -> bool:
    """Whether the first bytes of a file have a pattern; the zeros of UTF-16 do not count."""
    with file.open('rb') as start:
        return bool(re.search(pattern, start.read(size).replace(b'\0', b''), re.M))


def read_text(file: Path) -> str:
    """Read a text file in UTF-8."""
    try:
        return file.read_text(encoding='utf-8-sig')
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f'{file} cannot be read as UTF-8 ({error}): correct it.') from error


def read_lines(file: Path) -> List[str]:
    """The lines of a text, without blank lines and the blanks around them."""
    return list(filter(None, map(str.strip, read_text(file).splitlines())))


def has_objects(images: Sequence[LabeledImage]) -> bool:
    """Whether there is an object to train on or to score; a crowd is none."""
    return any(not box.iscrowd for image in images for box in image.boxes)


def to_coco(images: Sequence[LabeledImage], classes: Sequence[str], root: Path) -> dict:
    """Write images in COCO's format: names from ``root``, classes numbered from 1."""
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
