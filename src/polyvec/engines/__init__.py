"""Engines run the network. Each reads a `Batch` and gives float32 numpy arrays.

Axes in this file: T tokens in the batch, S spans, D width.
"""

import ctypes
import importlib.util
import sys
from typing import Literal, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float32, Int32

from polyvec.batch import Batch
from polyvec.checkpoint import Weights
from polyvec.config import ModelConfig


@runtime_checkable
class Engine(Protocol):
    """What `Encoder` needs of an engine."""

    batch_tokens: int
    """How many tokens a batch should hold for the hardware to be at full speed."""

    @property
    def rope_base(self) -> float:
        """Of rotary positions; may be set at any time."""
        ...

    @rope_base.setter
    def rope_base(self, base: float) -> None: ...

    def hidden(self, batch: Batch) -> Float32[np.ndarray, "T D"]:
        """Every token's hidden state, in the batch's order."""
        ...

    def pool(
        self, batch: Batch, starts: Int32[np.ndarray, " S"], ends: Int32[np.ndarray, " S"]
    ) -> Float32[np.ndarray, "S D"]:
        """The mean hidden state of each span [start, end) of the batch's tokens, in float32."""
        ...

    def read(
        self, batch: Batch, starts: Int32[np.ndarray, " S"], ends: Int32[np.ndarray, " S"]
    ) -> tuple[Float32[np.ndarray, "T D"], Float32[np.ndarray, "S D"]]:
        """What `hidden` and `pool` give, to the bit, in one pass."""
        ...


def make_engine(
    config: ModelConfig,
    weights: Weights,
    device: str,
    precision: Literal["auto", "float32"],
    merge_row: int | None,
    prepack: bool | None = None,
) -> Engine:
    """The engine for a device: "cpu", "cuda", "cuda:N", or "auto" as `Encoder.load` has it.

    `prepack` is for the CPU's engine.
    """
    if device == "auto":
        device = "cuda" if _can_use_cuda() else "cpu"
    if device == "cpu":
        from polyvec.engines.openvino import OpenVINOEngine

        return OpenVINOEngine(
            config, weights, precision=precision, merge_row=merge_row, prepack=prepack
        )
    if device.split(":")[0] != "cuda":
        raise ValueError(f"device is {device!r}, must be 'auto', 'cpu', 'cuda' or 'cuda:N'")
    if importlib.util.find_spec("torch") is None:
        raise ValueError("device 'cuda' needs PyTorch: pip install 'polyvec[torch]'")
    from polyvec.engines.torch import TorchEngine

    return TorchEngine(config, weights, device=device, precision=precision, merge_row=merge_row)


def _can_use_cuda() -> bool:
    # Importing PyTorch takes seconds, so first look for what it would need.
    if importlib.util.find_spec("torch") is None:
        return False
    try:
        ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
    except OSError:
        return False
    import torch

    return torch.cuda.is_available()
