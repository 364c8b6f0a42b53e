"""The quality of `polyvec search` on real documents in many languages: a table of docs/search.md.

    python -m benchmarks.question_folder FOLDER --download DEBS
    python -m benchmarks.questions FOLDER                        # writes docs/search.md

One process of `polyvec search FOLDER --watch --json` answers all questions of
benchmarks/questions.tsv, as a person at a terminal would ask them. `first` and `in five` are the
shares of the questions for which the first result, or one of the first five, is a file that answers
the question. `flagged` is the share for which search says that nothing is likely to answer it.
"""

import json
import re
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import median
from typing import NamedTuple

import tyro

from benchmarks.report import ROOT, describe_machine, table, write_section

QUESTIONS = Path(__file__).with_suffix(".tsv")
PAGE = ROOT / "docs" / "search.md"

KINDS = {
    "same": "same language",
    "other": "other language",
    "exact": "exact code or name",
    "none": "no answer there",
}

ANSWERED = re.compile(r"polyvec: answered in ([\d.]+) s")
DOUBT = re.compile(r"polyvec: .*(likely to answer|no passage)")
"""Notes of a search: the time that it took, and that nothing is likely to be the answer."""


class Question(NamedTuple):
    """A question and the names of the files that answer it."""

    kind: str
    language: str
    text: str
    files: list[str]


class Answer(NamedTuple):
    """The names of the files of the results, the best first."""

    files: list[str]
    is_doubtful: bool
    seconds: float


def main(
    folder: tyro.conf.Positional[Path],
    options: tuple[str, ...] = ("", "--rerank 20"),
    write: bool = True,
    misses: bool = False,
) -> None:
    """Ask every question once with each choice of options, and write the table to docs/search.md.

    Args:
        folder: The folder of documents.
        options: Options of `polyvec search`, one choice per string.
        write: Write docs/search.md.
        misses: Print the questions that were not answered as they should be.

    """
    questions, rows, indexed = read_questions(), [], ""
    for option in options:
        indexed, answers = ask(folder, questions, option.split())
        rows += score(option, questions, answers)
        if misses:
            sys.stdout.writelines(describe_misses(questions, answers))
    header = ["options", "questions", "number", "first", "in five", "flagged", "s/question"]
    body = f"{table(header, rows)}\n\n{indexed}.\n{describe_machine('lancedb', 'openvino')} "
    body += "`python -m benchmarks.questions`"
    sys.stdout.write(body + "\n")
    if write:
        write_section("questions", body, PAGE)


def read_questions() -> list[Question]:
    """Every question of the file beside this script."""
    lines = QUESTIONS.read_text("utf-8").splitlines()
    cells = [line.split("\t") for line in lines if line and not line.startswith("#")]
    return [Question(kind, language, text, files.split()) for kind, language, text, files in cells]


def ask(
    folder: Path, questions: Sequence[Question], options: Sequence[str]
) -> tuple[str, list[Answer]]:
    """The sentence about the index, and the answer to each question."""
    command = [sys.executable, "-m", "polyvec", "search", str(folder), "--watch", "--json"]
    # Results and notes come in one stream, so that the note of a question precedes its results.
    with subprocess.Popen(
        [*command, *options],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        encoding="utf-8",
    ) as run:
        assert run.stdin and run.stdout
        lines = [*(question.text for question in questions), "The last question ends the answers."]
        run.stdin.write("".join(line + "\n" for line in lines))
        run.stdin.flush()
        indexed = next(line for line in run.stdout if "indexed" in line)
        answers = list(_read_answers(run.stdout, len(questions)))
        run.send_signal(signal.SIGINT)
        run.stdout.read()
    return indexed.removeprefix("polyvec: ").strip(), answers


def _read_answers(lines: Iterator[str], count: int) -> Iterator[Answer]:
    """Yield the first `count` answers of a search. The next note of an answer ends each of them."""
    answer: Answer | None = None
    for line in lines:
        if found := ANSWERED.match(line):
            if answer is not None:
                yield answer
                count -= 1
            if not count:
                return
            answer = Answer([], False, float(found[1]))
        elif answer is not None and line.startswith("{"):
            answer.files.append(Path(json.loads(line)["path"]).stem)
        elif answer is not None and DOUBT.match(line):
            answer = answer._replace(is_doubtful=True)
    sys.exit("the search ended before the last answer")


def score(option: str, questions: Sequence[Question], answers: Sequence[Answer]) -> list[list[str]]:
    """One row of the table per kind of question."""
    rows = []
    kinds = {name: {kind} for kind, name in KINDS.items()}
    for name, counted in kinds.items():
        asked = [pair for pair in zip(questions, answers, strict=True) if pair[0].kind in counted]
        first = [not {*answer.files[:1]}.isdisjoint(question.files) for question, answer in asked]
        five = [not {*answer.files[:5]}.isdisjoint(question.files) for question, answer in asked]
        flagged = [answer.is_doubtful for _, answer in asked]
        shares = ["", ""] if counted == {"none"} else [_percent(first), _percent(five)]
        seconds = f"{median(answer.seconds for _, answer in asked):.3f}"
        option_cell = f"`{option}`" if option else "none"
        rows.append([option_cell, name, str(len(asked)), *shares, _percent(flagged), seconds])
    return rows


def _percent(values: Sequence[bool]) -> str:
    return f"{100 * sum(values) / len(values):.0f} %"


def describe_misses(questions: Sequence[Question], answers: Sequence[Answer]) -> Iterator[str]:
    """A line for each question whose first file is wrong, or whose flag is."""
    for question, answer in zip(questions, answers, strict=True):
        is_right = not {*answer.files[:1]}.isdisjoint(question.files)
        if (question.files and not is_right) or answer.is_doubtful == bool(question.files):
            flag = "flagged" if answer.is_doubtful else "not flagged"
            yield f"{question.kind} {question.text} {question.files}: {flag}, {answer.files}\n"


if __name__ == "__main__":
    tyro.cli(main)
