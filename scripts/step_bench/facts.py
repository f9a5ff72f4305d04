"""What the figures depend on: machine, versions, commit; no names of hosts or folders."""

import os
import platform
from datetime import UTC, datetime
from pathlib import Path

import torch

from psgd_optim.tools import source


def machine() -> str:
    """Return the processor's name and the number of cores."""
    return f"{_processor()}, {os.cpu_count()} cores, {torch.backends.cpu.get_cpu_capability()}"


def _processor() -> str:
    listing = Path("/proc/cpuinfo")
    if listing.is_file():
        for line in listing.read_text(encoding="utf-8").splitlines():
            key, _, value = line.partition(":")
            if key.strip() == "model name":
                return value.strip()
    return platform.processor() or platform.machine()


def device_name(device: torch.device) -> str:
    """Return what a device is."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def today() -> str:
    """Return the date."""
    return datetime.now(UTC).strftime("%Y-%m-%d")


def commit() -> str | None:
    """Return the short commit of the toolkit, marked if files differ from it."""
    name = source.commit()
    return name and name[:7] + (" with changes" if name.endswith(source.DIRTY) else "")
