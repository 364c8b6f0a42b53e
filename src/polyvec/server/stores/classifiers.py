"""Trained classifiers, stored with their examples in a SQLite file.

Every training call adds its examples and fits the classifier to all examples again, with
`polyvec.classification.from_examples`. The classifier therefore does not depend on the order in
which its examples came. Examples and fit are stored in one step: a call that fails, or that its
client abandons, changes nothing.

A classifier belongs to the weights that computed its examples, which `polyvec.checkpoint`'s
fingerprint names, and not to a model's name. It also belongs to its owner, unless it is public.

Axes in this file: N examples, L labels, D the model's width.
"""

import json
import sqlite3
import uuid
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float32

from polyvec.classification import Classifier, from_examples
from polyvec.server.errors import ApiError, ErrorCode, invalid_input
from polyvec.server.stores.sqlite_file import SqliteFile, damaged

MAX_LABELS = 512
"""Maximum number of labels of a classifier."""

MAX_EXAMPLES = 10_000
"""Maximum number of examples of a classifier."""

TABLES = (
    """
    create table classifiers (
        classifier_id text primary key, user_id text not null, model text not null,
        fingerprint text not null, access text not null, labels text not null,
        weights blob not null, biases blob not null, checksum integer not null,
        num_examples integer not null, updated_number integer not null,
        used_number integer not null, created_at text not null, updated_at text not null,
        used_at text
    )
    """,
    """
    create table examples (
        classifier_id text not null, label text not null, vector blob not null,
        checksum integer not null
    )
    """,
    "create index examples_of on examples (classifier_id)",
)
"""SQLite notices damage to its own structure, and the checksums damage to what it stores."""

THREADS = 2
"""Threads that wait for the file. They are not those that write answers: the file may be locked."""

FORMAT = 3
"""SQLite's `user_version` of the file. Format 1 stored no examples, and format 2 no fingerprint."""

APPLICATION_ID = 0x706F6C79
"""SQLite's `application_id` of the file: "poly" in ASCII."""

LISTED = (
    *("classifier_id", "user_id", "model", "fingerprint", "access", "labels", "updated_number"),
    *("used_number", "created_at", "updated_at", "used_at"),
)
"""Columns that a list of classifiers shows."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredClassifier:
    """A classifier, and the model whose embeddings it reads."""

    model: str
    """The name that the model had."""
    fingerprint: str
    """The fingerprint of the model's folder."""
    num_examples: int
    updated_number: int
    """Number of training calls after the first one."""
    classifier: Classifier


def fit(
    labels: Sequence[str], vectors: Float32[np.ndarray, "N D"], check: Callable[[], None]
) -> Classifier:
    """The classifier for labelled examples.

    If all examples have the same label, the classifier gives this label the probability 1. `check`
    is that of `from_examples`.
    """
    names = sorted(set(labels))
    if len(names) == 1:
        weights = np.zeros((1, vectors.shape[1]), np.float32)
        return Classifier(names, weights, np.zeros(1, np.float32), None)
    return from_examples(labels, vectors, task=None, check=check)


class Classifiers:
    """The classifiers of a file. All methods block. Threads and processes may share the file.

    A private classifier can be used only by its owner. A public one can be used by everybody, and
    changed or deleted by its owner. All methods raise ApiError 500, 503 and 507 if the file cannot
    be used (see `SqliteFile`).
    """

    def __init__(self, path: Path) -> None:
        """Open the file; create it if it does not exist. Raises ValueError if it cannot be used."""
        self._file = SqliteFile(
            path, name="--classifiers", application_id=APPLICATION_ID, version=FORMAT, tables=TABLES
        )
        self.threads = ThreadPoolExecutor(THREADS, thread_name_prefix="classifiers")
        """Run every method but the two that train."""
        self.training_thread = ThreadPoolExecutor(1, thread_name_prefix="train")
        """Runs `create` and `update`, which may take half a minute."""
        self.waiting = Counter[str]()
        """Number of calls that wait for one of these threads, by the name of the API key."""

    def create(
        self,
        user: str,
        model: str,
        fingerprint: str,
        access: str,
        labels: Sequence[str],
        vectors: Float32[np.ndarray, "N D"],
        *,
        check: Callable[[], None] = lambda: None,
    ) -> str:
        """Fit and store a new classifier; return its id.

        `check` is called before every step of the fit, and may raise an exception to end the call.
        Raises ApiError 400 for too many labels.
        """
        _check_size(labels)
        classifier = fit(labels, vectors, check)
        key, now = str(uuid.uuid4()), _now()
        packed = *_pack(classifier), len(labels)
        row = (key, user, model, fingerprint, access, *packed, 0, 0, now, now, None)
        with self._change() as database:
            marks = ",".join("?" * len(row))
            database.execute(f"insert into classifiers values ({marks})", row)
            _add_examples(database, key, labels, vectors)
        return key

    def update(
        self,
        user: str,
        key: str,
        labels: Sequence[str],
        vectors: Float32[np.ndarray, "N D"],
        *,
        access: str | None = None,
        check: Callable[[], None] = lambda: None,
    ) -> None:
        """Add examples, perhaps with new labels, and fit the classifier again.

        `access` changes the access; `check` is that of `create`. Raises ApiError: 400 for too many
        labels or examples, 404.
        """
        # If another process has updated the classifier meanwhile, its examples have to be learned
        # as well.
        while not self._try_update(user, key, labels, vectors, access, check):
            pass

    def find(self, user: str, key: str, *, to_change: bool) -> StoredClassifier:
        """A classifier that the user may use or change. Raises ApiError 404."""
        with self._file.connect() as database:
            return _find(database, user, key, to_change=to_change)

    def count_use(self, key: str) -> None:
        """Count one use of a classifier."""
        with self._change() as database:
            database.execute(
                "update classifiers set used_number=used_number+1, used_at=? where classifier_id=?",
                (_now(), key),
            )

    def list(self, user: str) -> list[dict[str, Any]]:
        """A user's classifiers, without their weights and examples."""
        with self._file.connect() as database:
            rows = database.execute(
                f"select {', '.join(LISTED)} from classifiers where user_id=? order by created_at",
                (user,),
            ).fetchall()
        classifiers = [dict(zip(LISTED, row, strict=True)) for row in rows]
        for classifier in classifiers:
            classifier["labels"] = _parse_labels(classifier["labels"])
        return classifiers

    def delete(self, user: str, key: str) -> None:
        """Delete a classifier and its examples. Raises ApiError 404."""
        with self._change() as database:
            _find_row(database, user, key, to_change=True)
            for table in ("classifiers", "examples"):
                database.execute(f"delete from {table} where classifier_id=?", (key,))

    def _try_update(
        self,
        user: str,
        key: str,
        labels: Sequence[str],
        vectors: Float32[np.ndarray, "N D"],
        access: str | None,
        check: Callable[[], None],
    ) -> bool:
        """Update a classifier, unless another process has updated it meanwhile."""
        with self._file.connect() as database:
            # One transaction, so that the number belongs to the examples.
            database.execute("begin")
            stored = _find(database, user, key, to_change=True)
            old_labels, old_vectors = _read_examples(database, key, vectors.shape[1])
        if len(old_labels) != stored.num_examples:
            raise damaged(f"classifier {key[:80]} has lost examples")
        all_labels = [*old_labels, *labels]
        _check_size(all_labels)
        # Without the lock, since it may take a while.
        classifier = fit(all_labels, np.concatenate([old_vectors, vectors]), check)
        with self._change() as database:
            changed = database.execute(
                "update classifiers set labels=?, weights=?, biases=?, checksum=?, num_examples=?,"
                " access=coalesce(?, access), updated_at=?, updated_number=updated_number+1"
                " where classifier_id=? and updated_number=?",
                (*_pack(classifier), len(all_labels), access, _now(), key, stored.updated_number),
            )
            if changed.rowcount:
                _add_examples(database, key, labels, vectors)
        return bool(changed.rowcount)

    @contextmanager
    def _change(self) -> Iterator[sqlite3.Connection]:
        """A connection that holds the write lock."""
        with self._file.connect() as database:
            database.execute("begin immediate")
            yield database


def _find_row(
    database: sqlite3.Connection, user: str, key: str, *, to_change: bool
) -> tuple[str, str, int, int, str, bytes, bytes, int]:
    row = database.execute(
        "select user_id, access, model, fingerprint, num_examples, updated_number, labels, weights,"
        " biases, checksum from classifiers where classifier_id=?",
        (key,),
    ).fetchone()
    if row is None or (row[0] != user and (to_change or row[1] != "public")):
        raise ApiError(
            ErrorCode.RESOURCE_NOT_FOUND,
            f"classifier '{key[:80]}' not found or access denied",
            param="classifier_id",
        )
    return row[2:]


def _find(
    database: sqlite3.Connection, user: str, key: str, *, to_change: bool
) -> StoredClassifier:
    row = _find_row(database, user, key, to_change=to_change)
    model, fingerprint, num_examples, updated_number, labels, weights, biases, checksum = row
    if _checksum(labels, weights, biases) != checksum:
        raise damaged(f"the weights of classifier {key[:80]} do not have their checksum")
    names = _parse_labels(labels)
    matrix = np.frombuffer(weights, np.float32).reshape(len(names), -1)
    classifier = Classifier(names, matrix, np.frombuffer(biases, np.float32), None)
    return StoredClassifier(
        model=model,
        fingerprint=fingerprint,
        num_examples=num_examples,
        updated_number=updated_number,
        classifier=classifier,
    )


def _pack(classifier: Classifier) -> tuple[str, bytes, bytes, int]:
    """The columns labels, weights, biases and checksum of a classifier."""
    labels = json.dumps(classifier.labels)
    weights, biases = classifier.weights.tobytes(), classifier.biases.tobytes()
    return labels, weights, biases, _checksum(labels, weights, biases)


def _add_examples(
    database: sqlite3.Connection,
    key: str,
    labels: Sequence[str],
    vectors: Float32[np.ndarray, "N D"],
) -> None:
    rows = [
        (key, label, vector.tobytes(), _checksum(key, label, vector.tobytes()))
        for label, vector in zip(labels, vectors, strict=True)
    ]
    database.executemany("insert into examples values (?,?,?,?)", rows)


def _read_examples(
    database: sqlite3.Connection, key: str, width: int
) -> tuple[list[str], Float32[np.ndarray, "N D"]]:
    """The labels and the vectors of all examples of a classifier."""
    rows = database.execute(
        "select label, vector, checksum from examples where classifier_id=?", (key,)
    ).fetchall()
    if any(_checksum(key, label, vector) != checksum for label, vector, checksum in rows):
        raise damaged(f"an example of classifier {key[:80]} does not have its checksum")
    vectors = np.frombuffer(b"".join(vector for _, vector, _ in rows), np.float32)
    return [label for label, _, _ in rows], vectors.reshape(-1, width)


def _check_size(labels: Sequence[str]) -> None:
    """Raise ApiError 400 if a classifier with these examples has too many of them, or of labels."""
    if len(labels) > MAX_EXAMPLES:
        raise invalid_input(
            f"the classifier would have {len(labels):,} examples; the limit is {MAX_EXAMPLES:,}"
        )
    num_labels = len(set(labels))
    if num_labels > MAX_LABELS:
        raise ApiError(
            ErrorCode.INPUT_LABEL_LIMIT_EXCEEDED,
            f"Label limit exceeded: {num_labels} labels provided, maximum {MAX_LABELS}",
        )


def _checksum(*parts: object) -> int:
    """The CRC-32 of a row's text and bytes. -1 if a part is neither, so that no row has it."""
    number = 0
    for part in parts:
        if not isinstance(part, str | bytes):
            return -1
        number = zlib.crc32(part.encode() if isinstance(part, str) else part, number)
    return number


def _parse_labels(labels: object) -> list[str]:
    try:
        names = json.loads(labels) if isinstance(labels, str) else None
    except ValueError:
        names = None
    if not isinstance(names, list):
        raise damaged("the labels of a classifier are not a JSON array")
    return names


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")
