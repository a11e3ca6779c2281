"""Whether a CPU has arithmetic in bfloat16.

Without it torch and oneDNN imitate it: a training takes 25 times as long as in fp32, a canvas 19
times. oneDNN's own answer (`mkldnn._is_mkldnn_bf16_supported`) is yes from AVX-512 on, whether or
not there are such instructions, so the CPU is asked.
"""

from __future__ import annotations

from pathlib import Path

CPUINFO = Path("/proc/cpuinfo")
FLAGS = {"avx512_bf16", "amx_bf16", "bf16"}  # of products in bf16: on x86 the first two, on Arm


def bf16_problem(precision: str, device: str) -> str:
    """Why this precision is none for a "cpu" or "cuda" here, or ''.

    By what the kernel tells of the first CPU (proc(5), cpuinfo); where it tells nothing, ''.
    """
    if precision != "bf16" or device != "cpu":
        return ""
    try:
        first = CPUINFO.read_text(errors="replace").split("\n\n")[0]
    except OSError:
        return ""
    told = [line for line in first.splitlines() if line.startswith(("flags", "Features"))]
    if not told or FLAGS & set(told[0].split()):
        return ""
    return "this CPU has no bf16 arithmetic"
