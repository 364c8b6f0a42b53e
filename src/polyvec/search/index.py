"""An index of a folder: one row per passage in an embedded LanceDB table.

Each component searches the table. `dense` compares the question's vector with every passage's
vector, exactly. `bm25` looks up the question's words in LanceDB's full-text index. `sparse`, if the
model has that head, compares the token weights of the question and the candidates. `fusion` merges
their rankings into one.

Every change of the table is an atomic commit. If an update is killed, the table stays readable, and
the next update completes the rest (`updating`). One process writes at a time, and others can read.
"""

from collections.abc import Callable, Mapping
from datetime import datetime
from pathlib import Path

import filelock
import numpy as np

from polyvec.encoder import Encoder
from polyvec.search.answers import Answer, answer_question
from polyvec.search.commits import read_indexed_files
from polyvec.search.files import read_file, root_of
from polyvec.search.fusion import FusionMethod, Part
from polyvec.search.index_table import IndexTable
from polyvec.search.passages import split_file, texts_with_headings
from polyvec.search.retrieval import MIN_CANDIDATES, PASSAGE, make_hit, quote, where_sql
from polyvec.search.table_files import DamagedError, ExplainDamage
from polyvec.search.updating import Progress, Update, Updater
from polyvec.search.vectors import Quantise, Row, find_nearest
from polyvec.terminal import shorten


class NotUpdatedError(ValueError):
    """The index could not be updated. It can be searched as it is."""


class BusyError(NotUpdatedError):
    """Another process is writing the index."""


class UnwritableError(NotUpdatedError):
    """The index lies on a disk that is full or may only be read."""


class Index:
    """The passages of a folder's files, with one vector each."""

    def __init__(
        self,
        folder: Path,
        encoder: Encoder,
        *,
        directory: Path | None = None,
        dim: int | None = None,
        quantise: Quantise | None = None,
    ) -> None:
        """Open the index of `folder`, which is stored in `directory`, by default `folder/.polyvec`.

        `folder` may also be a single file. The default is then a folder in `.polyvec` beside it.

        `dim` is the size of a vector, one of the model's Matryoshka sizes, and `quantise` the form
        in which it is stored (see `vectors`). By default, an existing index keeps its own; a new
        one has the full size and "float".

        Raises ValueError if the folder does not exist, and if the form is unknown.
        """
        if not folder.exists():
            raise ValueError(f"there is no folder {folder}")
        self.folder = root_of(folder)
        self.place = folder
        self._default = self.folder / ".polyvec"
        name = "" if folder == self.folder else folder.name
        self.directory = directory or (self._default / "files" / name if name else self._default)
        # An index inside its folder may be moved with it.
        inside = self.directory.resolve().is_relative_to(self.folder.resolve())
        owner = name if inside else str(folder.resolve())
        self.encoder = encoder
        self._table = IndexTable(self.directory, encoder, owner=owner, dim=dim, quantise=quantise)
        self.dim, self.sparse = self._table.dim, self._table.sparse
        self.quantise: Quantise = self._table.quantise

    def update(
        self,
        progress: Progress = lambda done, total: None,
        *,
        forget: Callable[[str], bool] = lambda doubt: False,
        follow_links: bool = False,
    ) -> Update:
        """Index new and changed files, and remove deleted ones. Rebuild an index that is damaged.

        `progress` is called with the bytes that are done, and those of all new and changed files.
        If most of the index, or a folder that may have been unmounted, seems to be gone, `forget`
        is called with a sentence that says so, and the passages are removed only if it returns
        True. With `follow_links`, symbolic links that lead out of the folder are followed.

        Raises BusyError while another process writes the index, UnwritableError if it cannot be
        written, and ValueError if it must be rebuilt but most of its files seem to be gone.
        """
        try:
            self._make_directory()
            with filelock.FileLock(self.directory / "lock", timeout=0):
                updater = Updater(self._table, self.encoder, self.place, self.folder)
                try:
                    with ExplainDamage(self.directory):
                        return updater.run(
                            progress=progress, forget=forget, follow_links=follow_links
                        )
                except (DamagedError, OSError) as error:
                    # If the table can be read as a whole, it is the writing that has failed.
                    if self._table.repair() is None or isinstance(error, OSError):
                        raise
                    raise OSError(shorten(str(error.__cause__ or error), 120)) from None
        except filelock.Timeout:
            raise BusyError(f"another process is writing the index {self.directory}") from None
        except OSError as error:
            reason = error.strerror or error
            raise UnwritableError(f"cannot write the index {self.directory} ({reason})") from None

    def count(self) -> tuple[int, int]:
        """The number of files and of passages in the index; 0 and 0 if there is none."""
        with ExplainDamage(self.directory):
            table = self._table.open()
            files = {} if table is None else read_indexed_files(table)
        return len(files), sum(file.num_passages for file in files.values())

    def search(
        self,
        question: str,
        *,
        top: int = 5,
        by: FusionMethod = "scores",
        weights: Mapping[str, float] | None = None,
        rerank: int = 0,
        path: str | None = None,
        since: datetime | None = None,
        per_file: int | None = None,
        min_score: float = 0.0,
        mark: bool = False,
    ) -> Answer:
        """The `top` passages that answer the question best, and whether they are likely to.

        `weights` are the weights of the components dense, maxsim, bm25 and sparse; `fusion.WEIGHTS`
        has the defaults. `by` is the method that fuses their rankings (`fusion.fuse`). With
        `rerank`, the first `rerank` passages, but at least `top`, are sorted by exact MaxSim
        instead. Every passage contains the phrases that stand in quotation marks in the question.
        `path` is a pattern of paths in which `*` stands for any characters and `?` for one; `since`
        excludes files that were last written before that time. Of each file at most `per_file`
        passages are returned, and of identical passages one. `min_score` is the lowest score of a
        passage. With `mark`, each passage comes with the sentence that answers the question best,
        if maxsim has a weight.

        Raises ValueError if the index does not exist, is damaged or was made with another model,
        for an unknown component, and for a component or a rerank whose head the model lacks.
        """
        _check_top(top)
        with ExplainDamage(self.directory):
            return answer_question(
                self._table.open_valid(),
                self.encoder,
                question,
                dim=self.dim,
                quantise=self.quantise,
                floors=self._table.floors,
                top=top,
                by=by,
                weights=weights or {},
                rerank=rerank,
                path=path,
                since=since,
                per_file=per_file,
                min_score=min_score,
                mark=mark,
            )

    def find_similar(
        self, file: Path, *, top: int = 5, path: str | None = None, since: datetime | None = None
    ) -> Answer:
        """The other files that are most similar to `file`, each by its most similar passage.

        `file` may lie outside the folder. Its vector is the mean of its passages' vectors.
        Raises ValueError if it cannot be read or has no words, and in the cases of `search`.
        """
        _check_top(top)
        split = split_file(file.parent, read_file(file.parent, file.name), self.encoder.tokenizer)
        if not split.passages:
            raise ValueError(f"{file} has no words")
        own, root = file.resolve(), self.folder.resolve()
        inside = own.relative_to(root).as_posix() if own.is_relative_to(root) else ""
        where = " AND ".join(filter(None, [where_sql(path, since), f"path != {quote(inside)}"]))
        texts = [text for text, _ in texts_with_headings(split)]
        mean = self.encoder.encode(texts, task=PASSAGE, dim=self.dim, progress=False).mean(0)
        mean /= np.linalg.norm(mean).clip(1e-12)
        best: dict[str, Row] = {}
        depth = MIN_CANDIDATES
        with ExplainDamage(self.directory):
            table = self._table.open_valid()
            # The search deepens until it has enough files, or all passages.
            while True:
                rows = find_nearest(table, mean, quantise=self.quantise, depth=depth, where=where)
                for row in rows:
                    best.setdefault(row["path"], row)
                if len(best) >= top or len(rows) < depth:
                    break
                depth *= 4
        hits = [
            make_hit(row, row["score"], {"dense": Part(rank, row["score"], row["score"])})
            for rank, row in enumerate(list(best.values())[:top], 1)
        ]
        return Answer(hits, is_likely=True)

    def count_passages(self, *, path: str | None = None, since: datetime | None = None) -> int:
        """The number of passages that a search with these filters compares."""
        with ExplainDamage(self.directory):
            return self._table.open_valid().count_rows(where_sql(path, since) or None)

    def _make_directory(self) -> None:
        """Create the folder of the index, with a file that keeps it out of Git repositories."""
        is_default = self.directory.is_relative_to(self._default)
        top = self._default if is_default else self.directory
        # A folder that the user made may hold other files.
        is_ours = is_default or not top.exists()
        self.directory.mkdir(parents=True, exist_ok=True)
        if is_ours and not (top / ".gitignore").exists():
            (top / ".gitignore").write_text("*\n", encoding="utf-8")


def _check_top(top: int) -> None:
    if top < 1:
        raise ValueError(f"top is {top}, must be at least 1")
