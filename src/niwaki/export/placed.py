"""A model where another engine runs it, and what it takes there."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil
from transformers import PreTrainedModel

from niwaki.errors import WorkError


@dataclass(frozen=True)
class Placed:
    """`model` is like the one that was placed, with the forward pass of the engine, which reads `file`.

    Of its matrices `in_float32` were spared where others were rounded.
    """

    model: PreTrainedModel
    file: Path
    in_float32: int = 0

    @property
    def size_bytes(self) -> int:
        """Bytes of the file, with what lies beside it under its name."""
        return sum(each.stat().st_size for each in self.file.parent.glob(f"{self.file.stem}.*"))


def folder_of(model: PreTrainedModel) -> Path:
    """A new folder for the file of `model`, which goes when nobody holds the model any more."""
    folder = tempfile.mkdtemp(prefix="niwaki-")
    weakref.finalize(model, shutil.rmtree, folder, ignore_errors=True)
    return Path(folder)


_ROW = 16


def resident_bytes(files: Sequence[Path]) -> list[int]:
    """For each file of an engine, how many more bytes a process holds once it has loaded it and read `_ROW` tokens.

    It is a process of its own, which loads one after the other and lets none of them go.

    Raises:
        WorkError: that process failed.
    """
    code = "import sys; from niwaki.export.placed import _tell_memory; _tell_memory(sys.argv[1:])"
    done = subprocess.run([sys.executable, "-c", code, *map(str, files)], capture_output=True, text=True)
    if done.returncode:
        raise WorkError(f"engine: memory could not be measured: {' '.join(done.stderr.split())[-300:]}")
    return [int(line) for line in done.stdout.split()]


def _tell_memory(files: list[str]) -> None:
    """Print for each file how many more bytes this process holds with it."""
    if files[0].endswith(".onnx"):
        import onnxruntime  # noqa: F401 - what the libraries hold is not the model's

        from niwaki.export.onnx.session import Session as Engine
    elif files[0].endswith(".xml"):
        import openvino  # noqa: F401

        from niwaki.export.openvino.session import Session as Engine
    else:
        import cyllama.llama.llama_cpp  # noqa: F401

        from niwaki.export.gguf.llama_cpp import Session as Engine
    process, held = psutil.Process(), []
    for file in files:
        before = process.memory_info().rss
        held.append(Engine(Path(file)))
        held[-1].read_row(_ROW)
        print(process.memory_info().rss - before)
