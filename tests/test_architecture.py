# SPDX-License-Identifier: MIT
"""The rules of the house: imports run downward, operators have one name, files are short.

A module's level is that of the first entry of LEVELS that it lies in. It may import its own package
and anything of a lower level, besides what ALSO allows and what NEVER forbids.
"""

import ast
import runpy
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

LEVELS = {
    "openseg.errors": 0,
    "openseg.cli": 0,
    "openseg._ext": 0,
    "openseg.ops": 1,
    "openseg.layers": 2,
    "openseg.losses": 2,
    "openseg.metrics": 2,
    "openseg.data": 2,
    "openseg.backbones": 3,
    "openseg.models": 3,
    "openseg.weights": 3,
    "openseg.engine": 4,
    "openseg.config": 4,
    "openseg.configs": 4,
    "openseg.build": 5,
}
ENTRY_POINT = 6  # openseg/<name>.py that is not listed
ALSO = {("openseg.models", "openseg.backbones"), ("openseg.cli", "openseg.errors")}
NEVER = {("openseg.engine", "openseg.models"), ("openseg.engine", "openseg.backbones")}
OPS_MAY_IMPORT = {"openseg.ops", "openseg._ext"}
UNWANTED = {"torchvision", "timm", "torchmetrics", "cv2", "albumentations"}
OPTIONAL = {"matplotlib", "tensorboard", "scipy", "triton"}
NEED_TRITON = {"triton.py", "_triton_kernels.py"}  # imported when a kernel of theirs is called

PYTHON_LINES, NATIVE_LINES, FUNCTION_LINES, ENTRY_POINT_LINES = 400, 500, 60, 150


def package_of(module):
    """openseg.ops.upsample_argmax.api → openseg.ops; the package itself for the root module."""
    return ".".join(module.split(".")[:2])


def level_of(module):
    return LEVELS.get(package_of(module), ENTRY_POINT)


def module_of(path, root):
    parts = path.relative_to(root).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports_of(tree, module, is_package):
    """(imported module, inside a function) for each import of a file."""
    inside = {
        id(node)
        for function in ast.walk(tree)
        if isinstance(function, (ast.FunctionDef, ast.AsyncFunctionDef))
        for node in ast.walk(function)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for name in node.names:
                yield name.name, id(node) in inside
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parts = module.split(".")
                parts = parts[: len(parts) - node.level + is_package]
                base = ".".join([*parts, base]).rstrip(".")
            if base == "openseg":
                for name in node.names:
                    yield f"openseg.{name.name}", id(node) in inside
            else:
                yield base, id(node) in inside


def wrong_arrows(root):
    """Every import under root/openseg that breaks the rules, as readable lines."""
    wrong = []
    for path in sorted((root / "openseg").rglob("*.py")):
        module = module_of(path, root)
        package = package_of(module)
        tree = ast.parse(path.read_text())
        for target, lazy in imports_of(tree, module, path.name == "__init__.py"):
            top, arrow = target.split(".")[0], f"{module} imports {target}"
            if top in UNWANTED:
                wrong.append(f"{arrow}: never imported")
            kernels = top == "triton" and path.name in NEED_TRITON
            if top in OPTIONAL and not lazy and not kernels:
                wrong.append(f"{arrow}: optional, import it inside the function that needs it")
            other = package_of(target)
            if top != "openseg" or other in (package, "openseg"):
                continue
            if package == "openseg.ops" and other not in OPS_MAY_IMPORT:
                wrong.append(f"{arrow}: ops imports torch and _ext alone")
            elif (package, other) in NEVER:
                wrong.append(f"{arrow}: the engine is given objects")
            elif level_of(target) >= level_of(module) and (package, other) not in ALSO:
                wrong.append(f"{arrow}: level {level_of(module)} imports {level_of(target)}")
    return wrong


def test_imports_run_downward():
    assert wrong_arrows(ROOT) == []


@pytest.mark.parametrize(
    ("path", "line", "complaint"),
    [
        (
            "ops/gather/api.py",
            "from openseg.layers import norms",
            "ops imports torch and _ext alone",
        ),
        ("ops/gather/api.py", "from openseg import errors", "ops imports torch and _ext alone"),
        ("losses/ce.py", "from ..metrics import miou", "level 2 imports 2"),
        ("data/x.py", "def f():\n    import openseg.models.ocr", "level 2 imports 3"),
        ("weights/x.py", "from openseg import models", "level 3 imports 3"),
        ("engine/x.py", "from openseg.models import create_model", "the engine is given objects"),
        ("layers/x.py", "import timm.layers", "never imported"),
        ("layers/x.py", "import matplotlib.pyplot", "import it inside the function"),
        ("ops/gather/api.py", "import triton.language", "import it inside the function"),
        ("build.py", "from openseg import train", "level 5 imports 6"),
    ],
)
def test_a_planted_violation_is_found(tmp_path, path, line, complaint):
    file = tmp_path / "openseg" / path
    file.parent.mkdir(parents=True)
    file.write_text(line + "\n")
    assert len(found := wrong_arrows(tmp_path)) == 1
    assert complaint in found[0]


@pytest.mark.parametrize(
    ("path", "line"),
    [
        ("models/x.py", "from openseg.backbones import resnet"),
        ("engine/x.py", "from openseg import metrics, errors"),
        ("ops/gather/api.py", "from openseg.ops import _backend"),
        ("engine/x.py", "def draw():\n    import matplotlib.pyplot"),
    ],
)
def test_allowed_arrows_are_allowed(tmp_path, path, line):
    file = tmp_path / "openseg" / path
    file.parent.mkdir(parents=True)
    file.write_text(line + "\n")
    assert wrong_arrows(tmp_path) == []


def folders(*parts):
    """Names of the operator folders there; csrc/common and hidden ones are none."""
    found = (path.name for path in ROOT.joinpath(*parts).iterdir() if path.is_dir())
    return {name for name in found if name[0] not in "._" and name != "common"}


def test_an_operator_has_one_name_everywhere():
    native, python = folders("csrc"), folders("openseg", "ops")
    schemas = (ROOT / "csrc" / "module.cpp").read_text()
    cases = "".join(p.read_text() for p in (ROOT / "benchmarks").glob("bench_*.py"))
    exported = (ROOT / "openseg" / "ops" / "__init__.py").read_text()
    assert native <= python
    for name in python:
        assert (ROOT / "openseg" / "ops" / name / "reference.py").exists(), name
        assert (ROOT / "openseg" / "ops" / name / "api.py").exists(), name
        assert (ROOT / "tests" / "ops" / f"test_{name}.py").exists(), name
        assert (ROOT / "docs" / "ops" / f"{name}.md").exists(), name
        assert f'"{name}"' in exported
    for name in native:
        assert f'"{name}(' in schemas
        assert f'"{name}"' in cases
        for file in (f"{name}.h", f"{name}.cpp"):
            assert (ROOT / "csrc" / name / file).exists()


def test_pages_show_what_is_recorded():
    tables = runpy.run_path(str(ROOT / "benchmarks" / "tables.py"))
    for page in tables["PAGES"]:
        stands = (ROOT / page).read_text(encoding="utf-8")
        assert stands == tables["render"](page), f"{page}: run `python benchmarks/tables.py`"


def source_files(*suffixes):
    for folder in ("openseg", "csrc", "tests", "benchmarks"):
        for path in sorted((ROOT / folder).rglob("*")):
            if path.suffix in suffixes:
                yield path


def test_files_are_short_and_say_their_licence():
    native = (".cpp", ".cu", ".h", ".cuh")
    for path in source_files(".py", *native):
        lines = path.read_text().splitlines()
        assert len(lines) <= (NATIVE_LINES if path.suffix in native else PYTHON_LINES), path
        marker = "// " if path.suffix in native else "# "
        assert lines[0] == f"{marker}SPDX-License-Identifier: MIT", path
        assert max(map(len, lines)) <= 100, path


def test_functions_are_short():
    for path in source_files(".py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                length = node.end_lineno - node.lineno + 1
                assert length <= FUNCTION_LINES, f"{path}: {node.name} has {length} lines"


def test_entry_points_are_short_and_end_alike():
    for path in sorted((ROOT / "openseg").glob("*.py")):
        text = path.read_text()
        if level_of(module_of(path, ROOT)) < ENTRY_POINT or path.name == "__init__.py":
            continue
        assert len(text.splitlines()) < ENTRY_POINT_LINES, path
        assert text.endswith('if __name__ == "__main__":\n    run(main)\n'), path
