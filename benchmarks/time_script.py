"""Wall time and peak memory of a script, added as a row to a table.

    python benchmarks/time_script.py --name "STL-10, ResNet-50" \
        examples/stl10_resnet50.py --data stl10 --weights resnet50.pt

Writes ``OUT.csv`` and ``OUT.md``; a row of the same name and device is replaced.
"""

from __future__ import annotations

import argparse
import csv
import runpy
import sys
import time
from pathlib import Path

from report import device_name, peak_memory, versions, write_table

HEADER = ["script", "device", "wall time, s", "peak memory", "commit and versions"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--name", required=True, help="of the row")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/scripts"))
    parser.add_argument("script")
    parser.add_argument("arguments", nargs=argparse.REMAINDER)
    options = parser.parse_args()
    sys.argv = [options.script, *options.arguments]
    sys.path.insert(0, str(Path(options.script).parent))
    start = time.perf_counter()
    runpy.run_path(options.script, run_name="__main__")
    seconds = time.perf_counter() - start
    row = [options.name, device_name(), f"{seconds:.0f}", peak_memory(), versions()]
    print(write_table(options.out, "Scripts", HEADER, [*others(options.out, row), row], ""))


def others(out: Path, row: list[str]) -> list[list[str]]:
    """Rows of an earlier table that this one does not replace."""
    path = out.with_suffix(".csv")
    if not path.exists():
        return []
    with path.open(newline="") as file:
        return [one for one in list(csv.reader(file))[1:] if one[:2] != row[:2]]


if __name__ == "__main__":
    main()
