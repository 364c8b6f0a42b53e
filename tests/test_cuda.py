"""The CUDA path against the CPU's float32: engines, gradients, resuming, compiled blocks.

PyTorch leaves TF32 off for float32 products unless told otherwise, so float32 is float32 here.
`sed 's/^DEVICE = "cuda"/DEVICE = "cpu"/'` makes a copy that tries the tests themselves on a CPU.
"""

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from polyvec import Encoder
from polyvec.batch import Batch, make_batch
from polyvec.checkpoint import load_checkpoint
from polyvec.engines import make_engine
from polyvec.engines.torch import TorchEngine
from polyvec.model_folder import BUNDLED
from polyvec.network import Network
from polyvec.tokenizer import Tokenizer
from polyvec.train.distributed import num_processes, process_group
from polyvec.train.head_objectives import self_distillation
from polyvec.train.loop import Settings, StepFn, train
from tests.train import test_objectives as stages

DEVICE = "cuda"

pytestmark = pytest.mark.skipif(
    DEVICE == "cuda" and not torch.cuda.is_available(), reason="there is no CUDA GPU here"
)

CONFIG = replace(stages.CONFIG, sparse_head=True, multi_vector_dim=16)
"""Heads are 8 wide, the smallest width that FlashAttention supports."""

LENGTHS = (500, 1, 64, 2_000, 2, 65, 7, 128, 1_025, 127, 3, 64)
ADAPTER_IDS = (0, 1, -1, 4, 2, 3, 1, -1, 0, 2, 4, 3)

STAGES: dict[str, Callable[[Network, int | None], StepFn]] = {
    **stages.STAGES,
    "heads": lambda net, _: self_distillation(
        net, stages.TEXTS, stages.TEXTS[::-1], stages.GROUPS, stages.PLAN, ignored=[0, 1, 2, 3]
    ),
}


def make_network(device: str, *, dropout: float = 0.0) -> Network:
    """The same weights each time; with them tokens and tasks differ strongly."""
    torch.manual_seed(8)
    network = Network(CONFIG, dropout=dropout, mlm=True)
    for name, parameter in network.named_parameters():
        drawn = torch.randn(parameter.shape)
        if name.startswith(("sparse.", "multi_vector.")) or name == "embeddings.word.weight":
            parameter.data = drawn
        elif "norm" not in name and not name.endswith("bias"):
            parameter.data = 0.2 * drawn
    return network.to(device)


WEIGHTS = {
    name: tensor.numpy()
    for name, tensor in make_network("cpu").state_dict().items()
    if not name.startswith("mlm.")
}


@pytest.fixture
def texts() -> list[list[int]]:
    """Random texts of `LENGTHS` tokens."""
    rng = np.random.default_rng(0)
    return [rng.integers(4, CONFIG.vocab_size, length).tolist() for length in LENGTHS]


@pytest.fixture
def batch(texts: list[list[int]]) -> Batch:
    """These texts, with every task and with none."""
    return make_batch(texts, ADAPTER_IDS)


def least_cosine(one: np.ndarray, other: np.ndarray) -> float:
    """The smallest cosine between matching rows."""
    lengths = np.linalg.norm(one, axis=1) * np.linalg.norm(other, axis=1)
    return float(((one * other).sum(1) / lengths).min())


@pytest.mark.parametrize(
    "adapter_ids", [[i] * len(ADAPTER_IDS) for i in range(-1, 5)] + [[*ADAPTER_IDS]]
)
def test_in_float32_the_gpu_gives_the_results_of_the_cpu(
    texts: list[list[int]], adapter_ids: list[int]
) -> None:
    """Each task, none, and all in one batch; with adapters beside the weights and merged."""
    batch = make_batch(texts, adapter_ids)
    one_task = {*adapter_ids} == {adapter_ids[0]} != {-1}
    expected = TorchEngine(CONFIG, WEIGHTS).hidden(batch)
    for merge_adapter in (None, adapter_ids[0]) if one_task else (None,):
        choices = {"device": DEVICE, "precision": "float32", "merge_adapter": merge_adapter}
        engine = TorchEngine(CONFIG, WEIGHTS, **choices)
        np.testing.assert_allclose(engine.hidden(batch), expected, rtol=0, atol=1e-4)


def test_in_bf16_packed_texts_have_nearly_their_vectors(batch: Batch) -> None:
    engine, exact = TorchEngine(CONFIG, WEIGHTS, device=DEVICE), TorchEngine(CONFIG, WEIGHTS)
    found, expected = (e.hidden_and_pool(batch, batch.starts, batch.ends) for e in (engine, exact))
    # First of every token, then of every text.
    assert min(least_cosine(*pair) for pair in zip(found, expected, strict=True)) > 0.999


def test_a_text_does_not_depend_on_its_neighbours_or_their_tasks(
    batch: Batch, texts: list[list[int]]
) -> None:
    engine = TorchEngine(CONFIG, WEIGHTS, device=DEVICE)
    together = np.split(engine.hidden(batch), batch.ends[:-1])
    for text, adapter_id, states in zip(texts, ADAPTER_IDS, together, strict=True):
        assert least_cosine(states, engine.hidden(make_batch([text], [adapter_id]))) > 0.9995


def distance(found: Tensor, expected: Tensor) -> float:
    """The distance relative to the expected vector's length: 0.14 is a cosine of 0.99."""
    return float((found.cpu() - expected.cpu()).norm() / expected.cpu().norm())


def gradients(network: Network, name: str, max_tokens: int | None) -> dict[str, Tensor]:
    """The gradients after one step of a stage."""
    # The stages' own draws, the same for everyone.
    stages.RNG.bit_generator.state = np.random.default_rng(1).bit_generator.state
    STAGES[name](network, max_tokens)(1)
    found = {n: p.grad for n, p in network.named_parameters() if p.grad is not None}
    network.zero_grad()
    return found


@pytest.mark.parametrize("name", STAGES)
@pytest.mark.parametrize(
    ("precision", "tolerance"), [(torch.float32, 1e-3), (torch.bfloat16, 0.14)], ids=str
)
def test_gradients_point_where_the_cpu_s_point(
    name: str, precision: torch.dtype, tolerance: float
) -> None:
    """At once, in chunks (GradCache), and with activations computed again."""
    expected = gradients(make_network("cpu"), name, None)
    most = max(float(gradient.norm()) for gradient in expected.values())
    network = make_network(DEVICE)
    network.precision = precision
    for max_tokens, network.recompute in ((None, False), (40, False), (None, True)):
        found = gradients(network, name, max_tokens)
        assert found.keys() == expected.keys()
        for key, gradient in expected.items():
            if gradient.norm() > 1e-3 * most:
                assert distance(found[key], gradient) < tolerance, (key, max_tokens)


@pytest.fixture(params=["fast", "deterministic"])
def bits(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[bool]:
    """Whether PyTorch runs deterministic algorithms."""
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(request.param == "deterministic")
    yield request.param == "deterministic"
    torch.use_deterministic_algorithms(False)


def run(folder: Path, *, stop_at: int | None = None) -> Tensor:
    """Train with everything that has state; return how far every parameter moved."""
    network = make_network(DEVICE, dropout=0.1)
    network.precision, network.embeddings.word.sparse = torch.bfloat16, True
    before = torch.cat([p.detach().flatten().clone() for p in network.parameters()])
    inner = STAGES["pairs"](network, 40)

    def step_fn(step: int) -> tuple[Tensor, int]:
        if step == stop_at:
            raise KeyboardInterrupt
        return inner(step % len(stages.PLAN))

    matrices = [n for n, p in network.layers.named_parameters(prefix="layers") if p.ndim == 2]
    settings = Settings(
        steps=8, learning_rate=1e-3, table_rate=0.05, muon_rate=1e-3, save_every=3, accumulate=2
    )
    tables = ["embeddings.word.weight"]
    train(network.named_parameters(), step_fn, settings, folder, tables=tables, muon=matrices)
    return torch.cat([p.detach().flatten() for p in network.parameters()]) - before


def test_a_resumed_run_ends_where_the_uninterrupted_one_ends(tmp_path: Path, bits: bool) -> None:
    """Equal to the bit under deterministic algorithms; otherwise atomic additions differ a bit."""
    expected = run(tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "cut", stop_at=9)
    found = run(tmp_path / "cut")
    assert expected.any()
    assert torch.equal(found, expected) if bits else distance(found, expected) < 0.1


@pytest.mark.filterwarnings("ignore")  # The compiler has warnings of its own.
def test_compiled_blocks_give_the_results_of_plain_ones() -> None:
    """This holds for lengths other than those they were compiled for, and for gradients."""
    torch.compiler.reset()
    plain, compiled = make_network(DEVICE), make_network(DEVICE)
    plain.precision = compiled.precision = torch.bfloat16
    for layer in compiled.layers:
        layer.compile(dynamic=True)
    generator = torch.Generator().manual_seed(0)
    for sizes, adapter_ids in (
        ([7, 40, 9], [0, -1, 3]),
        ([300, 2], [1, 4]),
        ([5, 6, 64, 33, 8], [-1, 2, 0, 1, 3]),
        ([64, 64], [-1, -1]),
    ):
        ids = torch.randint(4, CONFIG.vocab_size, (sum(sizes),), generator=generator)
        inputs = [part.to(DEVICE) for part in (ids, torch.tensor(sizes), torch.tensor(adapter_ids))]
        aim = torch.randn(len(ids), CONFIG.width, generator=generator).to(DEVICE)
        states = []
        for network in (plain, compiled):
            network.zero_grad()
            states.append(network(*inputs))
            (states[-1] * aim).sum().backward()
        assert distance(states[1], states[0]) < 0.03
        for (name, one), other in zip(plain.named_parameters(), compiled.parameters(), strict=True):
            if one.grad is not None and one.grad.norm() > 1:
                assert other.grad is not None
                assert distance(other.grad, one.grad) < 0.1, name


def test_auto_selects_the_gpu() -> None:
    engine = make_engine(CONFIG, WEIGHTS, "auto", "auto", None)
    assert isinstance(engine, TorchEngine) and engine.device.type == "cuda"
    assert engine.network.embeddings.word.weight.dtype == torch.bfloat16


@pytest.mark.skipif(not (BUNDLED / "model.safetensors").exists(), reason="no bundled model here")
def test_the_bundled_model_encodes_as_on_the_cpu() -> None:
    notes = Path(__file__).parent.parent / "examples" / "notes"
    texts = ["a", "Ein Fuchs.", *(path.read_text("utf-8") for path in sorted(notes.glob("*.md")))]
    config, weights = load_checkpoint(BUNDLED)
    tokenizer = Tokenizer.load(BUNDLED, config.max_tokens)
    cpu, gpu = Encoder(config, tokenizer, TorchEngine(config, weights)), Encoder.load(device=DEVICE)
    for task in (None, "retrieval.passage", "text-matching"):
        found, expected = (encoder.encode(texts[:8], task=task) for encoder in (gpu, cpu))
        assert least_cosine(found, expected) > 0.999


def test_a_process_of_torchrun_has_its_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0", "TORCHELASTIC_RUN_ID": "one"}
    for name, value in {**address, "RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1"}.items():
        monkeypatch.setenv(name, value)
    with process_group() as device:
        assert (device.type, num_processes()) == (DEVICE, 1)
        total = torch.ones(2, device=device)
        dist.all_reduce(total)
        assert total.tolist() == [1, 1]
