# SPDX-License-Identifier: MIT
"""Compiles kernels for the emulator: `.cu` files as C++, into one shared library.

Objects are kept in build/emulator under a hash of all that they depend on, so that a run after a
small change compiles one file.
"""

import fcntl
import hashlib
import os
import re
import shlex
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[2]
HERE = Path(__file__).parent
BUILD = ROOT / "build" / "emulator"
COMPILER = shlex.split(os.environ.get("CXX", "g++"))
COMMON = [
    "-std=c++20",
    "-fPIC",
    "-g1",
    "-fno-strict-aliasing",
    f"-I{ROOT / 'csrc'}",
    f"-I{HERE}",
]
WARNINGS = ["-Wall", "-Wextra", "-Werror", "-Wno-unknown-pragmas"]
# Variables that are read before they are written get a pattern that shows in the results.
# AddressSanitizer's code takes longer to be optimised than to run.
MODES = {
    "plain": ["-O1", "-ftrivial-auto-var-init=pattern"],
    "asan": ["-O0", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"],
    "race": ["-O1", "-DEMULATOR_WATCHED"],
    "costs": ["-O2", "-g", "-DEMULATOR_WATCHED"],
    "ptx": ["-march=native", "-ffp-contract=off"],  # an instruction of a warp is one of vectors
}
# What takes a third of the compiler's time, read once for each mode.
STANDARD_HEADERS = ("algorithm", "cmath", "cstring", "sstream", "stdexcept", "type_traits")
# What costs a minute and seldom tells anything new.
THOROUGH = os.environ.get("OPENSEG_THOROUGH_TESTS") == "1"
WHY_NOT_THOROUGH = "one of many like it: OPENSEG_THOROUGH_TESTS=1 runs them all"
WATCHERS = {"race": ["watch.cpp", "race.cpp"], "costs": ["watch.cpp", "costs.cpp"]}
RUNTIME = [
    HERE / name
    for name in (
        "emulator.cpp",
        "numbers.cpp",
        "tensor_cores.cpp",
        "warpgroup.cpp",
        "launchers.cpp",
        "primitives.cu",
        "primitives_sm90.cu",
    )
]


def kernel_sources() -> list[Path]:
    return sorted((ROOT / "csrc").glob("*/cuda/*.cu"))


@cache
def headers_hash(*folders: Path) -> bytes:
    digest = hashlib.sha256()
    for folder in folders or (ROOT / "csrc", HERE):
        for header in sorted([*folder.rglob("*.h"), *folder.rglob("*.cuh")]):
            digest.update(str(header.relative_to(ROOT)).encode() + header.read_bytes())
    return digest.digest()


@contextmanager
def made_once(result: Path) -> Iterator[Path | None]:
    """Where to write what becomes `result`, or None where it is there; other processes wait."""
    BUILD.mkdir(parents=True, exist_ok=True)
    with result.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if result.exists():
            yield None
            return
        partial = result.with_suffix(".partial")
        yield partial
        partial.replace(result)


def overlay(headers: dict[Path, str]) -> Path:
    """A folder with new texts of headers under csrc, to be searched before it."""
    key = hashlib.sha256(repr(sorted(headers.items())).encode())
    folder = BUILD / f"headers-{key.hexdigest()[:16]}"
    for header, text in headers.items():
        file = folder / header.relative_to(ROOT / "csrc")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    return folder


def _standard_headers(flags: list[str]) -> Path:
    """A header that is compiled with these flags."""
    text = "".join(f"#include <{name}>\n" for name in STANDARD_HEADERS)
    key = hashlib.sha256(" ".join([*COMPILER, *flags, text]).encode())
    header = BUILD / f"standard-{key.hexdigest()[:16]}.h"
    with made_once(header.with_suffix(".h.gch")) as partial:
        if partial is not None:
            header.write_text(text)
            run([*COMPILER, *flags, "-x", "c++-header", "-o", str(partial), str(header)])
    return header


def included(text: str) -> set[Path]:
    """The headers under csrc that a source includes, directly or not."""
    found: set[Path] = set()
    texts = [text]
    while texts:
        names = re.findall(r'#include "(.*)"', texts.pop())
        new = {ROOT / "csrc" / name for name in names} - found
        found |= new
        texts += [header.read_text() for header in new if header.exists()]
    return found


def object_of(source: Path, text: str, mode: str, headers: dict[Path, str]) -> Path:
    """The object of `source` with `text` in place of what the file holds, and of headers' texts."""
    changed = {h: t for h, t in headers.items() if h in included(text)}
    before = [f"-I{overlay(changed)}"] if changed else []
    flags = [*COMMON, *MODES[mode]]
    if mode in WATCHERS and source.suffix == ".cu":
        flags.append("-fsanitize=thread")
    if source.suffix == ".cu":
        flags += ["-include", str(_standard_headers(flags))]
    flags = before + flags
    if source.suffix == ".cpp":
        # The emulator itself takes longer to run than to be optimised, its arithmetic most of all.
        flags += ["-O1", "-fno-sanitize=undefined"]
    if source.stem == "tensor_cores" or mode == "ptx":
        flags += ["-O3", "-fno-sanitize=all"]
    is_changed = bool(changed) or text != source.read_text()
    flags += ["-w"] if is_changed else WARNINGS
    key = hashlib.sha256(headers_hash() + " ".join([*COMPILER, *flags, text]).encode())
    result = BUILD / f"{source.stem}-{mode}-{key.hexdigest()[:16]}.o"
    with made_once(result) as partial:
        if partial is not None and is_changed:
            source = result.with_suffix(source.suffix)
            source.write_text(text)
        if partial is not None:
            run([*COMPILER, *flags, "-x", "c++", "-c", "-o", str(partial), str(source)])
    return result


def run(command: list[str]) -> str:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(command)}\n{done.stdout}{done.stderr}")
    return done.stdout


def library(mode: str, changed: dict[Path, str] | None = None) -> Path:
    """The library of all kernels; `changed` has new texts of sources and of their headers."""
    watchers = [HERE / name for name in WATCHERS.get(mode, [])]
    sources = [*RUNTIME, *watchers, *kernel_sources()]
    changed = changed or {}
    texts = [changed.get(source) or source.read_text() for source in sources]
    headers = {file: text for file, text in changed.items() if file not in sources}
    count = len(sources)
    with ThreadPoolExecutor(2) as pool:
        objects = list(pool.map(object_of, sources, texts, [mode] * count, [headers] * count))
    key = hashlib.sha256(" ".join(map(str, objects)).encode())
    result = BUILD / f"kernels-{mode}-{key.hexdigest()[:16]}.so"
    with made_once(result) as partial:
        if partial is not None:
            flags = MODES["asan"] if mode == "asan" else []
            run([*COMPILER, "-shared", *flags, "-o", str(partial), *map(str, objects)])
    return result
