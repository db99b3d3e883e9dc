# SPDX-License-Identifier: MIT
"""What nvcc makes of kernels: PTX, which tests/emulator/ptx runs on a CPU, and from that cubins.

Objects are kept in build/emulator, as those of build.py are.
"""

import hashlib
import importlib.util
import shutil
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tests.emulator import build

ARCHITECTURES = ("80", "86", "89", "90a", "100", "120")
CHOSEN = "90a"  # kernels have spilled there that did not on 10.0
NVCC = shutil.which("nvcc")
PRIMITIVES = [build.HERE / "primitives.cu", build.HERE / "primitives_sm90.cu"]
# The objects that a library of PTX needs besides those of kernels.
RUNTIME = [
    *sorted((build.HERE / "ptx").glob("*.cpp")),
    *(build.HERE / name for name in ("numbers.cpp", "tensor_cores.cpp", "launchers.cpp")),
]


def find_cuobjdump() -> str | None:
    """The one on PATH, or that of the triton wheel."""
    spec = importlib.util.find_spec("triton")
    wheels = (
        [
            Path(folder) / "backends/nvidia/bin/cuobjdump"
            for folder in spec.submodule_search_locations
        ]
        if spec
        else []
    )
    return next((str(path) for path in wheels if path.exists()), shutil.which("cuobjdump"))


CUOBJDUMP = find_cuobjdump()


def compiled(
    source: Path, architecture: str, headers: dict[Path, str] | None = None, lines: bool = False
) -> Path:
    """The host's object; beside it, as .ptx, the GPU's, which names lines of the source if asked.

    `headers` has new texts of headers.
    """
    flags = ["-std=c++20", "-O3", f"-I{build.ROOT / 'csrc'}", f"-I{build.HERE}"]
    if headers:
        flags.insert(0, f"-I{build.overlay(headers)}")
    flags += ["-Xcompiler=-fPIC", *(["-lineinfo"] if lines else [])]
    flags.append(f"-gencode=arch=compute_{architecture},code=compute_{architecture}")
    key = hashlib.sha256(build.headers_hash(build.ROOT / "csrc") + source.read_bytes())
    key.update(" ".join(flags).encode())
    result = build.BUILD / f"{source.stem}-{architecture}-{key.hexdigest()[:16]}.o"
    with build.made_once(result) as partial:
        if partial is not None:
            with tempfile.TemporaryDirectory(dir=build.BUILD) as folder:
                kept = ["--keep", f"--keep-dir={folder}", "-c", "-o", str(partial)]
                build.run([NVCC, *flags, *kept, str(source)])
                Path(folder, f"{source.stem}.ptx").replace(result.with_suffix(".ptx"))
    return result


def assembly(source: Path, architecture: str) -> str:
    """The resources and the instructions of one file's kernels."""
    ptx = compiled(source, architecture).with_suffix(".ptx")
    listing = ptx.with_suffix(".sass")
    with build.made_once(listing) as partial:
        if partial is not None:
            cubin = str(ptx.with_suffix(".cubin"))
            build.run([NVCC, f"-arch=sm_{architecture}", "-cubin", "-o", cubin, str(ptx)])
            partial.write_text(build.run([CUOBJDUMP, "-res-usage", "-sass", cubin]))
    return listing.read_text()


def library(
    architecture: str,
    changed: tuple[Path, dict[Path, str]] | None = None,
    lines: bool = False,
) -> Path:
    """The kernels as nvcc compiles them, for `Kernels`; their PTX lies beside the library.

    `changed` is one source, and new texts of headers that it is compiled with.
    """
    sources = [*PRIMITIVES, *build.kernel_sources()]
    headers = [changed[1] if changed and changed[0] == source else None for source in sources]
    with ThreadPoolExecutor(2) as pool:
        count = len(sources)
        kernels = list(
            pool.map(compiled, sources, [architecture] * count, headers, [lines] * count)
        )
        texts = [source.read_text() for source in RUNTIME]
        modes, unchanged = ["ptx"] * len(texts), [{}] * len(texts)
        objects = [*kernels, *pool.map(build.object_of, RUNTIME, texts, modes, unchanged)]
    key = hashlib.sha256(" ".join(map(str, objects)).encode())
    result = build.BUILD / f"kernels-{architecture}-{key.hexdigest()[:16]}.so"
    with build.made_once(result) as partial:
        if partial is not None:
            with result.with_suffix(".ptx").open("w") as file:
                file.writelines(kernel.with_suffix(".ptx").read_text() for kernel in kernels)
            build.run([*build.COMPILER, "-shared", "-o", str(partial), *map(str, objects)])
    return result
