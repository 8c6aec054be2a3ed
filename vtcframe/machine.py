"""Descriptions of the hardware and software on which measurements run."""

import os
import platform
import re
from pathlib import Path

import torch
import transformers


def describe_hardware(device: str | torch.device) -> str:
    """Return the GPU, if the device is one, the CPU and the number of cores."""
    info = Path("/proc/cpuinfo")
    model = re.search(r"model name\s*: (.+)", info.read_text()) if info.exists() else None
    gpu = f"{torch.cuda.get_device_name(device)}, " if torch.device(device).type == "cuda" else ""
    return f"{gpu}{model[1] if model else platform.machine()}, {os.cpu_count()} cores"


def describe_machine(device: str | torch.device) -> str:
    """Return the hardware, the number of threads, the current load, and the versions of torch and transformers."""
    return (
        f"{describe_hardware(device)}, {torch.get_num_threads()} threads, load {os.getloadavg()[0]:.1f} at the start; "
        f"torch {torch.__version__}, transformers {transformers.__version__}"
    )
