"""`images`: a folder with a sub-folder of image files for each class.

Images become channels from 0 to 1 of one declared size. Files lie directly in their class's folder;
names that begin with a dot are skipped, anything else that is no image does not fit.
"""

from __future__ import annotations

import hashlib
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from io import BufferedReader
from itertools import islice
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from fedfactory.contracts.errors import DataError, UsageError, ValueRangeError
from fedfactory.tasks.columns import Classes
from fedfactory.tasks.examples import DataSchema
from fedfactory.tasks.faults import Fault
from site_agents.data.files import Stamp, open_file, stamp_of_file
from site_agents.data.labels import LabelMap, shown
from site_agents.data.options import absolute_path, read_options
from site_agents.data.pieces import Piece
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

    @property
    def by_unit(self) -> bool:
        """See Source."""
        return self._unit is not None

    def version(self) -> Version:
        """See Source; of what cannot be read it is that it cannot."""
        digest = hashlib.sha256()
        size = files = 0
        for folder, path in self._files():
            content = "unreadable"
            with suppress(DataError, OSError), _open_regular(path) as file:
                content = hashlib.file_digest(file, "sha256").hexdigest()
                size += file.tell()
            digest.update(f"{folder}\0{path.name}\0{content}\n".encode(errors="surrogateescape"))
            files += 1
        return Version(fingerprint=f"sha256:{digest.hexdigest()}", bytes=size, files=files)

    def stamp(self) -> Stamp:
        """See Source."""
        found: list[tuple[str, int, int, int]] = []
        for _, path in self._files():
            try:
                found += stamp_of_file(path)
            except DataError:
                found.append((str(path), 0, 0, 0))
        return tuple(found)

    def check_form(self, schema: DataSchema) -> None:
        """See Source: the folder is there, and images are what the task takes; none is opened."""
        self._classes(schema)
        _listed(self._path)

    def pieces(self, schema: DataSchema) -> Iterator[Piece]:
        """See Source."""
        classes = self._classes(schema)
        if faults := self._other_folders(schema, classes):
            yield replace(self._piece([], schema, classes), faults=faults)
        files = self._files()
        while some := list(islice(files, PIECE_IMAGES)):
            yield self._piece(some, schema, classes)

    def _other_folders(self, schema: DataSchema, classes: LabelMap) -> tuple[Fault, ...]:
        """Count the folders of no class, also empty ones."""
        assert isinstance(schema.label, Classes)
        folders = [path for path in _listed(self._path) if _is_folder(path)]
        others = [path for path in folders if classes.index_of(path.name) < 0]
        if not others:
            return ()
        after = (
            f" folders are of no class; expected {shown(schema.label.names)};"
            f" map its name under labels of data '{self.name}'"
        )
        example = f"; {others[0]}"
        return (
            Fault(before="", after=after, count=len(others), total=len(folders), example=example),
        )

    def _classes(self, schema: DataSchema) -> LabelMap:
        """Return the map of folders to classes, once a schema is one of images of this form."""
        if not isinstance(schema.label, Classes):
            raise DataError(f"{self._path}: holds classes, and the task predicts a number")
        shape = (self._options.channels, *self._options.size)
        if shape != schema.features and (int(np.prod(shape)),) != schema.features:
            raise DataError(
                f"{self._path}: images of (channels, height, width) {shape}, expected"
                f" {schema.features}: see size and channels of data '{self.name}'"
            )
        return LabelMap(schema.label, self._options.labels, self.where)

    def _piece(
        self, files: Sequence[tuple[str, Path]], schema: DataSchema, classes: LabelMap
    ) -> Piece:
        x = np.zeros((len(files), *schema.features), np.float32)
        y = np.array([classes.index_of(folder) for folder, _ in files], np.int64)
        keep = np.zeros(len(files), np.bool_)
        wrong: dict[str, list[Path]] = {}
        for i, (folder, path) in enumerate(files):
            found = self._image(folder, path, is_class=y[i] >= 0)
            if isinstance(found, str):
                wrong.setdefault(found, []).append(path)
            else:
                x[i], keep[i] = found.reshape(schema.features), True
        return Piece(
            x=x,
            y=y,
            unit=[self._unit_of(path) or "" for _, path in files] if self._unit else None,
            # A new file may come between others, whose numbers then change.
            identity=[f"{folder}/{path.name}" for folder, path in files],
            order=None,
            keep=keep,
            faults=tuple(
                Fault(
                    before="",
                    after=what,
                    count=len(paths),
                    total=len(files),
                    example=f"; {paths[0]}{self._hint(what)}",
                )
                for what, paths in wrong.items()
            ),
        )

    def _hint(self, what: str) -> str:
        if self._unit is None or "unit" not in what:
            return ""
        return f": its name does not begin as unit of data '{self.name}' says"

    def _image(self, folder: str, path: Path, *, is_class: bool) -> NDArray[np.float32] | str:
        """Return a record's image, or what is wrong with it."""
        if not folder:
            return " files lie beside the folders of the classes, or in one that cannot be read"
        if not is_class:
            return " files are in the folder of no class"
        if self._unit and self._unit_of(path) is None:
            return f" files have a name that tells no unit ({self._unit.pattern})"
        return self._read(path)

    def profile(self) -> Profile:
        """Each class's folder as a column: how many files it has."""
        counts: dict[str, int] = {}
        for path in _listed(self._path):
            if _is_folder(path):
                counts[path.name] = 0
        for folder, _ in self._files():
            if folder:
                counts[folder] += 1
        return Profile(
            records=sum(counts.values()),
            columns=tuple(
                ColumnProfile(name=name, form=f"folder of {count} files", missing=None)
                for name, count in counts.items()
            ),
        )

    def _files(self) -> Iterator[tuple[str, Path]]:
        """Yield the name of the class's folder and the entry in it, in the order of their names.

        What lies beside the folders comes with the name "".
        """
        for folder in _listed(self._path):
            if not _is_folder(folder):
                yield "", folder
                continue
            try:
                files = _listed(folder)
            except DataError:
                yield "", folder
                continue
            yield from ((folder.name, path) for path in files)

    def _unit_of(self, path: Path) -> str | None:
        """Return the name of a file's unit; None if its own does not begin as declared."""
        found = self._unit.match(path.name) if self._unit else None
        return found.group(1) if found else None

    def _read(self, path: Path) -> NDArray[np.float32] | str:
        """Return (channels, height, width) from 0 to 1, or what is wrong with a file."""
        try:
            if path.is_dir():
                return " files are folders in a class's folder, expected images"
            with _open_regular(path) as file:
                return self._pixels(file)
        except Exception:  # noqa: BLE001  whatever a damaged file does to its decoder
            return f" files are no images that can be read whole ({', '.join(FORMATS)})"

    def _pixels(self, file: BufferedReader) -> NDArray[np.float32] | str:
        from PIL import Image

        height, width = self._options.size
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of what is odd in a file, some of its text
            with Image.open(file, formats=FORMATS) as image:
                if image.width * image.height > MAX_PIXELS:
                    return f" files are larger than {MAX_PIXELS} pixels; make them smaller first"
                pixels = image.convert(MODES[self._options.channels])
                if pixels.size != (width, height):
                    pixels = pixels.resize((width, height), Image.Resampling.BILINEAR)
        array = np.asarray(pixels).astype(np.float32) / np.float32(255)
        return array.reshape(height, width, -1).transpose(2, 0, 1)


def _open_regular(path: Path) -> BufferedReader:
    """Open a file; a pipe in its place would hold up the worker for ever."""
    if not path.is_file():
        raise DataError(f"{path}: is no file")
    return open_file(path)


def _is_folder(path: Path) -> bool:
    """Whether a path leads to a folder; a link may lead to where nobody may look."""
    try:
        return path.is_dir()
    except OSError:
        return False


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


def _listed(folder: Path) -> list[Path]:
    try:
        return sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    except FileNotFoundError as error:
        raise DataError(f"{folder}: there is no such folder") from error
    except OSError as error:
        raise DataError(f"{folder}: cannot be read as a folder ({error.strerror})") from error
