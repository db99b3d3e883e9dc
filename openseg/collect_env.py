# SPDX-License-Identifier: MIT
"""Prints what a bug report needs: `python -m openseg.collect_env`, with --json for machines.

The table says for each operator and backend whether it can run here, or why not.
"""

import argparse
import importlib
import json
import platform
import shutil
import subprocess
import sys
from typing import Any

import torch

import openseg
from openseg import _ext, ops
from openseg.cli import run


def _first_line(*command: str) -> str:
    """The first line that a tool prints about its version, or that it is missing."""
    if shutil.which(command[0]) is None:
        return "not found"
    done = subprocess.run(command, capture_output=True, text=True)
    lines = (done.stdout or done.stderr).splitlines()
    return next((line for line in lines if "release" in line), lines[0] if lines else "no answer")


def _processor() -> str:
    with open("/proc/cpuinfo", encoding="utf-8") as file:
        return next((line.split(":")[1].strip() for line in file if "model name" in line), "")


def operator_table() -> dict[str, dict[str, str]]:
    """Operator → backend → "available" or the reason why not."""
    missing = _ext.reason or "not in the binary: build it again"
    table = {}
    for name in ops.__all__:
        api = importlib.import_module(f"openseg.ops.{name}.api")
        table[name] = {"reference": "available"}
        if hasattr(api, "_KERNEL"):
            table[name]["cpp"] = missing if api._KERNEL is None else "available"
        else:
            table[name]["cpp"] = "not written for this operator"
    return table


def collect() -> dict[str, Any]:
    """Everything that is printed, as plain types."""
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    capability = torch.ops.openseg.cpu_capability() if _ext.reason is None else "no kernels"
    return {
        "openseg": openseg.__version__,
        "os": platform.platform(),
        "python": sys.version.split()[0],
        "torch": torch.__version__,
        "torch CUDA": torch.version.cuda or "none",
        "GPUs": gpus,
        "processor": _processor() if platform.system() == "Linux" else platform.processor(),
        "threads": torch.get_num_threads(),
        "compiler": _first_line("c++", "--version"),
        "nvcc": _first_line("nvcc", "--version"),
        "kernels": _ext.reason or "loaded",
        "kernels' CPU capability": capability,
        "build": _ext.build_info(),
        "operators": operator_table(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(prog="openseg.collect_env", description=__doc__)
    parser.add_argument("--json", action="store_true", help="print JSON")
    facts = collect()
    if parser.parse_args().json:
        print(json.dumps(facts, indent=2))
        return
    table = facts.pop("operators")
    for name, value in facts.items():
        print(f"{name + ':':26}{value}")
    for operator, backends in table.items():
        print(f"\n{operator}")
        for backend, state in backends.items():
            print(f"  {backend:12}{state}")


if __name__ == "__main__":
    run(main)
