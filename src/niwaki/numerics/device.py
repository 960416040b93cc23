"""Where to compute: a device by its name, if it is there."""

from __future__ import annotations

import torch

from niwaki.errors import RequestError

AUTO = "auto"


def device_named(name: str) -> torch.device:
    """The device that `name` stands for; of `auto` the GPU that CUDA works on, where there is one, else the CPU.

    Raises:
        RequestError: no such device here, with those that there are.
    """
    there = ["cpu", *(f"cuda:{number}" for number in range(torch.cuda.device_count()))]
    there += ["mps"] * torch.backends.mps.is_available()
    if name == AUTO:
        return torch.device("cuda" if len(there) > 1 and there[1] == "cuda:0" else "cpu")
    try:
        torch.empty(1, device=name)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        said = f"device must be {AUTO} or one that this PyTorch can use here ({', '.join(there)})"
        raise RequestError(f"{said}, got {name!r}") from error
    return torch.device(name)
