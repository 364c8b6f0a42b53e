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
from polyvec.checkpoint import Weight, Weights, to_float
from polyvec.config import ModelConfig
from polyvec.engines import check_adapters
from polyvec.network import Network, pool
from polyvec.tasks import NO_ADAPTER


class TorchEngine:
    """Runs batches with PyTorch: bf16 with packed attention on CUDA, float32 on the CPU."""

    def __init__(
        self,
        config: ModelConfig,
        weights: Weights,
        *,
        device: str = "cpu",
        precision: Literal["auto", "float32"] = "auto",
        merge_adapter: int | None = None,
    ) -> None:
        """Copy the weights to the device.

        `precision` "auto" means bf16 on CUDA. `merge_adapter` is an index: that adapter is added to
        the weights, for an engine whose texts all use it. Texts with other adapters then raise
        ValueError.
        """
        self.config = config
        self.device = torch.device(device)
        self.merge_adapter = merge_adapter
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
        if merge_adapter is not None:
            self.network.merge(merge_adapter)

    @property
    def rope_base(self) -> float:
        """Base of the rotary angles: 10,000 in training, the config's when encoding."""
        return self.network.rope_base

    @rope_base.setter
    def rope_base(self, base: float) -> None:
        self.network.rope_base = base

    def hidden(self, batch: Batch) -> Float32[np.ndarray, "T D"]:
        """The hidden state of every token, in the order of the batch."""
        return self._forward(batch).float().cpu().numpy()

    def pool(
        self, batch: Batch, starts: Int32[np.ndarray, " S"], ends: Int32[np.ndarray, " S"]
    ) -> Float32[np.ndarray, "S D"]:
        """The mean hidden state of each span [start, end) of the batch's tokens."""
        hidden = self._forward(batch)
        # Only the pooled vectors are copied from the device.
        return pool(hidden, self._indices(starts), self._indices(ends)).cpu().numpy()

    def hidden_and_pool(
        self, batch: Batch, starts: Int32[np.ndarray, " S"], ends: Int32[np.ndarray, " S"]
    ) -> tuple[Float32[np.ndarray, "T D"], Float32[np.ndarray, "S D"]]:
        """The results of `hidden` and `pool`, from one forward pass."""
        hidden = self._forward(batch)
        pooled = pool(hidden, self._indices(starts), self._indices(ends))
        return hidden.float().cpu().numpy(), pooled.cpu().numpy()

    @torch.inference_mode()
    def _forward(self, batch: Batch) -> Float[Tensor, "T D"]:
        adapter_ids = batch.adapter_ids
        if self.merge_adapter is not None:
            check_adapters(batch, self.merge_adapter)
            adapter_ids = np.full_like(adapter_ids, NO_ADAPTER)
        return self.network(
            self._indices(batch.token_ids),
            self._indices(batch.lengths),
            self._indices(adapter_ids),
        )

    def _indices(self, array: Int32[np.ndarray, " n"]) -> Tensor:
        return torch.tensor(array, dtype=torch.long, device=self.device)


def _to_tensor(weight: Weight) -> Tensor:
    """A copy of a stored weight: the memory-mapped file is read-only, and tensors are not."""
    if not isinstance(weight, np.ndarray):
        return torch.from_numpy(to_float(weight))
    if weight.dtype == ml_dtypes.bfloat16:
        return torch.tensor(weight.view(np.int16)).view(torch.bfloat16)
    return torch.tensor(weight)
