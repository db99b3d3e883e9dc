# SPDX-License-Identifier: MIT
"""From a YAML file and `key=value` words to a `Config`, or to an error that names the key.

A string option takes its word as it is written: `run.folder=007` is "007", not the number 7.
"""

import difflib
import os.path
import types
import typing
from collections.abc import Iterator
from importlib import resources
from pathlib import Path
from typing import Any

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from openseg.config.checks import check
from openseg.config.schema import Config, fields_of
from openseg.errors import ConfigError

Assignment = tuple[str, Any, str]  # key, value, where it was written

_TYPES = fields_of()
_SECTIONS = {key.rpartition(".")[0] for key in _TYPES} - {""}
_PATHS = (  # options that name a file or a folder: ~ is the home there
    *("model.weights", "data.root", "data.train_list", "data.val_list", "data.offsets"),
    *("run.folder", "run.resume"),
)
_WORDS = {bool: "true or false", int: "a whole number", float: "a number", str: "text"}


def load_config(name_or_path: str | Path, overrides: typing.Sequence[str] = ()) -> Config:
    """Read a configuration, apply `key=value` overrides, and check every value.

    name_or_path: a YAML file, or the name of a shipped one, such as "camvid/ocrnet_r18". A file may
        name another one to start from as `base:`, relative to itself or a shipped name.

    Raises ConfigError for a file that cannot be read, an unknown key (with the nearest one), a
    value of the wrong type or out of range.
    """
    path = find_config(name_or_path)
    config = _build([*_read_chain(path), *map(_parse_override, overrides)], str(path))
    if config.run.folder is None:
        config.run.folder = f"runs/{_name_of(path)}"
    return config


def restore_config(
    plain: dict[str, Any], overrides: typing.Sequence[str] = (), source: str = "checkpoint"
) -> Config:
    """The configuration that `to_plain` wrote, with overrides; `source` is for messages."""
    return _build([*_flatten(plain, "", source), *map(_parse_override, overrides)], source)


def _build(assignments: typing.Iterable[Assignment], source: str) -> Config:
    tree = OmegaConf.structured(Config)
    for assignment in assignments:
        _assign(tree, *assignment)
    try:
        config = typing.cast(Config, OmegaConf.to_object(tree))
    except OmegaConfBaseException as error:
        raise ConfigError(f"{source}: {_first_line(error)}") from error
    _expand_home(config)
    check(config)
    return config


def _expand_home(config: Config) -> None:
    """No shell does it in the middle of a word, as in data.root=~/camvid."""
    for section, _, name in (key.partition(".") for key in _PATHS):
        path = getattr(getattr(config, section), name)
        if path is not None:
            setattr(getattr(config, section), name, os.path.expanduser(path))


def to_yaml(config: Config) -> str:
    """The configuration as YAML that `--cfg` reads back.

    What asks for one start only, such as `run.overwrite`, goes back to its default.
    """
    tree = OmegaConf.structured(config)
    tree.run.resume, tree.run.overwrite, tree.dry_run = None, False, False
    return yaml.dump(OmegaConf.to_container(tree), Dumper=_Dumper, sort_keys=False)


class _Dumper(yaml.SafeDumper):
    """Lists in one line, as people write them."""


for _kind_of_list in (list, tuple):
    _Dumper.add_representer(
        _kind_of_list,
        lambda dumper, items: dumper.represent_sequence(
            "tag:yaml.org,2002:seq", items, flow_style=True
        ),
    )


def to_plain(config: Config) -> dict[str, Any]:
    """The configuration as nested dicts, lists and plain values: the content of `to_yaml`."""
    return yaml.safe_load(to_yaml(config))


def differences(config: Config, saved: dict[str, Any]) -> list[str]:
    """What differs from a configuration as `to_plain` made it, but for the section `run`.

    One text for each option, such as "train.lr: 0.01, was 0.02". An option that was not there yet
    was as its default is.
    """
    default, new, old = (
        {key: value for key, value, _ in _flatten(tree, "", "")}
        for tree in (to_plain(Config()), to_plain(config), saved)
    )
    old = default | old
    keys = [key for key in new if not key.startswith("run.") and new[key] != old[key]]
    return [f"{key}: {new[key]!r}, was {old[key]!r}" for key in keys]


def shipped_configs() -> list[str]:
    """Names of the configurations inside the package."""
    folder = _shipped_folder()
    return sorted(f.relative_to(folder).with_suffix("").as_posix() for f in folder.glob("*/*.yaml"))


def find_config(name_or_path: str | Path, beside: Path | None = None) -> Path:
    """The file of a shipped name or of a path, which may be relative to the folder `beside`."""
    places = [Path(name_or_path), _shipped_folder() / name_or_path]
    if beside is not None:
        places.insert(0, beside / name_or_path)
    for place in places:
        for candidate in (place, place.with_name(f"{place.name}.yaml")):
            if candidate.is_file():
                return candidate
    names = shipped_configs()
    near = difflib.get_close_matches(str(name_or_path), names, n=3, cutoff=0.5)
    listed = f"did you mean {' or '.join(near)}?" if near else f"shipped are {', '.join(names)}"
    raise ConfigError(f"there is no configuration {str(name_or_path)!r}: {listed}")


def _shipped_folder() -> Path:
    return Path(str(resources.files("openseg"))) / "configs"


def _name_of(path: Path) -> str:
    """A shipped name, or the name of a user's file."""
    if path.is_relative_to(_shipped_folder()):
        path = path.relative_to(_shipped_folder())
        return path.with_suffix("").as_posix()
    return path.stem


def _read_chain(path: Path, seen: tuple[Path, ...] = ()) -> list[Assignment]:
    """Assignments of a file after those of its base."""
    if path.resolve() in seen:
        raise ConfigError(f"{path}: is its own base, by way of {' and '.join(map(str, seen))}")
    contents = _read_yaml(path)
    base = contents.pop("base", None)
    assignments = [] if base is None else _read_base(base, path, seen)
    return assignments + list(_flatten(contents, "", str(path)))


def _read_base(base: Any, path: Path, seen: tuple[Path, ...]) -> list[Assignment]:
    try:
        found = find_config(str(base), beside=path.parent)
    except ConfigError as error:
        raise ConfigError(f"{path}: base: {error}") from None
    return _read_chain(found, (*seen, path.resolve()))


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        contents = OmegaConf.to_container(OmegaConf.load(path)) or {}
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: is no valid YAML: {error}") from error
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error}") from error
    if not isinstance(contents, dict):
        raise ConfigError(f"{path}: expected sections such as `train:`, got a {_kind(contents)}")
    return typing.cast(dict[str, Any], contents)


def _flatten(tree: dict[str, Any], prefix: str, source: str) -> Iterator[Assignment]:
    for name, value in tree.items():
        key = f"{prefix}{name}"
        if key in _SECTIONS and isinstance(value, dict):
            yield from _flatten(value, f"{key}.", source)
        else:
            yield key, value, source


def _parse_override(word: str) -> Assignment:
    key, equals, text = word.partition("=")
    if not equals or not key:
        raise ConfigError(f"{word!r}: expected an override such as train.lr=0.02")
    if str in _alternatives(_TYPES.get(key)):
        return key, None if text in ("null", "") else text, "override"
    try:
        value = OmegaConf.to_container(OmegaConf.from_dotlist([f"value={text}"]))
    except yaml.YAMLError as error:
        raise ConfigError(f"{word!r}: the value is no valid YAML: {error}") from error
    return key, typing.cast(dict[str, Any], value)["value"], "override"


def _assign(tree: Any, key: str, value: Any, source: str) -> None:
    if not _is_known(key):
        raise ConfigError(f"{source}: there is no option {key!r}{_suggestion(key)}")
    if key in _SECTIONS:
        raise ConfigError(f"{source}: {key} is a section of options, not a value ({value!r})")
    try:
        OmegaConf.update(tree, key, value, merge=False)
    except (OmegaConfBaseException, ValueError, TypeError) as error:
        expected = _expected(_TYPES.get(key, float))
        raise ConfigError(f"{source}: {key}: {value!r} given, {expected} expected") from error


def _is_known(key: str) -> bool:
    """Whether a key is an option, a section, or an entry of an option that is a mapping."""
    parent = key.rpartition(".")[0]
    return key in _TYPES or key in _SECTIONS or typing.get_origin(_TYPES.get(parent)) is dict


def _suggestion(key: str) -> str:
    """The nearest option: by its whole name, or by its last part in any section."""
    last = key.rpartition(".")[2]
    ends = {name.rpartition(".")[2] for name in _TYPES}
    near = difflib.get_close_matches(key, _TYPES, n=1, cutoff=0.7)
    if last in ends or not near:
        end = difflib.get_close_matches(last, ends, n=1, cutoff=0.7)
        near = [name for name in _TYPES if name.rpartition(".")[2] in end]
    return f"; did you mean {' or '.join(near)}?" if near else "; --help lists all of them"


def _alternatives(kind: Any) -> tuple[Any, ...]:
    """The members of a union, or the type alone."""
    return typing.get_args(kind) if _is_union(kind) else (kind,)


def _is_union(kind: Any) -> bool:
    return isinstance(kind, types.UnionType) or typing.get_origin(kind) is typing.Union


def _expected(kind: Any) -> str:
    """A type in words."""
    if _is_union(kind):
        return " or ".join(_expected(member) for member in typing.get_args(kind))
    if kind is type(None):
        return "null"
    origin, members = typing.get_origin(kind), typing.get_args(kind)
    if origin is typing.Literal:
        return " or ".join(map(str, members))
    if origin is tuple:
        return f"a list of {len(members)} ({', '.join(_expected(member) for member in members)})"
    if origin is list:
        return f"a list ({_expected(members[0])} each)"
    if origin is dict:
        return f"a mapping of names to values ({_expected(members[1])} each)"
    return _WORDS[kind]


def _kind(value: Any) -> str:
    return "list" if isinstance(value, list) else "single value"


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0]
