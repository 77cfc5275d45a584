"""What a result depends on besides the code: the processor, its cores, versions, memory."""
import contextlib
import os
import platform
from importlib import metadata
from pathlib import Path

CPUINFO = Path("/proc/cpuinfo")
# Flags of x86 processors that decide what XLA compiles for them, the widest first.
VECTORS = {"amx_bf16": "AMX", "avx512_bf16": "AVX-512 BF16", "avx512f": "AVX-512", "avx2": "AVX2"}
# Variables of the environment that choose other machine code for the same program.
FLAGS = ("XLA_FLAGS", "LIBTPU_INIT_ARGS", "PJRT_NPROC", "NPROC", "NVIDIA_TF32_OVERRIDE",
         "CUBLAS_WORKSPACE_CONFIG", "NPY_DISABLE_CPU_FEATURES", "GLIBC_TUNABLES")


def _cpuinfo(*keys):
    """The first value that /proc/cpuinfo has for each key; "" where it says nothing."""
    lines = CPUINFO.read_text("utf-8", "replace").splitlines() if CPUINFO.exists() else []
    return [next((line.split(":", 1)[1].strip() for line in lines if line.startswith(key)), "")
            for key in keys]


def _cpu():
    """The processor's name and its widest vectors: clouds sell unlike ones under one name."""
    name, flags = _cpuinfo("model name", "flags")
    vectors = next((name for flag, name in VECTORS.items() if flag in flags.split()), "")
    name = name or platform.processor() or platform.machine()
    return f"{name} with {vectors}" if vectors else name


def has_fast_bfloat16():
    """Whether bfloat16 products were measured to be faster than float32's on such a processor.

    On AMD with AVX-512 BF16 an epoch takes 0.73 of a float32 one; on Intel Sapphire Rapids, which
    has the same flags, 1.75. What was not measured is not fast.
    """
    vendor, flags = _cpuinfo("vendor_id", "flags")
    return vendor == "AuthenticAMD" and "avx512_bf16" in flags.split()


def _flags():
    """What FLAGS are set to, less the words that only write files."""
    given = {name: " ".join(word for word in os.environ.get(name, "").split()
                            if not word.startswith("--xla_dump")) for name in FLAGS}
    return {name: text for name, text in given.items() if text}


def environment():
    """What a result depends on besides the code: a dict for results/*.json."""
    cores = os.cpu_count()
    if hasattr(os, "sched_getaffinity"):
        cores = len(os.sched_getaffinity(0))    # those that this process may use
    versions = {}
    for name in ("jax", "jaxlib", "numpy", "optax"):
        with contextlib.suppress(metadata.PackageNotFoundError):    # inference needs NumPy alone
            versions[name] = metadata.version(name)
    return {"cpu": _cpu(), "cores": cores, "platform": f"{platform.system()} {platform.machine()}",
            "python": platform.python_version(), **versions, **_flags()}


def peak_memory():
    """The most memory that this process had resident, in bytes; None where Linux does not say."""
    status = Path("/proc/self/status")          # not getrusage: that inherits its parent's peak
    lines = status.read_text("utf-8", "replace").splitlines() if status.exists() else []
    return next((1024 * int(line.split()[1]) for line in lines if line.startswith("VmHWM")), None)
