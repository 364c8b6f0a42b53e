"""Trained classifiers: one passive-aggressive step a text, kept in a SQLite file.

Axes in this file: N texts, L labels, D numbers in a vector.
"""

import json
import sqlite3
import uuid
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float32, Int

from polyvec.server.errors import ApiError

AGGRESSIVENESS = 1.0
"""The largest step, C in the paper."""

MAX_LABELS = 512

BUSY_SECONDS = 10.0
"""How long an update waits for another one to finish."""

TABLE = """
create table if not exists classifiers (
    classifier_id text primary key, user_id text not null, model text not null,
    labels text not null, access text not null, weights blob not null,
    updated_number integer not null, used_number integer not null,
    created_at text not null, updated_at text not null, used_at text
)
"""


def learn(
    weights: Float32[np.ndarray, "L D1"],
    vectors: Float32[np.ndarray, "N D"],
    labels: Int[np.ndarray, " N"],
    num_iters: int,
) -> Float32[np.ndarray, "L D1"]:
    """The weights after reading the texts `num_iters` times, in their order.

    One against the rest with hinge loss and step min(C, loss / |x|^2): PA-I of Crammer et al.
    2006, "Online Passive-Aggressive Algorithms", equation 2. The last column is the bias, whose
    input is 1 and which the norm leaves out, as in scikit-learn.
    """
    weights = weights.copy()
    inputs = np.concatenate([vectors, np.ones((len(vectors), 1), np.float32)], axis=1)
    norms = np.square(vectors).sum(1)
    for _ in range(num_iters):
        for x, norm, label in zip(inputs, norms, labels, strict=True):
            signs = np.full(len(weights), -1, np.float32)
            signs[label] = 1
            losses = np.maximum(0, 1 - signs * (weights @ x))
            steps = np.minimum(AGGRESSIVENESS, losses / norm)
            weights += (steps * signs)[:, None] * x
    return weights


@dataclass(frozen=True, slots=True)
class Classifier:
    """A classifier as it was read."""

    model: str
    labels: list[str]
    weights: Float32[np.ndarray, "L D1"]

    def scores(self, vectors: Float32[np.ndarray, "N D"]) -> Float32[np.ndarray, "N L"]:
        """How far each text is on each label's side."""
        return vectors @ self.weights[:, :-1].T + self.weights[:, -1]


class Classifiers:
    """The classifiers of a file. Methods block; any number of threads and processes may share it.

    A private classifier is its owner's alone; a public one may be used by all, and changed or
    deleted by its owner.
    """

    def __init__(self, path: Path) -> None:
        """Open or make the file."""
        self._path = path
        with self._connect() as database:
            database.execute("pragma journal_mode=wal")
            database.execute(TABLE)

    def create(
        self,
        user: str,
        model: str,
        access: str,
        labels: Sequence[str],
        vectors: Float32[np.ndarray, "N D"],
        num_iters: int,
    ) -> str:
        """Train a new classifier and return its id."""
        names = list(dict.fromkeys(labels))
        if len(names) < 2:
            raise ApiError(
                400, "INPUT_INVALID_LABELS", "Invalid training labels: there must be at least two"
            )
        weights = np.zeros((len(names), vectors.shape[1] + 1), np.float32)
        numbers = np.array([names.index(label) for label in labels])
        weights = learn(weights, vectors, numbers, num_iters)
        key, now = str(uuid.uuid4()), _now()
        row = (key, user, model, json.dumps(names), access, weights.tobytes(), 0, 0, now, now, None)
        with self._connect() as database:
            database.execute("insert into classifiers values (?,?,?,?,?,?,?,?,?,?,?)", row)
        return key

    def update(
        self,
        user: str,
        key: str,
        labels: Sequence[str],
        vectors: Float32[np.ndarray, "N D"],
        num_iters: int,
    ) -> None:
        """Train further, perhaps with new labels. Updates of one classifier take turns."""
        with self._connect() as database:
            # Takes the write lock before reading, so that no update is lost.
            database.execute("begin immediate")
            known = self._read(database, user, key, write=True)
            names = list(dict.fromkeys([*known.labels, *labels]))
            if len(names) > MAX_LABELS:
                raise ApiError(
                    400,
                    "INPUT_LABEL_LIMIT_EXCEEDED",
                    f"Label limit exceeded: {len(names)} labels provided, maximum {MAX_LABELS}",
                )
            weights = np.zeros((len(names), vectors.shape[1] + 1), np.float32)
            weights[: len(known.labels)] = known.weights
            numbers = np.array([names.index(label) for label in labels])
            weights = learn(weights, vectors, numbers, num_iters)
            database.execute(
                "update classifiers set labels=?, weights=?, updated_at=?,"
                " updated_number=updated_number+1 where classifier_id=?",
                (json.dumps(names), weights.tobytes(), _now(), key),
            )

    def use(self, user: str, key: str) -> Classifier:
        """A classifier, counted as used."""
        with self._connect() as database:
            found = self._read(database, user, key, write=False)
            database.execute(
                "update classifiers set used_number=used_number+1, used_at=? where classifier_id=?",
                (_now(), key),
            )
        return found

    def peek(self, user: str, key: str, *, write: bool) -> Classifier:
        """A classifier, for reading or for a change to come."""
        with self._connect() as database:
            return self._read(database, user, key, write=write)

    def list(self, user: str) -> list[dict[str, Any]]:
        """A user's classifiers, without their weights."""
        names = [line.split()[0] for line in TABLE.replace(", ", ",\n").splitlines()[2:-1]]
        names = [name for name in names if name != "weights"]
        with self._connect() as database:
            rows = database.execute(
                f"select {', '.join(names)} from classifiers where user_id=? order by created_at",
                (user,),
            ).fetchall()
        found = [dict(zip(names, row, strict=True)) for row in rows]
        for one in found:
            one["labels"] = json.loads(one["labels"])
            one |= {"is_active": True, "is_latest": True, "metadata_": {}}
        return found

    def delete(self, user: str, key: str) -> None:
        """Forget a classifier."""
        with self._connect() as database:
            self._read(database, user, key, write=True)
            database.execute("delete from classifiers where classifier_id=?", (key,))

    def _read(
        self, database: sqlite3.Connection, user: str, key: str, *, write: bool
    ) -> Classifier:
        row = database.execute(
            "select model, labels, weights, user_id, access from classifiers where classifier_id=?",
            (key,),
        ).fetchone()
        if row is None or (row[3] != user and (write or row[4] == "private")):
            raise ApiError(
                404,
                "RESOURCE_NOT_FOUND",
                f"classifier '{key[:80]}' not found or access denied",
                param="classifier_id",
            )
        labels = json.loads(row[1])
        return Classifier(
            row[0], labels, np.frombuffer(row[2], np.float32).reshape(len(labels), -1)
        )

    @contextmanager
    def _connect(self) -> Iterator[sqlite3.Connection]:
        """A connection whose changes are kept if nothing is raised."""
        with closing(sqlite3.connect(self._path, timeout=BUSY_SECONDS)) as database:
            try:
                with database:
                    yield database
            except sqlite3.OperationalError as error:
                if "locked" not in str(error):
                    raise
                raise ApiError(
                    409,
                    "CONFLICT_RESOURCE_BUSY",
                    "the classifiers are currently being modified; try again",
                    headers={"Retry-After": "1"},
                ) from None


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")
