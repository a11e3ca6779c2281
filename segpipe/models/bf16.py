"""Whether a CPU has arithmetic in bfloat16.

Without it torch and oneDNN imitate it: a training takes 25 times as long as in fp32, a canvas 19
times. oneDNN's own answer (`mkldnn._is_mkldnn_bf16_supported`) is yes from AVX-512 on, whether or
not there are such instructions, so the CPU is asked.
"""

from __future__ import annotations

from segpipe.kernels.native import instruction_sets

BF16 = {"avx512_bf16", "amx_bf16", "bf16"}  # of products in bf16: on x86 the first two, on Arm


def bf16_problem(precision: str, device: str) -> str:
    """Why there is no such precision for a "cpu" or "cuda" here, or ''.

    By what Linux tells of the first core; where it tells nothing, ''.
    """
    if precision != "bf16" or device != "cpu":
        return ""
    told = instruction_sets()
    return "this CPU has no bf16 arithmetic" if told and not BF16 & told else ""
