"""mteb's own tasks and benchmarks, whose data comes from the Hugging Face hub."""

from collections.abc import Sequence

import httpx
import mteb
from mteb.abstasks import AbsTask


def benchmark_tasks(name: str) -> list[AbsTask]:
    """Return the tasks of one of mteb's benchmarks, such as `MTEB(eng, v2)` or `LongEmbed`.

    Raises ValueError if mteb has no such benchmark.
    """
    try:
        return list(mteb.get_benchmark(name).tasks)
    except KeyError as error:
        known = ", ".join(sorted(benchmark.name for benchmark in mteb.get_benchmarks()))
        raise ValueError(f"mteb has no benchmark {name!r}; it has {known}") from error


def registered_tasks(names: Sequence[str]) -> dict[str, AbsTask]:
    """Return the tasks that mteb has under any of `names`, by name."""
    tasks = {}
    for name in names:
        try:
            tasks[name] = mteb.get_task(name)
        except KeyError:
            continue
    return tasks


def is_local(task: AbsTask) -> bool:
    """Tell whether `task_folders` made the task."""
    return task.metadata.dataset["path"].startswith("local/")


def load_task(task: AbsTask) -> None:
    """Load the task's data into memory.

    Raises ValueError if the data is neither in the cache nor reachable.
    """
    if task.data_loaded:
        return
    try:
        task.load_data()
    except (OSError, httpx.HTTPError) as error:
        path = task.metadata.dataset["path"]
        raise ValueError(
            f"the data of {task.metadata.name} ({path}) is neither in the cache nor reachable: "
            "run once where huggingface.co can be reached, or score `--data FOLDER` instead"
        ) from error
