"""A classification adapter trained on 500 labelled rows, compared with the original model.

    python -m benchmarks.own_adapter --data DATA

For each data set and seed, the benchmark draws 500 rows for training and other rows for the test.
`polyvec train adapter` trains the adapter with its defaults, in its own process, which is timed
from start to end. Then scikit-learn's logistic regression is fitted to the embeddings of the 500
rows and tested on the others, for three embeddings: without an adapter, with the adapter from which
training started, and with the new task.

The bundled model was trained on neither data set (recipes/mini uses neither): EmoT, five emotions
in Indonesian tweets, and SmSA, the sentiment of Indonesian reviews (IndoNLU). EmoT is the better
test, because NusaX, on which the `classification` adapter was trained, has some sentences of SmSA.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from sklearn.linear_model import LogisticRegression

from polyvec import Encoder
from polyvec.data_folder import data_folder


def measure(
    file: Path, folder: Path, *, seed: int, num_train: int, num_test: int, more: list[str]
) -> tuple[list[float], str, tuple[float, float]]:
    """Accuracies without adapter, of the start and of the new task; the start; both times."""
    table = pq.read_table(file, columns=["text", "label"])
    order = np.random.default_rng(seed).permutation(len(table))
    seen = table.take(order[:num_train])
    known = set(seen["text"].to_pylist())
    # A text that occurs twice must not be on both sides.
    new = [i for i in order[num_train:] if table["text"][int(i)].as_py() not in known]
    held = table.take(new[:num_test])
    rows, out = folder / f"{file.stem}-{seed}.parquet", folder / f"{file.stem}-{seed}"
    pq.write_table(seen, rows)
    words = ["--data", rows, "--task", "mine", "--kind", "classification", "--out", out]
    command = [sys.executable, "-m", "polyvec", "train", "adapter", *map(str, words), *more]
    started, used = time.perf_counter(), os.times()
    # All rows are for training, because this benchmark has its own test rows.
    subprocess.run([*command, "--held", "0"], check=True, stdout=subprocess.DEVNULL)
    now = os.times()
    cpu = now.children_user + now.children_system - used.children_user - used.children_system
    seconds = time.perf_counter() - started
    encoder = Encoder.load(out)
    gold, expected = (part["label"].to_pylist() for part in (seen, held))
    start = json.loads((folder / f"{out.name}.run/outcome.json").read_text())["start"]
    scores = []
    for task in (None, None if start == "none" else start, "mine"):
        train, test = (encoder.encode(part["text"].to_pylist(), task=task) for part in (seen, held))
        scores.append(LogisticRegression(max_iter=1_000).fit(train, gold).score(test, expected))
    return scores, start, (seconds, cpu)


def main() -> None:
    """Measure, and print a table in Markdown."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--data", type=Path, help="the data folder; default: POLYVEC_DATA")
    parser.add_argument("--sets", nargs="*", default=["emot", "smsa"])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--num-train", type=int, default=500)
    parser.add_argument("--num-test", type=int, default=1_000)
    options, more = parser.parse_known_args()
    try:
        data = data_folder(options.data)
    except ValueError as error:
        parser.error(str(error))
    say = sys.stdout.write
    say(f"{options.num_train} rows, {len(os.sched_getaffinity(0))} cores; accuracy in %\n\n")
    say("| set | seed | no adapter | start | new task | started from | seconds | CPU seconds |\n")
    say("|---|---:|---:|---:|---:|---|---:|---:|\n")
    gains = []
    with tempfile.TemporaryDirectory() as folder:
        for name in options.sets:
            file = data / f"adapters/classification/{name}.parquet"
            for seed in range(options.seeds):
                scores, start, (seconds, cpu) = measure(
                    file,
                    Path(folder),
                    seed=seed,
                    num_train=options.num_train,
                    num_test=options.num_test,
                    more=more,
                )
                cells = " | ".join(f"{100 * score:.1f}" for score in scores)
                say(f"| {name} | {seed} | {cells} | {start} | {seconds:.0f} | {cpu:.0f} |\n")
                sys.stdout.flush()
                gains.append(100 * (scores[-1] - scores[0]))
    wins = sum(gain > 0 for gain in gains)
    say(f"\nbetter than without adapter {wins} of {len(gains)} times, by {np.mean(gains):.1f} ")
    say(f"points on average (least {min(gains):.1f})\n")


if __name__ == "__main__":
    main()
