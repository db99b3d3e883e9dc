# SPDX-License-Identifier: MIT
"""Calls launchers of the emulated library on NumPy arrays, without torch.

The arguments of a launcher are structs; their layout is read from the operator's headers, so that
nothing about them is written twice.
"""

import ctypes
import re
import subprocess
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).parents[2]
CSRC = ROOT / "csrc"
SHARED_LIMITS = {"8.0": 163 << 10, "8.6": 99 << 10, "9.0": 227 << 10}  # bytes for a block
_SCALARS = {
    "int64_t": ctypes.c_int64,
    "int": ctypes.c_int,
    "bool": ctypes.c_bool,
    "float": ctypes.c_float,
    "DType": ctypes.c_int,
    "Activation": ctypes.c_int,
}


class KernelError(Exception):
    """What the emulator, the race detector or a launcher found wrong."""


@cache
def dtypes() -> dict[str, int]:
    header = (CSRC / "common/dtype.h").read_text()
    names = re.search(r"enum class DType \{(.*?)\}", header, re.S)[1]
    return {name.strip(): value for value, name in enumerate(names.split(","))}


@cache
def call_struct(operator: str, name: str) -> type[ctypes.Structure]:
    """The struct `name` of csrc/<operator>/<operator>.h, its namesake in cuda/, or csrc/common."""
    headers = (
        CSRC / operator / f"{operator}.h",
        CSRC / operator / "cuda" / f"{operator}.h",
        CSRC / "common/map.h",
        CSRC / "common/attention.h",
    )
    text = "".join(path.read_text() for path in headers if path.exists())
    body = re.search(rf"struct {name} \{{(.*?)\n\}};", re.sub(r"//.*", "", text), re.S)[1]
    body = re.sub(r".*\(.*", "", body)  # member functions
    fields = []
    for declaration in filter(None, map(str.strip, body.split(";"))):
        is_pointer = "*" in declaration
        type_name, names = re.fullmatch(r"(?:const )?(\w+)\*? (.*)", declaration, re.S).groups()
        if is_pointer:
            kind = ctypes.c_void_p
        else:
            kind = _SCALARS.get(type_name) or call_struct(operator, type_name)
        fields += [(field.strip(), kind) for field in names.split(",")]
    return type(name, (ctypes.Structure,), {"_fields_": fields})


class Kernels:
    """The launchers of one library, under one order of turns of the threads."""

    def __init__(self, library: str, seed: int = 0, architecture: str = "8.6"):
        self._library = ctypes.CDLL(library)
        self._path = library
        self._seed = seed
        self._shared_limit = SHARED_LIMITS[architecture]

    def on(self, architecture: str) -> "Kernels":
        """The same on another architecture."""
        return Kernels(self._path, self._seed, architecture)

    def call(self, launcher: str, operator: str, *others: Any, **structs: dict[str, Any]) -> None:
        """Calls `launcher` with these structs, then with plain arguments of C.

        Within structs, arrays are passed as pointers, dtypes by name.
        """
        filled = [_filled(call_struct(operator, name), fields) for name, fields in structs.items()]
        self.call_plainly(launcher, *map(ctypes.byref, filled), *others)

    def call_plainly(self, launcher: str, *arguments: Any) -> None:
        """The same for a launcher whose arguments are those of a C function."""
        self._library.emulator_configure(
            ctypes.c_uint64(self._seed), ctypes.c_int64(self._shared_limit)
        )
        function = getattr(self._library, launcher)
        function.restype = ctypes.c_char_p
        message = function(*arguments)
        if message is not None:
            raise KernelError(self._with_lines(message.decode()))

    def _with_lines(self, message: str) -> str:
        """Addresses of code in a race report as file and line."""
        base = load_address(self._path)

        def located(match: re.Match) -> str:
            address = hex(int(match[0], 16) - base - 1)
            command = ["addr2line", "-s", "-e", self._path, address]
            return subprocess.run(command, capture_output=True, text=True).stdout.strip()

        return re.sub(r"0x[0-9a-f]+", located, message)


def load_address(library: str) -> int:
    """Where a library of this process starts."""
    lines = Path("/proc/self/maps").read_text().splitlines()
    return next(int(line.split("-")[0], 16) for line in lines if line.endswith(library))


def _filled(kind: type[ctypes.Structure], fields: dict[str, Any]) -> ctypes.Structure:
    missing = {field for field, _ in kind._fields_} ^ fields.keys()
    assert not missing, f"{kind.__name__} and the call differ in {missing}"
    return kind(**{field: _plain(part, fields[field]) for field, part in kind._fields_})


def _plain(kind: type, value: Any) -> Any:
    if isinstance(value, np.ndarray):
        return value.ctypes.data
    if isinstance(value, str):
        return dtypes()[value]
    if isinstance(value, dict):
        return _filled(kind, value)
    return value
