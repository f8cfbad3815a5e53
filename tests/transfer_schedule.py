"""Which computation overlaps a transfer between devices, read off the compiler's schedule.

An asynchronous collective-permute is two instructions, a start and a done; what the schedule puts between them runs
while the block travels.
"""

import dataclasses
import re

from alm_jax.bench.hlo import Instruction, parse

START, DONE = "collective-permute-start", "collective-permute-done"
LOOP = "while"
KERNEL = re.compile(r'custom_call_target="(tpu_custom_call|mosaic_gpu[\w.]*|__gpu\$xla\.gpu\.triton)"')


@dataclasses.dataclass(frozen=True)
class Transfer:
    """One collective-permute of a program."""

    computation: str
    """Name of the computation that contains it, such as the body of the ring's loop."""
    start: str
    """Name of its start instruction."""
    shape: str
    """Shape of the transferred array, ``bf16[1024,512]``."""
    loops: tuple[str, ...]
    """Number of loops that run between its start and its done."""
    kernels: tuple[str, ...]
    """Number of Pallas kernels between its start and its done."""
    products: tuple[str, ...]
    """Number of products (convolutions, and fusions into one) between its start and its done."""

    @property
    def is_overlapped(self) -> bool:
        """Whether a loop, a kernel or a product runs during the transfer."""
        return bool(self.loops or self.kernels or self.products)


def transfers(text: str) -> list[Transfer]:
    """Returns every collective-permute of ``compiled.as_text()``, in program order.

    Raises ValueError where the module is not scheduled, since then the order means nothing.
    """
    module = parse(text)
    if not module.is_scheduled:
        raise ValueError(
            "the module is not scheduled: take the text of a compiled, not of a lowered, program"
        )
    found = []
    for name, lines in module.computations.items():
        for index, line in enumerate(lines):
            if line.opcode == START:
                found.append(_transfer(name, lines, index))
            elif line.opcode == "collective-permute":
                found.append(Transfer(name, line.name, _shape(line), (), (), ()))
    return found


def _transfer(computation: str, lines: list[Instruction], index: int) -> Transfer:
    start = lines[index]
    between: list[Instruction] = []
    for line in lines[index + 1 :]:
        if line.opcode == DONE and line.takes(start.name):
            break
        between.append(line)
    return Transfer(
        computation=computation,
        start=start.name,
        shape=_shape(start),
        loops=tuple(line.name for line in between if line.opcode == LOOP),
        kernels=tuple(line.name for line in between if KERNEL.search(line.text)),
        products=tuple(
            line.name
            for line in between
            if line.opcode in ("convolution", "dot")
            or (line.opcode == "fusion" and "kind=kOutput" in line.text)
        ),
    )


def _shape(line: Instruction) -> str:
    """Returns the first shape of its type, without layout."""
    found = re.search(r"\w+\[[\d,]*\]", line.type)
    return found.group() if found else line.type
