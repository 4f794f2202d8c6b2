"""A fit on disk: one safetensors file, with everything that is not a tensor in its metadata."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import captum
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from captum_mi.version import __version__

__all__ = ["FORMAT", "read", "write"]

#: Version of the file format.
FORMAT = 10

_KEY = "captum_mi"


def write(path: str | Path, tensors: dict[str, Tensor], state: dict[str, Any]) -> None:
    """Write tensors and a JSON-able state to a file."""
    versions = {
        "captum_mi": __version__, "captum": captum.__version__, "torch": torch.__version__
    }
    if not Path(path).absolute().parent.is_dir():
        raise FileNotFoundError(f"there is no folder for {str(path)!r}; make it first")
    if Path(path).is_dir():
        raise IsADirectoryError(f"{str(path)!r} is a folder; name a file in it")
    document = {"format": FORMAT, "versions": versions, **state}
    # Clones: safetensors refuses tensors that share memory, as tied weights do.
    saved = {name: value.detach().cpu().contiguous().clone() for name, value in tensors.items()}
    save_file(saved, str(path), metadata={_KEY: json.dumps(document)})


def read(path: str | Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read what :func:`write` wrote.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if the file is corrupted, or is not a fit of this package and format.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"no checkpoint at {str(path)!r}")
    try:
        with safe_open(str(path), framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise ValueError(
            f"{str(path)!r} is corrupted, or not a safetensors file: {error}"
        ) from error
    if _KEY not in metadata:
        raise ValueError(
            f"{str(path)!r} is a safetensors file, but not a captum_mi fit: its metadata has no "
            f"{_KEY!r} entry. Files written by .save(path) have one"
        )
    state: dict[str, Any] = json.loads(metadata[_KEY])
    if state.get("format") != FORMAT:
        raise ValueError(
            f"{str(path)!r} has format {state.get('format')}; this version of captum_mi reads "
            f"format {FORMAT}"
        )
    return tensors, state
