"""What this machine is: timings hold for it alone."""

from __future__ import annotations

import os
import platform
import re
from pathlib import Path
from typing import Any

import torch
import transformers

_SETTINGS = ("OMP_", "GOMP_", "KMP_", "MKL_", "DNNL_", "ONEDNN_", "ATEN_", "TORCH_", "PYTORCH_", "CUDA_", "CUBLAS_")
_MORE_SETTINGS = ("NVIDIA_TF32_OVERRIDE", "LD_PRELOAD", "MALLOC_")
"""How the names of environment variables begin that change how fast PyTorch computes."""
_NO_SETTINGS = ("KMP_DUPLICATE_LIB_OK", "KMP_INIT_AT_FORK")
"""Those that change nothing of the kind: scikit-learn sets them when it is imported, which may be in between."""


def cpu_name() -> str:
    """The model of the processor as the system names it; its architecture where it does not."""
    try:
        found = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(encoding="utf-8"), re.MULTILINE)
    except OSError:
        found = None
    return found[1].strip() if found else platform.processor() or platform.machine()


def timed_on(device: torch.device) -> dict[str, Any]:
    """All outside a model that its timings on `device` depend on: the hardware, the libraries, how they are set."""
    kernels = torch.backends
    return {
        "node": [platform.node(), platform.machine(), cpu_name(), _cores()],
        "device": [str(device), *_accelerator(device)],
        "versions": [transformers.__version__, torch.__version__, torch.version.cuda, torch.__config__.show()],
        "instructions": kernels.cpu.get_cpu_capability(),
        "threads": [torch.get_num_threads(), torch.get_num_interop_threads()],
        "precision": _precision(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "kernels": [kernels.mkldnn.enabled, kernels.cudnn.enabled, kernels.cudnn.benchmark, kernels.cudnn.version()],
        "attention": [
            kernels.cuda.flash_sdp_enabled(),
            kernels.cuda.mem_efficient_sdp_enabled(),
            kernels.cuda.math_sdp_enabled(),
        ],
        "environment": {
            name: value
            for name, value in os.environ.items()
            if name.startswith((*_SETTINGS, *_MORE_SETTINGS)) and name not in _NO_SETTINGS
        },
    }


def _accelerator(device: torch.device) -> tuple[Any, ...]:
    """The model of a GPU and how much of it there is: another may have the same index."""
    if device.type != "cuda":
        return ()
    found = torch.cuda.get_device_properties(device)
    return found.name, found.major, found.minor, found.multi_processor_count, found.total_memory


def _cores() -> int | None:
    """The cores that this process may use; all there are where the system does not say."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


def _precision() -> list[Any]:
    """How exactly float32 is multiplied."""
    kernels: Any = torch.backends
    if hasattr(kernels, "fp32_precision"):  # a PyTorch that has it raises where both ways to ask are mixed
        return [kernels.fp32_precision, kernels.cuda.matmul.fp32_precision, kernels.mkldnn.matmul.fp32_precision]
    return [torch.get_float32_matmul_precision()]
