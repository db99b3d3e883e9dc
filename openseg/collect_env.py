# SPDX-License-Identifier: MIT
"""Prints what a bug report needs: `python -m openseg.collect_env`, with --json for machines.

The table says for each operator and backend whether it can run here, or why not.
"""

import argparse
import json

from openseg.cli import run
from openseg.engine.environment import collect


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
