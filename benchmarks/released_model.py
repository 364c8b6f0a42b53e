"""Compare the released jina-embeddings-v3, as polyvec loads it, with what others published.

1. Its first five numbers for two texts and each task, against those that fastembed tests.
2. Its scores on MTEB (English) and LongEmbed, against tables A3 and 5 of arXiv:2409.10173.

The weights and mteb's data come from the Hugging Face hub, so this needs the network once. All
tasks take a day on a GPU; `--tasks` selects some.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import tyro
from jaxtyping import Float32
from mteb.abstasks import AbsTask

from polyvec import Encoder
from polyvec.eval import evaluate, load_model
from polyvec.eval.markdown_report import table
from polyvec.eval.models import RELEASED
from polyvec.eval.mteb_tasks import benchmark_tasks
from polyvec.eval.paper_scores import PAPER_SCORES

GOLDEN_TEXTS = ("Hello World", "Follow the white rabbit.")

GOLDEN = {
    "retrieval.query": (
        (0.0623, -0.0402, 0.1706, -0.0143, 0.0617),
        (-0.1064, -0.0733, 0.0353, 0.0096, 0.0667),
    ),
    "retrieval.passage": (
        (0.0513, -0.0247, 0.1751, -0.0075, 0.0679),
        (-0.0987, -0.0786, 0.09, 0.0087, 0.0577),
    ),
    "separation": (
        (0.094, -0.1065, 0.1305, 0.0547, 0.0556),
        (0.0315, -0.1468, 0.065, 0.0568, 0.0546),
    ),
    "classification": (
        (0.0606, -0.0877, 0.1384, 0.0065, 0.0722),
        (-0.0502, -0.119, 0.032, 0.0514, 0.0689),
    ),
    "text-matching": (
        (0.0911, -0.0341, 0.1305, -0.026, 0.0576),
        (-0.1432, -0.05, 0.0133, 0.0464, 0.0789),
    ),
}
"""The first five numbers of the embeddings of `GOLDEN_TEXTS`, by task, from fastembed's tests
(github.com/qdrant/fastembed, tests/test_text_multitask_embeddings.py, Apache-2.0)."""

GOLDEN_TOLERANCE = 1e-3
"""fastembed prints four decimals, and runs an ONNX export of the model."""

SCORE_TOLERANCE = 0.5
"""Points by which a score may differ from the paper's, which an older mteb computed."""


BENCHMARKS = ("MTEB(eng, v1)", "LongEmbed")
"""mteb's benchmarks that the paper ran."""


def golden_differences(model: str = RELEASED, device: str = "auto") -> dict[str, float]:
    """Return the largest difference from the published numbers, for each task."""
    encoder = Encoder.load(model, device=device, precision="float32")
    differences = {}
    for task, expected in GOLDEN.items():
        vectors: Float32[np.ndarray, "2 D"] = encoder.encode(list(GOLDEN_TEXTS), task=task)
        differences[task] = float(np.abs(vectors[:, :5] - np.array(expected)).max())
    return differences


def paper_tasks() -> dict[str, AbsTask]:
    """Return mteb's tasks of which the paper has a score, with the paper's splits and languages."""
    tasks = [task for name in BENCHMARKS for task in benchmark_tasks(name)]
    return {task.metadata.name: task for task in tasks if task.metadata.name in PAPER_SCORES}


def compare_scores(
    names: Sequence[str], *, model: str = RELEASED, device: str = "auto", results: Path
) -> dict[str, tuple[float, float]]:
    """Return our score and the paper's for each task, times 100.

    Scores that `results` already holds are not computed again.
    """
    known = paper_tasks()
    if unknown := [name for name in names if name not in known]:
        raise ValueError(f"the paper has no score of {unknown[0]}; it has {', '.join(known)}")
    loaded, tasks = load_model(model, device=device), [known[name] for name in names]
    summary = evaluate(loaded, tasks, results=results, argument=model)
    return {name: (100 * summary.tasks[name].score.value, PAPER_SCORES[name]) for name in names}


def main(
    model: str = RELEASED,
    *,
    device: str = "auto",
    tasks: tuple[str, ...] = (),
    results: Path = Path("runs/released"),
) -> int:
    """Print both comparisons. The exit status is 1 if one of the numbers is too far off.

    Args:
        model: A name on the hub, or a folder.
        device: cpu, cuda, cuda:1 or auto.
        tasks: mteb's names of the tasks to score; by default all that the paper has.
        results: The folder for the scores.

    """
    say = sys.stdout.write
    differences = golden_differences(model, device)
    rows = [[task, f"{value:.1e}"] for task, value in differences.items()]
    say(table(["task", "largest difference"], rows) + "\n\n")
    sys.stdout.flush()
    scores = compare_scores(
        tasks or sorted(PAPER_SCORES), model=model, device=device, results=results
    )
    rows = [[name, f"{a:.2f}", f"{b:.2f}", f"{a - b:+.2f}"] for name, (a, b) in scores.items()]
    say(table(["task", "polyvec", "paper", "difference"], rows) + "\n")
    far = [value for value in differences.values() if value > GOLDEN_TOLERANCE]
    far += [a - b for a, b in scores.values() if abs(a - b) > SCORE_TOLERANCE]
    return 1 if far else 0


if __name__ == "__main__":
    sys.exit(tyro.cli(main))
