"""Tables and provenance that the benchmark scripts share."""

from __future__ import annotations

import csv
import os
import platform
import resource
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

import captum
import torch
import torchvision

import captum_mi

_STARTED = time.perf_counter()


def elapsed() -> str:
    """Time since the script began."""
    return f"{time.perf_counter() - _STARTED:.0f} s"


def provenance(**settings: object) -> str:
    """One line: commit, versions, device, threads, memory and the script's settings."""
    return ", ".join([made_by(), f"peak memory {peak_memory()}",
                      *(f"{name} {value}" for name, value in settings.items())])


def made_by() -> str:
    """Commit, versions, device and threads."""
    return f"{versions()}, device {device_name()}"


def versions() -> str:
    """Commit and versions. The environment's ``COMMIT`` names the commit of a copy without git."""
    commit = os.environ.get("COMMIT") or subprocess.run(
        ["git", "describe", "--always", "--dirty"], cwd=Path(__file__).parent,
        capture_output=True, text=True,
    ).stdout.strip()
    parts = {
        "commit": commit or "unknown", "captum_mi": captum_mi.__version__,
        "torch": torch.__version__, "torchvision": torchvision.__version__,
        "captum": captum.__version__, "python": platform.python_version(),
    }
    return ", ".join(f"{name} {value}" for name, value in parts.items())


def device_name() -> str:
    """What everything runs on where there is a choice."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    return f"CPU ({platform.machine()}, {os.cpu_count()} cores, {torch.get_num_threads()} threads)"


def peak_memory() -> str:
    """The most memory that the process has held so far, and that CUDA has given out."""
    unit = 1 if platform.system() == "Darwin" else 1024
    held = f"{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9:.1f} GB"
    if torch.cuda.is_available():
        held += f" and {torch.cuda.max_memory_allocated() / 1e9:.1f} GB of CUDA"
    return held


def write_table(
    stem: Path, title: str, header: Sequence[str], rows: Sequence[Sequence[str]], note: str
) -> str:
    """Write ``stem.csv`` and ``stem.md``, and return the Markdown."""
    stem.parent.mkdir(parents=True, exist_ok=True)
    with open(stem.with_suffix(".csv"), "w", newline="") as file:
        csv.writer(file).writerows([header, *rows])
    lines = [f"# {title}", "", note, "", "| " + " | ".join(header) + " |",
             "|" + "---|" * len(header)]
    lines += ["| " + " | ".join(row) + " |" for row in rows]
    text = "\n".join(lines) + "\n"
    stem.with_suffix(".md").write_text(text)
    return text


def mean_and_error(values: torch.Tensor) -> str:
    """``mean +- standard error`` over the images."""
    values = values.double()
    return f"{values.mean():.3f} ± {values.std() / len(values) ** 0.5:.3f}"
