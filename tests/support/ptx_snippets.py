"""Runs a few lines of PTX in one warp: every lane has its own words in registers before and after."""

from __future__ import annotations

import ctypes
from typing import NamedTuple

import cuda_host
import numpy as np
from cuda_ptx import load
from numpy.typing import NDArray
from ptx_source import find_kernels

LANES = 32
SHARED_BYTES = 1024
Words = NDArray[np.uint32]
TEMPLATE = """.version 8.0
.target sm_80
.address_size 64
.extern .shared .align 128 .b8 sm[];
.visible .entry snippet(
.param .u64 snippet_param_0,
.param .u64 snippet_param_1
)
{{
.reg .pred %p<8>;
.reg .b16 %rs<16>;
.reg .b32 %r<64>;
.reg .f32 %f<16>;
.reg .b64 %rd<16>;
ld.param.u64 %rd1, [snippet_param_0];
ld.param.u64 %rd2, [snippet_param_1];
mov.u32 %r1, %tid.x;
mul.wide.u32 %rd3, %r1, 64;
add.s64 %rd4, %rd1, %rd3;
add.s64 %rd5, %rd2, %rd3;
{loads}
{body}
{stores}
ret;
}}
"""


class Snippet(NamedTuple):
    """Lines of PTX. The inputs are in %r10 and on, the results in %r40 and on; %r1 is the lane, sm the shared memory."""

    body: str
    inputs: tuple[Words, ...]  # one word of each lane
    results: tuple[Words, ...]  # what is expected


def module(body: str, inputs: int = 0, results: int = 0) -> str:
    """A PTX file with the kernel `snippet`."""
    loads = "\n".join(f"ld.global.u32 %r{10 + i}, [%rd4+{4 * i}];" for i in range(inputs))
    stores = "\n".join(f"st.global.u32 [%rd5+{4 * i}], %r{40 + i};" for i in range(results))
    return TEMPLATE.format(body=body, loads=loads, stores=stores)


def compile_snippets(snippets: dict[str, Snippet]) -> dict[str, int]:
    """The addresses of the snippets, compiled together."""
    texts = []
    for name, (body, inputs, results) in snippets.items():
        (text,) = find_kernels(module(body, len(inputs), len(results)).replace("snippet", f"snippet_{name}")).values()
        texts.append(text)
    return {name.removeprefix("snippet_"): address for name, address in load(texts).items()}


def run(address: int, inputs: tuple[Words, ...], results: int) -> list[Words]:
    """The results of a compiled snippet."""
    given, taken = (np.zeros((LANES, 16), dtype=np.uint32) for _ in range(2))
    for i, words in enumerate(inputs):
        given[:, i] = words
    pointers = (ctypes.c_uint64 * 2)(given.ctypes.data, taken.ctypes.data)
    parameters = (ctypes.c_void_p * 2)(*(ctypes.addressof(pointers) + 8 * i for i in range(2)))
    cuda_host.library().mra_ptx_run(ctypes.c_void_p(address), 1, LANES, ctypes.c_uint64(SHARED_BYTES), parameters)
    return [taken[:, i].copy() for i in range(results)]
