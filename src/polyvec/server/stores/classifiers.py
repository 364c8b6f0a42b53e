"""Trained classifiers, stored with their examples in a SQLite file.

Every training call adds its examples and fits the classifier to all examples again, with
`polyvec.classification.from_examples`. The classifier therefore does not depend on the order in
which its examples came.

Axes in this file: N examples, L labels, D the model's width.
"""

import importlib
import json
import sqlite3
import uuid
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float32

from polyvec.classification import Classifier, from_examples
from polyvec.server.errors import ApiError, ErrorCode, invalid_input

MAX_LABELS = 512
"""Maximum number of labels of a classifier."""

MAX_EXAMPLES = 10_000
"""Maximum number of examples of a classifier."""

LOCK_SECONDS = 10.0
"""Time that a change waits for another one to finish."""

FORMAT = 2
"""SQLite's `user_version` of the file. Format 1 stored weights without examples."""

TABLES = (
    """
    create table classifiers (
        classifier_id text primary key, user_id text not null, model text not null,
        access text not null, labels text not null, weights blob, biases blob,
        fitted_number integer not null, updated_number integer not null,
        used_number integer not null, created_at text not null, updated_at text not null,
        used_at text
    )
    """,
    """
    create table examples (
        classifier_id text not null, label text not null, vector blob not null
    )
    """,
    "create index examples_of on examples (classifier_id)",
)
"""`labels`, `weights` and `biases` are the classifier as it was fitted after update
`fitted_number`."""

LISTED = (
    *("classifier_id", "user_id", "model", "access", "updated_number", "used_number"),
    *("created_at", "updated_at", "used_at"),
)
"""Columns that a list of classifiers shows."""


@dataclass(frozen=True, slots=True)
class StoredClassifier:
    """A classifier, and the name of the model whose embeddings it reads."""

    model: str
    classifier: Classifier


def fit(labels: Sequence[str], vectors: Float32[np.ndarray, "N D"]) -> Classifier:
    """The classifier for labelled examples, whatever their order.

    If all examples have the same label, the classifier gives this label the probability 1.
    """
    names = sorted(set(labels))
    if len(names) == 1:
        weights = np.zeros((1, vectors.shape[1]), np.float32)
        return Classifier(names, weights, np.zeros(1, np.float32), None)
    # Sums of floating-point numbers depend on the order of the examples.
    order = sorted(range(len(labels)), key=lambda i: (labels[i], vectors[i].tobytes()))
    return from_examples([labels[i] for i in order], vectors[order], task=None)


class Classifiers:
    """The classifiers of a file. All methods block. Threads and processes may share the file.

    A private classifier can be used only by its owner. A public one can be used by everybody, and
    changed or deleted by its owner.
    """

    def __init__(self, path: Path) -> None:
        """Open the file; create it if it does not exist.

        Raises ValueError for a file of an older format.
        """
        self._path = path
        self.training_thread = ThreadPoolExecutor(1, thread_name_prefix="train")
        """Runs `create` and `update`, so that they do not occupy the threads of other requests."""
        # Importing it takes seconds, which the first training call would otherwise wait.
        importlib.import_module("sklearn.linear_model")
        with self._connect() as database:
            database.execute("pragma journal_mode=wal")
            # Takes the write lock before the first query: another server may open the file too.
            database.execute("begin immediate")
            [version] = database.execute("pragma user_version").fetchone()
            known = database.execute("select 1 from sqlite_master where name='classifiers'")
            if version < FORMAT and known.fetchone():
                raise ValueError(
                    f"{path} was written by an older version of polyvec and holds no examples; "
                    "move the file away, start the server again, and train the classifiers again"
                )
            if version < FORMAT:
                for statement in TABLES:
                    database.execute(statement)
                database.execute(f"pragma user_version={FORMAT}")

    def create(
        self,
        user: str,
        model: str,
        access: str,
        labels: Sequence[str],
        vectors: Float32[np.ndarray, "N D"],
    ) -> str:
        """Store and fit a new classifier; return its id. Raises ApiError 400."""
        key, now = str(uuid.uuid4()), _now()
        row = (key, user, model, access, "[]", None, None, -1, 0, 0, now, now, None)
        with self._connect() as database:
            marks = ",".join("?" * len(row))
            database.execute(f"insert into classifiers values ({marks})", row)
            _add_examples(database, key, labels, vectors)
        self._fit(key)
        return key

    def update(
        self, user: str, key: str, labels: Sequence[str], vectors: Float32[np.ndarray, "N D"]
    ) -> None:
        """Add examples, perhaps with new labels, and fit the classifier again.

        Raises ApiError: 400 for too many labels or examples, 404.
        """
        with self._connect() as database:
            # Takes the write lock before the first query, so that no update is lost.
            database.execute("begin immediate")
            self._find(database, user, key, write=True)
            _add_examples(database, key, labels, vectors)
            database.execute(
                "update classifiers set updated_at=?, updated_number=updated_number+1"
                " where classifier_id=?",
                (_now(), key),
            )
        self._fit(key)

    def use(self, user: str, key: str) -> StoredClassifier:
        """A classifier, counted as used. Raises ApiError 404."""
        with self._connect() as database:
            model, labels, weights, biases = self._find(database, user, key, write=False)
            database.execute(
                "update classifiers set used_number=used_number+1, used_at=? where classifier_id=?",
                (_now(), key),
            )
        if weights is None or biases is None:
            # The server ended after it had stored the examples of a new classifier.
            return StoredClassifier(model, self._fit(key))
        names = json.loads(labels)
        matrix = np.frombuffer(weights, np.float32).reshape(len(names), -1)
        return StoredClassifier(
            model, Classifier(names, matrix, np.frombuffer(biases, np.float32), None)
        )

    def find_model(self, user: str, key: str) -> str:
        """The model of a classifier that the user may change. Raises ApiError 404."""
        with self._connect() as database:
            return self._find(database, user, key, write=True)[0]

    def list(self, user: str) -> list[dict[str, Any]]:
        """A user's classifiers, without their weights and examples."""
        with self._connect() as database:
            rows = database.execute(
                f"select {', '.join(LISTED)} from classifiers where user_id=? order by created_at",
                (user,),
            ).fetchall()
            classifiers = [dict(zip(LISTED, row, strict=True)) for row in rows]
            for classifier in classifiers:
                classifier["labels"] = _labels(database, classifier["classifier_id"])
                classifier |= {"is_active": True, "is_latest": True, "metadata_": {}}
        return classifiers

    def delete(self, user: str, key: str) -> None:
        """Delete a classifier and its examples. Raises ApiError 404."""
        with self._connect() as database:
            self._find(database, user, key, write=True)
            for table in ("classifiers", "examples"):
                database.execute(f"delete from {table} where classifier_id=?", (key,))

    def _fit(self, key: str) -> Classifier:
        """Fit a classifier to all its examples, and store it unless a newer one is stored."""
        with self._connect() as database:
            # One transaction, so that the number belongs to the examples.
            database.execute("begin")
            number = database.execute(
                "select updated_number from classifiers where classifier_id=?", (key,)
            ).fetchone()
            examples = database.execute(
                "select label, vector from examples where classifier_id=?", (key,)
            ).fetchall()
        if number is None:
            raise _not_found(key)
        vectors = np.stack([np.frombuffer(vector, np.float32) for _, vector in examples])
        # Without the lock, since it may take a while.
        classifier = fit([label for label, _ in examples], vectors)
        with self._connect() as database:
            database.execute(
                "update classifiers set labels=?, weights=?, biases=?, fitted_number=?"
                " where classifier_id=? and fitted_number<?",
                (
                    json.dumps(classifier.labels),
                    classifier.weights.tobytes(),
                    classifier.biases.tobytes(),
                    number[0],
                    key,
                    number[0],
                ),
            )
        return classifier

    def _find(
        self, database: sqlite3.Connection, user: str, key: str, *, write: bool
    ) -> tuple[str, str, bytes | None, bytes | None]:
        """Model, labels, weights and biases of a classifier that the user may use or change."""
        row = database.execute(
            "select user_id, access, model, labels, weights, biases from classifiers"
            " where classifier_id=?",
            (key,),
        ).fetchone()
        if row is None or (row[0] != user and (write or row[1] == "private")):
            raise _not_found(key)
        return row[2:]

    @contextmanager
    def _connect(self) -> Iterator[sqlite3.Connection]:
        """A connection whose changes are committed unless an exception is raised."""
        with closing(sqlite3.connect(self._path, timeout=LOCK_SECONDS)) as database:
            try:
                with database:
                    yield database
            except sqlite3.OperationalError as error:
                if "locked" not in str(error):
                    raise
                raise ApiError(
                    ErrorCode.CONFLICT_RESOURCE_BUSY,
                    "the classifiers are currently being modified; try again",
                    headers={"Retry-After": "1"},
                ) from None


def _add_examples(
    database: sqlite3.Connection,
    key: str,
    labels: Sequence[str],
    vectors: Float32[np.ndarray, "N D"],
) -> None:
    """Insert examples. Raises ApiError 400 if the classifier then has too many."""
    rows = [(key, label, row.tobytes()) for label, row in zip(labels, vectors, strict=True)]
    database.executemany("insert into examples values (?,?,?)", rows)
    [count] = database.execute(
        "select count(*) from examples where classifier_id=?", (key,)
    ).fetchone()
    if count > MAX_EXAMPLES:
        raise invalid_input(
            f"the classifier would have {count:,} examples; the limit is {MAX_EXAMPLES:,}"
        )
    num_labels = len(_labels(database, key))
    if num_labels > MAX_LABELS:
        raise ApiError(
            ErrorCode.INPUT_LABEL_LIMIT_EXCEEDED,
            f"Label limit exceeded: {num_labels} labels provided, maximum {MAX_LABELS}",
        )


def _labels(database: sqlite3.Connection, key: str) -> list[str]:
    rows = database.execute(
        "select distinct label from examples where classifier_id=? order by label", (key,)
    )
    return [label for [label] in rows]


def _not_found(key: str) -> ApiError:
    return ApiError(
        ErrorCode.RESOURCE_NOT_FOUND,
        f"classifier '{key[:80]}' not found or access denied",
        param="classifier_id",
    )


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")
