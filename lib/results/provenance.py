"""What made a result: the code, the parameters, what was loaded, the machine and what it can do.

A headless run notes its code when it begins, in `KVLAB_RUN`; of a run by hand it is what lies there
when the first result is saved, and its notebook and parameters are unknown (null).
"""

import importlib.metadata
import json
import os
import platform
import re
import subprocess
from argparse import ArgumentParser, Namespace
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any

import psutil
import torch

from lib.loaded import loaded
from lib.measure.machine import measure_machine
from lib.measure.memory import process_peaks, uncounted_memory

from .code import code_facts, utc_now

RUN = "KVLAB_RUN"
# what differs between two runs of the same thing
OF_THE_MOMENT = ("start", "seconds", "cpu_peak_mib", "gpu_peak_mib", "rates")
_ROOM = 4 * 2**30  # bytes that must be free to measure the rates


def entry(caption: str) -> dict[str, Any]:
    """All that is known of a result that is saved now."""
    code = json.loads(os.environ[RUN]) if RUN in os.environ else _by_hand()
    begin = datetime.fromisoformat(code["start"])
    models = loaded()["models"]
    return {
        "caption": caption,
        "notebook": os.environ.get("KVLAB_NOTEBOOK"),
        # of a headless run those that are not the defaults; unknown (null) for any other
        "parameters": json.loads(os.environ.get("KVLAB_PARAMETERS", "null")),
        **code,
        **loaded(),
        "packages": _packages(),
        "machine": machine_line(),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
        "rates": _rates(models[0]["device"] if models else "cpu"),
        "seconds": round((utc_now() - begin).total_seconds()),
        **{f"{kind}_peak_mib": round(peak) for kind, peak in process_peaks().items() if peak > 0},
    }


def run_by_script(script: str, parser: ArgumentParser, options: Namespace, *leave: str) -> None:
    """Note a script in its results' entries, and its options that are not the defaults.

    Those named by `leave` are left out.
    """
    changed = {k: v for k, v in vars(options).items() if v != parser.get_default(k)}
    for name in leave:
        changed.pop(name, None)
    os.environ |= {"KVLAB_NOTEBOOK": script, "KVLAB_PARAMETERS": json.dumps(changed)}


def lasting(entry: dict[str, Any]) -> dict[str, Any]:
    """An entry less what another run of the same thing would give otherwise."""
    return {name: fact for name, fact in entry.items() if name not in OF_THE_MOMENT}


def in_short(entry: dict[str, Any]) -> str:
    """A run in one line: commit, models, texts."""
    commit = (entry["commit"] or "no commit")[:7] + (", changed" if entry["dirty"] else "")
    return " · ".join([f"KV Lab {commit}", *subject(entry)])


def subject(entry: dict[str, Any]) -> list[str]:
    """What a run was of: its models, its texts, as far as there are any."""
    models = dict.fromkeys(model["name"] for model in entry["models"])
    # a split is one of what the reference model was trained on: it says nothing of others
    own = models.keys() <= {"reference"}
    texts = (f"{x['name']} ({x['split']})" if own else x["name"] for x in entry["texts"])
    return [part for part in (", ".join(models), ", ".join(dict.fromkeys(texts))) if part]


@cache
def machine_line() -> str:
    """The machine in one line: processor, memory, GPU, and the two versions that matter."""
    parts = [f"{_cpu_model()}, {psutil.cpu_count()} cores"]
    parts.append(f"{psutil.virtual_memory().total / 2**30:.0f} GiB RAM")
    parts.append(torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU")
    parts += [f"{name} {importlib.metadata.version(name)}" for name in ("torch", "transformers")]
    return "; ".join(parts)


def _cpu_model() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    if platform.system() == "Darwin":
        command = ["sysctl", "-n", "machdep.cpu.brand_string"]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    return platform.machine()


@cache
def _by_hand() -> dict[str, Any]:
    """The code facts of a run that nothing began: it starts with the process."""
    start = datetime.fromtimestamp(psutil.Process().create_time(), UTC)
    return code_facts() | {"start": start.replace(microsecond=0).isoformat()}


@cache
def _packages() -> str:
    """The required packages as pip would take them, `accelerate==1.14.0 click==8.3.1 ...`."""
    needed = [
        line for line in importlib.metadata.requires("kv-lab") or [] if "extra ==" not in line
    ]
    names = sorted(re.match(r"[\w.-]+", line)[0] for line in needed)
    return " ".join(f"{name}=={importlib.metadata.version(name)}" for name in names)


@cache
def _rates(device: str) -> dict[str, Any] | None:
    """Bytes read and FLOP a second in 10^9, float32; None where memory is too full to measure."""
    on_gpu = device.startswith("cuda")
    free = torch.cuda.mem_get_info(device)[0] if on_gpu else psutil.virtual_memory().available
    if free < _ROOM or not (on_gpu or device == "cpu"):
        return None
    cuda_devices = range(torch.cuda.device_count()) if on_gpu else []
    with torch.random.fork_rng(cuda_devices), uncounted_memory():
        machine = measure_machine(device, seconds=0.2)
    rates = {"gb_per_s": machine.bandwidth / 1e9, "gflop_per_s": machine.gemm / 1e9}
    return {"device": device, **{name: float(f"{rate:.3g}") for name, rate in rates.items()}}
