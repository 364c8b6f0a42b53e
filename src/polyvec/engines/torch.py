"""The GPU engine, and the numerical reference on the CPU: `polyvec.network` in PyTorch.

Axes in this file: T tokens in the batch, S spans, D width.
"""

from typing import Literal

import ml_dtypes
import numpy as np
import torch
from jaxtyping import Float, Float32, Int32
from torch import Tensor

from polyvec.batch import Batch
from polyvec.checkpoint import Int8Matrix, Weights
from polyvec.config import ModelConfig
from polyvec.network import Network, pool


class TorchEngine:
    """Runs batches with PyTorch: bf16 with packed attention on CUDA, float32 on the CPU."""

    def __init__(
        self,
        config: ModelConfig,
        weights: Weights,
        *,
        device: str = "cpu",
        precision: Literal["auto", "float32"] = "auto",
        merge_row: int | None = None,
    ) -> None:
        """Copy the weights to the device.

        `precision` "auto" is bf16 on CUDA. `merge_row` adds that adapter to the weights, for an
        engine whose texts all use it: other rows are then a ValueError.
        """
        self.config = config
        self.device = torch.device(device)
        self.merge_row = merge_row
        on_cuda = self.device.type == "cuda"
        self.batch_tokens = 65_536 if on_cuda else 8_192
        dtype = torch.bfloat16 if on_cuda and precision == "auto" else torch.float32
        with torch.device("meta"):
            self.network = Network(config)
        state = {
            name: _to_tensor(weights[name]).to(self.device, dtype)
            for name in self.network.state_dict()
        }
        self.network.load_state_dict(state, assign=True)
        self.network.requires_grad_(False).eval()
        if merge_row is not None:
            self.network.merge(merge_row)

    @property
    def rope_base(self) -> float:
        """May be set at any time: 10,000 while training, the config's when encoding."""
        return self.network.rope_base

    @rope_base.setter
    def rope_base(self, base: float) -> None:
        self.network.rope_base = base

    def hidden(self, batch: Batch) -> Float32[np.ndarray, "T D"]:
        """Every token's hidden state, in the batch's order."""
        return self._forward(batch).float().cpu().numpy()

    def pool(
        self, batch: Batch, starts: Int32[np.ndarray, " S"], ends: Int32[np.ndarray, " S"]
    ) -> Float32[np.ndarray, "S D"]:
        """The mean hidden state of each span [start, end) of the batch's tokens."""
        hidden = self._forward(batch)
        # Only the pooled vectors leave the device.
        return pool(hidden, self._indices(starts), self._indices(ends)).cpu().numpy()

    def read(
        self, batch: Batch, starts: Int32[np.ndarray, " S"], ends: Int32[np.ndarray, " S"]
    ) -> tuple[Float32[np.ndarray, "T D"], Float32[np.ndarray, "S D"]]:
        """What `hidden` and `pool` give, in one pass."""
        hidden = self._forward(batch)
        pooled = pool(hidden, self._indices(starts), self._indices(ends))
        return hidden.float().cpu().numpy(), pooled.cpu().numpy()

    @torch.inference_mode()
    def _forward(self, batch: Batch) -> Float[Tensor, "T D"]:
        rows = batch.adapter_ids
        if self.merge_row is not None:
            if (rows != self.merge_row).any():
                raise ValueError(f"this engine's weights are merged with adapter {self.merge_row}")
            rows = np.full_like(rows, -1)
        return self.network(
            self._indices(batch.token_ids), self._indices(batch.lengths), self._indices(rows)
        )

    def _indices(self, array: Int32[np.ndarray, " n"]) -> Tensor:
        return torch.tensor(array, dtype=torch.long, device=self.device)


def _to_tensor(weight: np.ndarray | Int8Matrix) -> Tensor:
    """A copy of a stored weight: the file's memory map is read-only, and tensors are not."""
    if isinstance(weight, Int8Matrix):
        return torch.from_numpy(weight.to_float())
    if weight.dtype == ml_dtypes.bfloat16:
        return torch.tensor(weight.view(np.int16)).view(torch.bfloat16)
    return torch.tensor(weight)
