"""Calls YOSO's CPU kernel through ctypes, output and workspace pre-filled and guarded, as `native` does MRA's."""

from __future__ import annotations

import ctypes

import torch
from cpu_kernels import DTYPES, GUARD, choose_isa, kernel
from torch import Tensor

from mra_export.operators.yoso_attention.spec import YosoAttentionAttributes


class YosoParams(ctypes.Structure):
    """`mra::YosoAttentionParams`, field by field."""

    _fields_ = (
        *(
            (name, ctypes.c_void_p)
            for name in ("query", "key", "value", "attention_mask", "hash_constants", "conv_weight")
        ),
        ("context", ctypes.c_void_p),
        ("batch", ctypes.c_int64),
        ("seq_len", ctypes.c_int64),
        ("hidden_size", ctypes.c_int64),
        ("dtype", ctypes.c_int32),
        *((name, ctypes.c_int64) for name in YosoAttentionAttributes.__dataclass_fields__),
    )


def validate(params: YosoParams) -> None:
    """ValueError with the kernel's message where it refuses the params."""
    message = ctypes.create_string_buffer(512)
    if not kernel().mra_test_yoso_validate(ctypes.byref(params), message, ctypes.c_size_t(len(message))):
        raise ValueError(message.value.decode())


def run_yoso(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor,
    attributes: YosoAttentionAttributes,
    *constants: Tensor,
    isa: str = "",
    threads: int = 2,
    fill: int = 0xFF,
) -> Tensor:
    """The operator's context [batch, seq_len, hidden_size]; see `native.run_kernel`."""
    library = kernel()
    query, key, value = (tensor.contiguous() for tensor in (query, key, value))
    mask = mask.to(torch.int32).contiguous()
    named = dict(zip(attributes.inputs()[4:], constants, strict=True))
    if "conv_weight" in named:
        named["conv_weight"] = named["conv_weight"].to(query.dtype)
    size = query.numel() * query.element_size()
    context = torch.full((size + 2 * GUARD,), fill, dtype=torch.uint8)
    params = YosoParams(
        query=query.data_ptr(),
        key=key.data_ptr(),
        value=value.data_ptr(),
        attention_mask=mask.data_ptr(),
        context=context.data_ptr() + GUARD,
        batch=query.shape[0],
        seq_len=query.shape[1],
        hidden_size=query.shape[2],
        dtype=DTYPES[query.dtype],
        **{name: tensor.data_ptr() for name, tensor in named.items()},
        **attributes.as_dict(),
    )
    validate(params)
    library.mra_test_yoso_workspace_size.restype = ctypes.c_size_t
    needed = library.mra_test_yoso_workspace_size(ctypes.byref(params), ctypes.c_int32(choose_isa(isa)))
    workspace = torch.full((needed + 2 * GUARD + 4,), fill, dtype=torch.uint8)
    start = ctypes.c_void_p(workspace.data_ptr() + GUARD + 4)  # four bytes off: the kernel aligns its workspace itself
    library.mra_test_yoso_run(ctypes.byref(params), start, ctypes.c_int32(choose_isa(isa)), ctypes.c_int(threads))
    for name, buffer, end in (("context", context, GUARD + size), ("workspace", workspace, GUARD + 4 + needed)):
        assert bool((buffer[:GUARD] == fill).all()), f"{name}: written before its start"
        assert bool((buffer[end:] == fill).all()), f"{name}: written after its end"
    return context[GUARD : GUARD + size].clone().view(query.dtype).view(query.shape)
