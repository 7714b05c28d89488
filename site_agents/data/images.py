"""`images`: a folder with a sub-folder of image files for each class.

Images become channels from 0 to 1 of one declared size. Files lie directly in their class's folder;
names that begin with a dot are skipped, anything else that is no image is an error.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from fedfactory.contracts.errors import DataError, UsageError, ValueRangeError
from fedfactory.tasks.columns import Classes
from fedfactory.tasks.examples import DataSchema
from site_agents.data.files import Stamp, open_file, stamp_of_file
from site_agents.data.labels import LabelMap, shown
from site_agents.data.options import absolute_path, read_options
from site_agents.data.pieces import Piece, whole_piece
from site_agents.data.profile import ColumnProfile, Profile
from site_agents.data.source import Source
from site_agents.data.versions import Version

PIECE_IMAGES: Final = 256
MAX_SIDE: Final = 4096
MAX_PIXELS: Final = 1 << 26  # of one file: a small one can claim to be huge
FORMATS: Final = ("PNG", "JPEG", "TIFF", "BMP", "WEBP", "GIF", "PPM")
MODES: Final = {1: "L", 3: "RGB"}


@dataclass(frozen=True, slots=True, kw_only=True)
class ImagesOptions:
    """Images become `channels` (1 grey, 3 colour) of `size` (height, width), resized if need be.

    `labels` maps a folder's name to the task's class; `unit` is a pattern that a file's name begins
    with, whose first group names the image's unit, as in ([^_]+)_ for patient_number.png.
    """

    path: str
    size: tuple[int, ...]
    channels: int = 1
    labels: Mapping[str, str | int] = field(default_factory=dict)
    unit: str | None = None


class Images(Source):
    """One folder."""

    def read_options(self, options: Mapping[str, Any]) -> None:
        """See Source."""
        self._options = found = read_options(ImagesOptions, self.name, options)
        if len(found.size) != 2 or not all(1 <= side <= MAX_SIDE for side in found.size):
            raise ValueRangeError(
                f"data.{self.name}.size",
                list(found.size),
                f"[height, width], each from 1 to {MAX_SIDE}",
            )
        if found.channels not in MODES:
            raise ValueRangeError(f"data.{self.name}.channels", found.channels, "1 or 3")
        self._unit = _pattern(self.name, found.unit)
        self._path = absolute_path(self.name, found.path)

    @property
    def where(self) -> str:
        """See Source."""
        return str(self._path)

    def version(self) -> Version:
        """See Source."""
        digest = hashlib.sha256()
        size = files = 0
        for folder, path in self._files():
            with open_file(path) as file:
                content = hashlib.file_digest(file, "sha256").hexdigest()
                size += file.tell()
            digest.update(f"{folder}\0{path.name}\0{content}\n".encode(errors="surrogateescape"))
            files += 1
        return Version(fingerprint=f"sha256:{digest.hexdigest()}", bytes=size, files=files)

    def stamp(self) -> Stamp:
        """See Source."""
        return tuple(entry for _, path in self._files() for entry in stamp_of_file(path))

    def pieces(self, schema: DataSchema) -> Iterator[Piece]:
        """See Source."""
        if not isinstance(schema.label, Classes):
            raise DataError(f"{self._path}: holds classes, and the task predicts a number")
        shape = (self._options.channels, *self._options.size)
        if shape != schema.features and (int(np.prod(shape)),) != schema.features:
            raise DataError(
                f"{self._path}: images of (channels, height, width) {shape}, expected"
                f" {schema.features}: see size and channels of data '{self.name}'"
            )
        classes = LabelMap(schema.label, self._options.labels, self.where)
        for folder in _class_folders(self._path):
            if classes.index_of(folder.name) < 0:
                raise DataError(
                    f"{folder}: is the folder of no class; expected {shown(schema.label.names)};"
                    f" map its name under labels of data '{self.name}'"
                )
        files = self._files()
        while some := list(islice(files, PIECE_IMAGES)):
            x = np.stack([self._read(path).reshape(schema.features) for _, path in some])
            y = np.array([classes.index_of(folder) for folder, _ in some], np.int64)
            unit = [self._unit_of(path) for _, path in some] if self._unit else None
            # A new file may come between others, whose numbers then change.
            identity = [f"{folder}/{path.name}" for folder, path in some]
            yield whole_piece(x, y, unit, identity)

    def profile(self) -> Profile:
        """Each class's folder as a column: how many files it has."""
        counts: dict[str, int] = {folder.name: 0 for folder in _class_folders(self._path)}
        for folder, _ in self._files():
            counts[folder] += 1
        return Profile(
            records=sum(counts.values()),
            columns=tuple(
                ColumnProfile(name=name, form=f"folder of {count} files", missing=None)
                for name, count in counts.items()
            ),
        )

    def _files(self) -> Iterator[tuple[str, Path]]:
        """Yield the name of the class's folder and the file, in the order of their names."""
        for folder in _class_folders(self._path):
            for path in _listed(folder):
                if path.is_dir():
                    raise DataError(f"{path}: is a folder in a class's folder, expected images")
                yield folder.name, path

    def _unit_of(self, path: Path) -> str:
        assert self._unit is not None
        found = self._unit.match(path.name)
        if not found:
            raise DataError(
                f"{path}: its name does not begin as unit of data '{self.name}' says:"
                f" {self._unit.pattern}"
            )
        return found.group(1)

    def _read(self, path: Path) -> NDArray[np.float32]:
        """Return (channels, height, width) from 0 to 1."""
        from PIL import Image, UnidentifiedImageError

        height, width = self._options.size
        try:
            with open_file(path) as file, Image.open(file, formats=FORMATS) as image:
                if image.width * image.height > MAX_PIXELS:
                    raise DataError(
                        f"{path}: is larger than {MAX_PIXELS} pixels; make it smaller first"
                    )
                pixels = image.convert(MODES[self._options.channels])
                if pixels.size != (width, height):
                    pixels = pixels.resize((width, height), Image.Resampling.BILINEAR)
        except (UnidentifiedImageError, Image.DecompressionBombError, SyntaxError) as error:
            raise _unreadable(path) from error
        except (OSError, ValueError, EOFError) as error:
            raise _unreadable(path) from error
        array = np.asarray(pixels).astype(np.float32) / np.float32(255)
        return array.reshape(height, width, -1).transpose(2, 0, 1)


def _pattern(name: str, text: str | None) -> re.Pattern[str] | None:
    if text is None:
        return None
    try:
        found = re.compile(text)
    except re.error as error:
        raise UsageError(f"data.{name}.unit: no regular expression: {error}") from error
    if found.groups < 1:
        raise ValueRangeError(f"data.{name}.unit", text, "a pattern with a group, as in ([^_]+)_")
    return found


def _class_folders(root: Path) -> list[Path]:
    folders = []
    for path in _listed(root):
        if not path.is_dir():
            raise DataError(f"{path}: expected a folder for each class here, and nothing else")
        folders.append(path)
    if not folders:
        raise DataError(f"{root}: is empty, expected a folder for each class")
    return folders


def _listed(folder: Path) -> list[Path]:
    try:
        return sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    except FileNotFoundError as error:
        raise DataError(f"{folder}: there is no such folder") from error
    except OSError as error:
        raise DataError(f"{folder}: cannot be read as a folder ({error.strerror})") from error


def _unreadable(path: Path) -> DataError:
    return DataError(f"{path}: is no image that can be read whole ({', '.join(FORMATS)})")
