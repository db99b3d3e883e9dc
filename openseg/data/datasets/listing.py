# SPDX-License-Identifier: MIT
"""Which image belongs to which label file, found by looking at folders and lists of names.

What lacks its other half is listed too: a data set refuses it, a check of the data reports it.
"""

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Literal, NamedTuple

from openseg.errors import DataError

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp")
LABEL_SUFFIXES = (".png",)


class Pair(NamedTuple):
    name: str
    image: Path
    label: Path | None  # None in a test split


class Alone(NamedTuple):
    """A file, or a name of a list, without an image or without a label."""

    file: Path
    missing: Literal["image", "label"]
    expected: str


class Listing(NamedTuple):
    """The files of a split. `labels_lead`: an image without a label is left out by design."""

    pairs: list[Pair]
    alone: list[Alone]
    labels_lead: bool = False


def list_files(folder: Path, suffixes: tuple[str, ...], ending: str = "") -> dict[str, Path]:
    """Files by stem, subfolders included (their stem is then `folder/name`).

    ending: what the stems end with, and the keys do not; other files are passed over.
    """
    require_folder(folder)
    files: dict[str, Path] = {}
    for path in sorted(folder.rglob("*")):
        if path.suffix.lower() in suffixes and not path.name.startswith("."):
            stem = path.relative_to(folder).with_suffix("").as_posix()
            if not stem.endswith(ending):
                continue
            stem = stem.removesuffix(ending)
            if stem in files:
                raise DataError(f"{path}: {files[stem].name} has the same stem; keep one of them")
            files[stem] = path
    if not files:
        kinds = ", ".join(f"*{ending}{suffix}" if ending else suffix for suffix in suffixes)
        raise DataError(
            f"{folder}: there is no file to read; expected {kinds} files: "
            "check that the data was unpacked here"
        )
    return files


def require_folder(folder: Path) -> None:
    if not folder.is_dir():
        there = next(parent for parent in folder.parents if parent.is_dir())
        names = sorted(path.name for path in there.iterdir() if path.is_dir())
        raise DataError(
            f"{folder}: there is no such folder; {there} has {', '.join(names[:12]) or 'no folder'}"
            f"{', …' if len(names) > 12 else ''}: check the root and the name of the split"
        )


def require_files(
    files: Iterable[Path],
    advice: str = "check that all archives of the data set were unpacked here",
) -> None:
    """DataError for the first one that is missing: found before the first is read."""
    files = list(files)
    missing = [path for path in files if not path.is_file()]
    if missing:
        raise DataError(
            f"{missing[0]}: there is no such file ({len(missing)} of {len(files)} are missing); "
            f"{advice}"
        )


def match(
    images: Mapping[str, Path],
    labels: Mapping[str, Path],
    image_folder: Path,
    label_folder: Path,
    names: Iterable[str] | None = None,
    endings: tuple[str, str] = ("", ""),
) -> Listing:
    """Pairs of equal keys, sorted, or in the order of `names`, which are all that is wanted.

    endings: of the stems of images and of labels, where the keys lack them.
    """
    wanted = sorted(images.keys() | labels.keys()) if names is None else names
    pairs, alone = [], []
    for name in wanted:
        if name in images and name in labels:
            pairs.append(Pair(name, images[name], labels[name]))
        elif name in images:
            alone.append(Alone(images[name], "label", f"{label_folder}/{name}{endings[1]}.*"))
        else:
            file = labels.get(name, label_folder / name)
            alone.append(Alone(file, "image", f"{image_folder}/{name}{endings[0]}.*"))
    return Listing(pairs, alone)


def match_folders(images: Path, labels: Path, names: Iterable[str] | None = None) -> Listing:
    """`match` of all the image and label files in two folders."""
    return match(
        list_files(images, IMAGE_SUFFIXES),
        list_files(labels, LABEL_SUFFIXES),
        images,
        labels,
        names,
    )


def without_labels(images: Mapping[str, Path]) -> Listing:
    """A test split. Its names are stems, so DataError where two images, of any folder, share one:
    what is predicted for a name is written under it."""
    by_stem: dict[str, Path] = {}
    for path in images.values():
        first = by_stem.setdefault(path.stem, path)
        if first is not path:
            raise DataError(
                f"{first} and {path}: their results would have the same name ({path.stem}); "
                "rename one of them, or put them under different roots"
            )
    return Listing([Pair(stem, path, None) for stem, path in by_stem.items()], [])


def list_splits(split: str, list_one: Callable[[str], Listing]) -> Listing:
    """The files of several splits, written as in "train+val", one behind the other."""
    listings = [list_one(part) for part in split.split("+")]
    return Listing(
        [pair for listing in listings for pair in listing.pairs],
        [alone for listing in listings for alone in listing.alone],
        any(listing.labels_lead for listing in listings),
    )


def require_pairs(listing: Listing) -> None:
    """DataError for the first file whose other half is missing."""
    lacking = [a for a in listing.alone if not (listing.labels_lead and a.missing == "label")]
    if lacking:
        file, missing, expected = lacking[0]
        total = len(listing.pairs) + len(lacking)
        raise DataError(
            f"{file}: there is no {missing} for it; expected {expected} "
            f"({len(lacking)} of {total} files lack theirs): add the {missing}, "
            "or remove the file"
        )


def read_names(path: str | Path) -> list[str]:
    """The names of a text file, one a line."""
    return [name for _, name in _numbered_names(path)]


def read_class_names(path: str | Path) -> list[str]:
    """`read_names`, but DataError where a name comes twice."""
    first_lines: dict[str, int] = {}
    for line, name in _numbered_names(path):
        if name in first_lines:
            raise DataError(
                f"{path}: the class {name!r} stands in line {first_lines[name]} and again in line "
                f"{line}; expected a name of its own for each class: rename one of them"
            )
        first_lines[name] = line
    return list(first_lines)


def _numbered_names(path: str | Path) -> list[tuple[int, str]]:
    """The names of a text file with their lines, from 1; some editors begin it with a BOM."""
    try:
        lines = Path(path).read_text(encoding="utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise DataError(
            f"{path}: the list cannot be read ({reason}); expected a text file with one name a line"
        ) from error
    return [(number, line.strip()) for number, line in enumerate(lines, 1) if line.strip()]


def keep_only(listing: Listing, list_file: str | Path) -> Listing:
    """The samples that a text file names; those of openseg.pytorch name label files, NAME.png."""
    names = {name.removesuffix(".png") for name in read_names(list_file)}
    if not names:
        raise DataError(f"{list_file}: names no sample; expected one a line, or no list for all")
    absent = sorted(names - {pair.name for pair in listing.pairs})
    if absent:
        known = ", ".join(pair.name for pair in listing.pairs[:3])
        raise DataError(
            f"{list_file}: {absent[0]!r} is no sample of the split ({len(absent)} of {len(names)} "
            f"names are not); expected names such as {known}: without folder and suffix"
        )
    return listing._replace(pairs=[pair for pair in listing.pairs if pair.name in names])
