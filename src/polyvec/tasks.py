"""The built-in tasks: the purposes for which a text may be embedded. No other module lists them.

A task selects one adapter and the instruction that is put before the text. `None` is allowed where
a task is: it selects the bare encoder, without adapter and instruction.
"""

from dataclasses import dataclass

NO_ADAPTER = -1
"""The adapter index of `task=None`."""


@dataclass(frozen=True, slots=True)
class Task:
    """The name that users pass, and the instruction that is put before the text."""

    name: str
    prompt: str = ""


@dataclass(frozen=True, slots=True)
class TaskChoice:
    """A task of one model, resolved to what the tokenizer and the engine need."""

    adapter_id: int
    """Index of the adapter in the model's bank; `NO_ADAPTER` for none."""

    prompt: str
    """The instruction before the text; empty for none."""


QUERY = "retrieval.query"
PASSAGE = "retrieval.passage"
SEPARATION = "separation"
CLASSIFICATION = "classification"
TEXT_MATCHING = "text-matching"

TASKS = (
    Task(QUERY, "Represent the query for retrieving evidence documents: "),
    Task(PASSAGE, "Represent the document for retrieval: "),
    Task(SEPARATION),
    Task(CLASSIFICATION),
    Task(TEXT_MATCHING),
)
"""The tasks of Jina Embeddings v3 in the order of its checkpoint (arXiv:2409.10173, table 2)."""


def adapter_index(tasks: tuple[Task, ...], name: str | None) -> int:
    """Index of a task's adapter in the bank; `NO_ADAPTER` for None.

    Raises ValueError for a name that is not in `tasks`.

    >>> adapter_index(TASKS, "separation"), adapter_index(TASKS, None)
    (2, -1)
    """
    if name is None:
        return NO_ADAPTER
    for index, task in enumerate(tasks):
        if task.name == name:
            return index
    known = ", ".join(repr(task.name) for task in tasks)
    raise ValueError(f"unknown task {name!r}; this model has {known or 'no tasks'}, or None")


def choose_task(tasks: tuple[Task, ...], name: str | None) -> TaskChoice:
    """The adapter and the instruction of a task.

    Raises ValueError for a name that is not in `tasks`.

    >>> choose_task(TASKS, "separation"), choose_task(TASKS, None)
    (TaskChoice(adapter_id=2, prompt=''), TaskChoice(adapter_id=-1, prompt=''))
    """
    index = adapter_index(tasks, name)
    return TaskChoice(index, "" if index == NO_ADAPTER else tasks[index].prompt)
