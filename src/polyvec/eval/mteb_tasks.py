"""mteb's own tasks and benchmarks, whose data comes from the Hugging Face hub."""

from collections.abc import Sequence

import httpx
import mteb
from mteb.abstasks import AbsTask


def benchmark_tasks(name: str) -> list[AbsTask]:
    """The tasks of one of mteb's benchmarks: `MTEB(eng, v2)`, `MTEB(Multilingual, v2)` ...

    `LongEmbed` is as mteb has it. Raises ValueError if mteb knows no such benchmark.
    """
    try:
        return list(mteb.get_benchmark(name).tasks)
    except KeyError as error:
        known = ", ".join(sorted(benchmark.name for benchmark in mteb.get_benchmarks()))
        raise ValueError(f"mteb has no benchmark {name!r}; it has {known}") from error


def registered_tasks(names: Sequence[str]) -> dict[str, AbsTask]:
    """Those of `names` that mteb has a task for."""
    found = {}
    for name in names:
        try:
            found[name] = mteb.get_task(name)
        except KeyError:
            continue
    return found


def is_local(task: AbsTask) -> bool:
    """Whether the task was made from a folder here."""
    return task.metadata.dataset["path"].startswith("local/")


def load_task(task: AbsTask) -> None:
    """Have the task's data in memory. Raises ValueError where the hub cannot be reached."""
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
