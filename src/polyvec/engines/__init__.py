"""Engines run the network: a `Batch` in, float32 numpy arrays out.

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
    """The interface between `Encoder` and an engine."""

    batch_tokens: int
    """Tokens that a batch should hold to use the hardware fully."""

    @property
    def rope_base(self) -> float:
        """Base of the rotary angles. It may be set at any time."""
        ...

    @rope_base.setter
    def rope_base(self, base: float) -> None: ...

    def hidden(self, batch: Batch) -> Float32[np.ndarray, "T D"]:
        """The hidden state of every token, in the order of the batch."""
        ...

    def pool(
        self, batch: Batch, starts: Int32[np.ndarray, " S"], ends: Int32[np.ndarray, " S"]
    ) -> Float32[np.ndarray, "S D"]:
        """The mean hidden state of each span [start, end) of the batch's tokens, in float32."""
        ...

    def hidden_and_pool(
        self, batch: Batch, starts: Int32[np.ndarray, " S"], ends: Int32[np.ndarray, " S"]
    ) -> tuple[Float32[np.ndarray, "T D"], Float32[np.ndarray, "S D"]]:
        """The results of `hidden` and `pool`, bit for bit, from one forward pass."""
        ...


def make_engine(
    config: ModelConfig,
    weights: Weights,
    device: str,
    precision: Literal["auto", "float32"],
    merge_adapter: int | None,
    prepack: bool | None = None,
    num_threads: int | None = None,
) -> Engine:
    """The engine for a device: "cpu", "cuda", "cuda:N", or "auto" (see `Encoder.load`).

    `merge_adapter` is the index of the adapter that is added to the weights; `prepack` and
    `num_threads` concern the CPU engine only. Raises ValueError for an unknown device, or if
    PyTorch is missing.
    """
    if device == "auto":
        device = "cuda" if _can_use_cuda() else "cpu"
    if device == "cpu":
        from polyvec.engines.openvino import OpenVINOEngine

        return OpenVINOEngine(
            config,
            weights,
            precision=precision,
            num_threads=num_threads,
            merge_adapter=merge_adapter,
            prepack=prepack,
        )
    if device.split(":")[0] != "cuda":
        raise ValueError(f"device is {device!r}, must be 'auto', 'cpu', 'cuda' or 'cuda:N'")
    if importlib.util.find_spec("torch") is None:
        raise ValueError("device 'cuda' needs PyTorch: pip install 'polyvec[torch]'")
    from polyvec.engines.torch import TorchEngine

    return TorchEngine(
        config, weights, device=device, precision=precision, merge_adapter=merge_adapter
    )


def check_adapters(batch: Batch, merge_adapter: int) -> None:
    """Raise ValueError if a text does not use the adapter that is merged into the weights."""
    if (batch.adapter_ids != merge_adapter).any():
        raise ValueError(f"this engine's weights are merged with adapter {merge_adapter}")


def _can_use_cuda() -> bool:
    # Importing PyTorch takes seconds, so first check that the driver is there.
    if importlib.util.find_spec("torch") is None:
        return False
    try:
        ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
    except OSError:
        return False
    import torch

    return torch.cuda.is_available()
