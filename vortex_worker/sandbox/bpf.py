"""Runs a seccomp program without the kernel: the classic-BPF instructions that such programs are made of.

So one can ask of any call with any arguments what the kernel would do, without dying of the answer. The
instruction set is that of ``Documentation/networking/filter.rst``, as far as seccomp(2) admits it.
"""

from __future__ import annotations

import platform
import struct
from collections.abc import Callable

X86_64 = 0xC000003E  # AUDIT_ARCH_X86_64
I386 = 0x40000003
AARCH64 = 0xC00000B7
ARM = 0x40000028
NATIVE = {"x86_64": X86_64, "aarch64": AARCH64}.get(platform.machine(), 0)
X32_BIT = 0x4000_0000

LD_ABS, LD_IMM, LDX_IMM, LD_MEM, LDX_MEM, ST, STX = 0x20, 0x00, 0x01, 0x60, 0x61, 0x02, 0x03
RET_K, RET_A, TAX, TXA = 0x06, 0x16, 0x07, 0x87
JA = 0x05

_JUMPS: dict[int, Callable[[int, int], bool]] = {
    0x10: lambda a, b: a == b,
    0x20: lambda a, b: a > b,
    0x30: lambda a, b: a >= b,
    0x40: lambda a, b: bool(a & b),
}
_ALU: dict[int, Callable[[int, int], int]] = {
    0x00: lambda a, b: a + b,
    0x10: lambda a, b: a - b,
    0x20: lambda a, b: a * b,
    0x30: lambda a, b: a // b,
    0x40: lambda a, b: a | b,
    0x50: lambda a, b: a & b,
    0x60: lambda a, b: a << b,
    0x70: lambda a, b: a >> b,
    0xA0: lambda a, b: a ^ b,
}

ACTIONS = {
    0x8000_0000: "kill_process",
    0x0000_0000: "kill_thread",
    0x0003_0000: "trap",
    0x0005_0000: "errno",
    0x7FC0_0000: "notify",
    0x7FF0_0000: "trace",
    0x7FFC_0000: "log",
    0x7FFF_0000: "allow",
}


class Machine:
    """One loaded program: an array of ``struct sock_filter``, in the machine's byte order."""

    def __init__(self, code: bytes) -> None:
        if len(code) % 8 or not code:
            raise ValueError("not an array of instructions")
        self.program = list(struct.iter_unpack("=HBBI", code))

    def decide(self, number: int, args: tuple[int, ...] = (0,) * 6, arch: int = NATIVE) -> tuple[str, int]:
        """``(action, data)`` for one call: data is the errno of an ``errno``."""
        # struct seccomp_data: int nr; u32 arch; u64 instruction_pointer; u64 args[6]
        data = struct.pack("=IIQ6Q", number & 0xFFFF_FFFF, arch, 0x1000, *args)
        value = self.run(data)
        return ACTIONS[value & 0xFFFF_0000], value & 0xFFFF

    def run(self, data: bytes) -> int:
        a = x = pc = 0
        memory = [0] * 16
        for _ in range(len(self.program)):  # jumps go forward only, so it can't take longer
            code, jt, jf, k = self.program[pc]
            pc += 1
            if code == LD_ABS:
                (a,) = struct.unpack_from("=I", data, k)
            elif code == LD_IMM:
                a = k
            elif code == LDX_IMM:
                x = k
            elif code == LD_MEM:
                a = memory[k]
            elif code == LDX_MEM:
                x = memory[k]
            elif code == ST:
                memory[k] = a
            elif code == STX:
                memory[k] = x
            elif code == TAX:
                x = a
            elif code == TXA:
                a = x
            elif code == JA:
                pc += k
            elif code & 0x07 == 0x05:
                pc += jt if _JUMPS[code & 0xF0](a, x if code & 0x08 else k) else jf
            elif code & 0x07 == 0x04:
                a = _ALU[code & 0xF0](a, x if code & 0x08 else k) & 0xFFFF_FFFF
            elif code == RET_K:
                return int(k)
            elif code == RET_A:
                return a
            else:
                raise ValueError(f"instruction {pc - 1} has code {code:#x}, which seccomp does not admit")
        raise ValueError("the program ended without an answer")
