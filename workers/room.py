"""How much memory a model takes, and how much is free on the device that is to hold it."""

import json
import os
from math import prod
from pathlib import Path

import torch

MEMINFO = Path("/proc/meminfo")
BESIDE = 1.1  # what a model needs beside its weights: buffers, and room to begin with


def count_model_bytes(folder: Path, dtype: torch.dtype) -> int:
    """Of its weights once they are read in this type; 0 where it says nothing of them."""
    num_weights = sum(count_weights(file) for file in folder.glob("*.safetensors"))
    return int(BESIDE * num_weights * dtype.itemsize)


def count_weights(file: Path) -> int:
    with file.open("rb") as stream:
        header = json.loads(stream.read(int.from_bytes(stream.read(8), "little")))
    return sum(prod(header[name]["shape"]) for name in header.keys() - {"__metadata__"})


def count_free_bytes(device: str) -> int:
    """What could be taken now: also what torch keeps of models that have gone, or a page cache."""
    if device.startswith("cuda"):
        kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(torch.cuda.mem_get_info(device)[0]) + kept
    for line in MEMINFO.read_text().splitlines() if MEMINFO.exists() else ():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_AVPHYS_PAGES")
