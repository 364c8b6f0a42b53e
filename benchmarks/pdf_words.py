"""Count the words that polyvec and pdftotext find in a folder of PDFs.

    python -m benchmarks.pdf_words FOLDER

Each line has the words of one file that both find, those that only one finds, the seconds that each
took, and the program that wrote the file. Without pdftotext (poppler-utils), only polyvec's words
are counted.
"""

import re
import shutil
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

from polyvec.search.documents import read_document

WORD = re.compile(r"[^\W_]{2,}")

PRODUCER = re.compile(rb"/Producer\s*\(((?:[^()\\]|\\.){1,60})")

ROW = "{:>9} {:>9} {:>9} {:>7} {:>7}  {:24.24}  {}\n"


def count_words(text: str) -> Counter[str]:
    """The words of a text, without regard to case. A letter alone is none."""
    return Counter(WORD.findall(text.lower()))


def read_with_polyvec(path: Path) -> tuple[Counter[str], str]:
    """The words that polyvec finds in a file, and the note that it gives."""
    try:
        document = read_document(path.read_bytes(), path.name)
    except ValueError as error:
        return Counter(), str(error)
    return count_words(document.text), document.cut


def read_with_pdftotext(path: Path) -> Counter[str]:
    """The words that pdftotext finds in a file."""
    run = subprocess.run(["pdftotext", path, "-"], capture_output=True, check=False)
    return count_words(run.stdout.decode(errors="replace"))


def find_producer(raw: bytes) -> str:
    """The program that wrote a PDF, if its description is not packed."""
    match = PRODUCER.search(raw)
    return match[1].decode("latin-1") if match else "?"


def main(folder: Path) -> None:
    """Write a line for each PDF, and the totals."""
    has_pdftotext = shutil.which("pdftotext") is not None
    sys.stdout.write(ROW.format("both", "polyvec", "pdftotext", "s", "s", "producer", "file"))
    totals = [0, 0, 0, 0.0, 0.0]
    for path in sorted(folder.rglob("*.pdf")):
        started = time.perf_counter()
        own, note = read_with_polyvec(path)
        middle = time.perf_counter()
        other = read_with_pdftotext(path) if has_pdftotext else own
        numbers = [(own & other).total(), (own - other).total(), (other - own).total()]
        seconds = [middle - started, time.perf_counter() - middle]
        totals = [total + new for total, new in zip(totals, [*numbers, *seconds], strict=True)]
        name = f"{path.relative_to(folder)}" + (f" ({note})" if note else "")
        producer = find_producer(path.read_bytes())
        shown = [f"{number:.2f}" for number in seconds]
        sys.stdout.write(ROW.format(*numbers, *shown, producer, name))
    shown = [f"{number:.2f}" if isinstance(number, float) else number for number in totals]
    sys.stdout.write(ROW.format(*shown, "", "total"))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
