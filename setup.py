# SPDX-License-Identifier: MIT
"""Builds the kernels into openseg/_C.abi3.so; all else about the package is in pyproject.toml.

Where torch or a compiler is missing the package installs as pure Python. The reason is kept in
openseg/_build_info.json and told in one warning; OPENSEG_REQUIRE_EXT=1 makes it an error.
"""

import importlib.util
import json
import os
import platform
import shlex
import shutil
import subprocess
import sys
import sysconfig
import warnings
from pathlib import Path

import setuptools
from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent
BUILD = ROOT / "build" / "ninja"  # ours and kept: that of setuptools is temporary under pip
BINARY = "openseg._C"
HINT = "pip install --no-build-isolation --no-cache-dir -e ."

CXX_FLAGS = "-std=c++20 -O3 -Wall -Wextra -Wno-psabi -fPIC -fvisibility=hidden"
TORCH_FLAGS = "-DTORCH_TARGET_VERSION=0x020b000000000000"
ISA_FLAGS = {  # csrc/common/isa.cpp asks the processor for the same features
    "baseline": "",
    "avx2": "-mavx2 -mfma -mf16c",
    "avx512": "-mavx2 -mfma -mf16c -mavx512f -mavx512bw -mavx512vl -mavx512dq -mavx512bf16"
    # gcc 12 warns falsely inside its own intrinsics
    " -Wno-maybe-uninitialized -Wno-uninitialized",
}
LINK_FLAGS = "-shared -Wl,-z,defs -Wl,--exclude-libs,ALL -Wl,-s"
NVCC_FLAGS = "-std=c++20 -O3 -Xcompiler -fPIC,-fvisibility=hidden"
CUDA_ARCHS = "8.0 8.6 8.9 9.0 10.0 12.0+PTX"

RULES = """\
rule cxx
  command = $cxx $flags -MD -MF $out.d -c $in -o $out
  depfile = $out.d
  deps = gcc
rule nvcc
  command = $nvcc $flags -MD -MF $out.d -c $in -o $out
  depfile = $out.d
  deps = gcc
rule link
  command = $cxx $in $flags -o $out
"""


class NoKernelsError(Exception):
    """Why the kernels cannot be built here."""


def sources():
    """The files of each kind, relative to the root. CMakeLists.txt follows the same rule."""

    def found(pattern):
        return sorted(path.relative_to(ROOT).as_posix() for path in ROOT.glob(pattern))

    return {
        "cxx": found("csrc/*.cpp") + found("csrc/*/*.cpp"),
        "cpu": found("csrc/*/cpu/*.cpp"),
        "cuda": found("csrc/*/cuda/*.cu"),
    }


def cuda_home():
    """The folder with both nvcc and its headers; the nvcc on PATH may be a script elsewhere."""
    nvcc = shutil.which("nvcc")
    candidates = [os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH")]
    candidates += [Path(nvcc).resolve().parents[1]] if nvcc else []
    for home in [Path(c) for c in candidates if c] + [Path("/usr/local/cuda")]:
        if (home / "bin/nvcc").exists() and (home / "include/cuda_runtime.h").exists():
            return home
    return None


def wanted_cuda_home(torch_cuda):
    """The CUDA to build with or None: OPENSEG_CUDA=auto|0|1; `torch_cuda` is torch.version.cuda."""
    choice = os.environ.get("OPENSEG_CUDA", "auto")
    if choice not in ("auto", "0", "1"):
        raise NoKernelsError(f"OPENSEG_CUDA is {choice!r}, expected auto, 0 or 1")
    if choice == "0" or (choice == "auto" and not torch_cuda):
        return None
    home = cuda_home()
    if home is None and choice == "1":
        raise NoKernelsError(
            "OPENSEG_CUDA=1, but nvcc with its headers was not found: set CUDA_HOME"
        )
    return home


def cuda_archs():
    return os.environ.get("TORCH_CUDA_ARCH_LIST", CUDA_ARCHS).replace(";", " ").split()


def arch_flags(source):
    """nvcc's flags for one file: *_sm90.cu uses instructions that exist on sm_90a alone."""
    if source.endswith("_sm90.cu"):
        return "-gencode=arch=compute_90a,code=sm_90a"
    flags = []
    for arch in cuda_archs():
        number = arch.removesuffix("+PTX").replace(".", "")
        flags.append(f"-gencode=arch=compute_{number},code=sm_{number}")
        if arch.endswith("+PTX"):
            flags.append(f"-gencode=arch=compute_{number},code=compute_{number}")
    return " ".join(flags)


def ninja_file(cxx, includes, libraries, cuda):
    """The text of build.ninja: an edge with flags of its own for each object, and the link."""
    files = sources()
    with_cuda = cuda is not None and bool(files["cuda"])
    include = f"-I{ROOT / 'csrc'}"
    torch = " ".join([TORCH_FLAGS, *(f"-isystem {path}" for path in includes)])
    if with_cuda:
        torch += f" -DOPENSEG_CUDA -isystem {cuda / 'include'}"
    edges = [(file, f"{file}.o", "cxx", f"{CXX_FLAGS} {include} {torch}") for file in files["cxx"]]
    for isa, flags in ISA_FLAGS.items():
        edges += [
            (file, f"{file}.{isa}.o", "cxx", f"{CXX_FLAGS} {include} {flags}")
            for file in files["cpu"]
        ]
    link = [LINK_FLAGS, *(f"-L{path}" for path in libraries), "-ltorch_cpu"]
    if with_cuda:
        edges += [
            (file, f"{file}.o", "nvcc", f"{NVCC_FLAGS} {include} {arch_flags(file)}")
            for file in files["cuda"]
        ]
        link += [f"-L{cuda / name}" for name in ("lib64", "lib") if (cuda / name).exists()]
        link += ["-lcudart_static -ldl -lrt -lpthread"]
    lines = [f"cxx = {cxx}", f"nvcc = {cuda / 'bin/nvcc' if cuda else 'nvcc'}", RULES]
    for file, target, rule, flags in edges:
        lines += [f"build {target}: {rule} {ROOT / file}", f"  flags = {flags}"]
    lines += [f"build _C.so: link {' '.join(edge[1] for edge in edges)}"]
    lines += [f"  flags = {' '.join(link)}", ""]
    return "\n".join(lines)


def run_ninja(text):
    ninja = shutil.which("ninja") or shutil.which("ninja", path=Path(sys.executable).parent)
    if ninja is None:
        raise NoKernelsError("ninja was not found: pip install ninja")
    BUILD.mkdir(parents=True, exist_ok=True)
    file = BUILD / "build.ninja"
    if not file.exists() or file.read_text() != text:
        file.write_text(text)
    jobs = ["-j", os.environ["MAX_JOBS"]] if os.environ.get("MAX_JOBS") else []
    done = subprocess.run(
        [ninja, "-C", str(BUILD), *jobs],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    print(done.stdout, end="")
    if done.returncode:
        raise NoKernelsError(
            "the compiler failed, as openseg/_build_info.json says\n"
            + "\n".join(done.stdout.splitlines()[-30:])
        )
    return BUILD / "_C.so"


def build_extension_class():
    """torch's BuildExtension, or what stands for it and a reason where there is no torch.

    Under build isolation the target environment is not on sys.path, but its folders are known. They
    go to the end: the isolated setuptools comes first. Metadata commands never import torch.
    """
    commands = {"build", "build_ext", "bdist_wheel", "editable_wheel", "install", "develop"}
    if not commands.intersection(sys.argv):
        return build_ext, "only metadata was asked for"
    if importlib.util.find_spec("torch") is None:
        sys.path += [sysconfig.get_path("purelib"), sysconfig.get_path("platlib")]
    try:
        from torch.utils.cpp_extension import BuildExtension
    except ImportError as error:
        return build_ext, f"torch was not found when openseg was installed ({error})"
    return BuildExtension, None


Base, WITHOUT_TORCH = build_extension_class()


class BuildKernels(Base):
    """Builds the extension with ninja; a failure leaves a pure Python package and its reason."""

    def run(self):
        self.info = {"built": False, "reason": None}
        folder = Path(self.get_ext_fullpath(BINARY)).parent
        built_lib = Path(self.build_lib, "openseg")
        for place in (folder, built_lib):
            for stale in place.glob("_C.*"):
                stale.unlink()
        try:
            super().run()
        except Exception as error:
            self.info["reason"] = str(error) or repr(error)
        text = json.dumps(self.info, indent=2) + "\n"
        for place in (folder, built_lib):
            place.mkdir(parents=True, exist_ok=True)
            (place / "_build_info.json").write_text(text)
        if self.info["built"]:
            return
        if os.environ.get("OPENSEG_REQUIRE_EXT") == "1":
            raise SystemExit(f"OPENSEG_REQUIRE_EXT=1, and no kernels: {self.info['reason']}")
        reason = self.info["reason"].splitlines()[0]
        warnings.warn(
            f"openseg installs without kernels: {reason}. To get them: {HINT}", stacklevel=2
        )

    def build_extensions(self):
        if WITHOUT_TORCH:
            raise NoKernelsError(WITHOUT_TORCH)
        if (platform.system(), platform.machine()) != ("Linux", "x86_64"):
            raise NoKernelsError(f"kernels need Linux on x86_64, this is {platform.platform()}")
        super().build_extensions()

    def build_extension(self, ext):
        import torch
        from torch.utils import cpp_extension

        cxx = os.environ.get("CXX", "c++")
        if shutil.which(shlex.split(cxx)[0]) is None:
            raise NoKernelsError(f"the C++ compiler {cxx!r} was not found: install g++ or set CXX")
        cuda = wanted_cuda_home(torch.version.cuda)
        paths = cpp_extension.include_paths(), cpp_extension.library_paths()
        binary = run_ninja(ninja_file(cxx, *paths, cuda))
        target = Path(self.get_ext_fullpath(ext.name))
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(binary, target)
        version = subprocess.run([*shlex.split(cxx), "--version"], capture_output=True, text=True)
        with_cuda = cuda is not None and bool(sources()["cuda"])
        self.info.update(
            built=True,
            torch=torch.__version__,
            compiler=version.stdout.splitlines()[0],
            isas=list(ISA_FLAGS),
            cuda=str(cuda) if with_cuda else None,
            archs=cuda_archs() if with_cuda else [],
        )


if __name__ == "__main__":
    # older ones cannot read the license in pyproject.toml, and say so in many words
    if int(setuptools.__version__.partition(".")[0]) < 77:
        raise SystemExit(
            f"openseg builds with setuptools 77 or newer, this is {setuptools.__version__}: "
            f"{sys.executable} -m pip install 'setuptools>=77'"
        )
    setup(
        ext_modules=[Extension(BINARY, sources=[], optional=True, py_limited_api=True)],
        cmdclass={"build_ext": BuildKernels},
        options={"bdist_wheel": {"py_limited_api": "cp310"}},
    )
