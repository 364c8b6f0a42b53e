"""What a text is embedded for. This is the only table of tasks in the package.

A task chooses one adapter (by its row in the bank) and the instruction put before the text.
`None` is a task too: the bare encoder, no adapter, no instruction.
"""

from dataclasses import dataclass

BARE = -1
"""The adapter row of `task=None`."""


@dataclass(frozen=True, slots=True)
class Task:
    """A name users pass, and the instruction the model reads before the text."""

    name: str
    prompt: str = ""


TASKS = (
    Task("retrieval.query", "Represent the query for retrieving evidence documents: "),
    Task("retrieval.passage", "Represent the document for retrieval: "),
    Task("separation"),
    Task("classification"),
    Task("text-matching"),
)
"""The five tasks of Jina Embeddings v3 in the checkpoint's order (arXiv:2409.10173, table 2)."""


def task_row(tasks: tuple[Task, ...], name: str | None) -> int:
    """The adapter row of a task; `BARE` for None.

    Raises ValueError for a name that is not in `tasks`.

    >>> task_row(TASKS, "separation"), task_row(TASKS, None)
    (2, -1)
    """
    if name is None:
        return BARE
    for row, task in enumerate(tasks):
        if task.name == name:
            return row
    known = ", ".join(repr(task.name) for task in tasks)
    raise ValueError(f"unknown task {name!r}; this model has {known or 'no tasks'}, or None")
