"""TODO: vtcframe/machine.py."""

import os
import platform
import re
from pathlib import Path

import torch
import transformers


def describe_hardware(device: str | torch.device) -> str:
    """Tell the device, where it is no CPU, and the CPU."""
    info = Path("/proc/cpuinfo")
    found = re.search(r"model name\s*: (.+)", info.read_text()) if info.exists() else None
    gpu = f"{torch.cuda.get_device_name(device)}, " if torch.device(device).type == "cuda" else ""
    return f"{gpu}{found[1] if found else platform.machine()}, {os.cpu_count()} cores"


def describe_machine(device: str | torch.device) -> str:
    """Tell what the figures are taken on."""
    return (
        f"{describe_hardware(device)}, {torch.get_num_threads()} threads, load {os.getloadavg()[0]:.1f} at the start; "
        f"torch {torch.__version__}, transformers {transformers.__version__}"
    )
