"""Adapters on disk <-> the bank of adapters. On disk there is one folder per task, as in PEFT.

PEFT keeps q, k and v apart, and every adapter has its own rank and scale. The bank has one rank,
one scale, and one pair of tensors for q, k and v together. Reading therefore

1. joins an adapter's q, k and v: parts that share A keep their rank, and parts that do not share it
   get columns of their own, with zeros in the rows of the others;
2. pads every adapter with zeros to the largest rank, which changes no product;
3. multiplies B by the adapter's scale divided by the bank's.

Axes in this file: A adapters, R rank, O outputs, I inputs.
"""

import logging
import math
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from polyvec.checkpoint.names import Module, list_modules, parameter_shapes
from polyvec.checkpoint.storage import (
    Stored,
    check_names,
    find_file,
    read_json,
    read_tensors,
    write_json,
    write_tensors,
)
from polyvec.config import LIMITS, ModelConfig
from polyvec.tasks import TASKS, Task

logger = logging.getLogger(__name__)

PREFIX = "base_model.model."

KNOWN_OPTIONS = frozenset(
    {
        "auto_mapping",
        "base_model_name_or_path",
        "inference_mode",
        "init_lora_weights",
        "lora_alpha",
        "lora_dropout",
        "megatron_core",
        "peft_type",
        "peft_version",
        "qalora_group_size",
        "r",
        "revision",
        "target_modules",
        "task_type",
        "use_rslora",
    }
)
"""Options in adapter_config.json that are read, or that do not affect the result."""

DISABLED = (None, False, [], {}, "none")
"""Values that every other option must have: other values are variants of LoRA that the bank cannot
hold."""

NEUTRAL_STARTS = (None, True, False, "gaussian", "orthogonal")
"""Initialisations that leave the base weights unchanged; others (PiSSA, OLoRA, ...) change them."""


MAX_ALPHA = 1_000_000
"""Largest lora_alpha. Beyond it, hardly any update leaves the embeddings finite."""

MAX_PADDING = 16
"""Largest size of the bank, as a multiple of the adapters' tensors, beyond `FREE_BYTES`."""

FREE_BYTES = 256 * 2**20
"""Size up to which the bank may have any share of zeros."""


class Adapter(NamedTuple):
    """The content of one PEFT folder, validated."""

    folder: Path
    rank: int
    alpha: float
    scale: float
    targets: list[str]
    tensors: dict[str, Stored]


class Update(NamedTuple):
    """The two factors of an adapter's update of one module: B @ A, or A @ B for an embedding."""

    a: np.ndarray
    b: np.ndarray

    def rank(self, module: Module) -> int:
        """The rank of the update."""
        return self.a.shape[1] if module.kind == "embedding" else self.a.shape[0]


def folder_name(task: str) -> str:
    """The folder of a task's adapter. PEFT allows no dots in names.

    >>> folder_name("retrieval.query")
    'retrieval_query'
    """
    return task.replace(".", "_").replace("-", "_")


def folder_names(config: ModelConfig) -> list[str]:
    """The folder of every task. Raises ValueError if two tasks would share a folder."""
    names = [folder_name(task.name) for task in config.tasks]
    check_names([task.name for task in config.tasks], "config: adapters")
    if len(set(names)) < len(names):
        raise ValueError(f"config: two tasks share a folder among {names}; rename one")
    return names


def find_tasks(folder: Path, known: tuple[Task, ...]) -> tuple[Task, ...]:
    """The tasks of a model folder: the known ones, then one for every other adapter folder.

    A folder named after one of the built-in tasks gets that task's name and instruction. Any other
    task is named after its folder and has no instruction. A known task without a folder is left
    out, with a warning. Raises ValueError for an adapter that has no folder of its own.
    """
    if (folder / "adapter_config.json").exists():
        raise ValueError(f"{folder}: adapter_config.json belongs in a folder named as its task")
    built_in = {folder_name(task.name): task for task in TASKS}
    taken = {name for task in known for name in (task.name, folder_name(task.name))}
    folders = [path.parent.name for path in folder.glob("[!.]*/adapter_config.json")]
    order = [*built_in, *sorted(set(folders) - set(built_in))]
    extra = [name for name in order if name in folders and name not in taken]
    # Only a plain name may be looked for in the file system.
    check_names([task.name for task in known], "config: adapters")
    kept = [task for task in known if _has_folder(folder, task.name)]
    if absent := [task.name for task in known if task not in kept]:
        logger.warning(
            "%s has no folders of the adapters %s, which config.json lists: the model lacks these "
            "tasks",
            folder,
            ", ".join(absent),
        )
    return (*kept, *(built_in.get(name, Task(name)) for name in extra))


def _has_folder(folder: Path, task: str) -> bool:
    return any(os.path.lexists(folder / name) for name in (task, folder_name(task)))


def read_adapters(
    folder: Path, config: ModelConfig, *, pooler: bool
) -> tuple[ModelConfig, dict[str, np.ndarray]]:
    """The config with the bank's rank and scale, and the bank of adapters of `config.tasks`.

    Raises ValueError for an adapter that is missing or damaged, or that is not plain LoRA.
    """
    modules = [m for m in list_modules(config, pooler=pooler, mlm=False) if m.has_adapters]
    adapters = [
        _read_adapter(folder, _existing_folder(folder, task.name, name))
        for task, name in zip(config.tasks, folder_names(config), strict=True)
    ]
    if not adapters:
        return config, _empty_bank(modules, config)
    updates = [_read_updates(adapter, modules) for adapter in adapters]
    ranks = [update[m.name].rank(m) for update in updates for m in modules if m.name in update]
    rank = max(ranks + [adapter.rank for adapter in adapters])
    _check_padding(adapters, updates, modules, rank)
    first = adapters[0]
    # rank * scale might differ from alpha in the last bit, so it is used only where it must be.
    alpha = first.alpha if first.scale == first.alpha / rank else first.scale * rank
    config = replace(config, adapter_rank=rank, adapter_alpha=alpha)
    factors = [adapter.scale / first.scale for adapter in adapters]
    bank = _empty_bank(modules, config)
    for module in modules:
        for parameter in ("lora_a", "lora_b"):
            name = f"{module.name}.{parameter}"
            pairs = [update.get(module.name) for update in updates]
            bank[name] = _stack(module, parameter, pairs, factors, bank[name].shape)
    return config, bank


def _check_padding(
    adapters: list[Adapter],
    updates: list[dict[str, Update]],
    modules: list[Module],
    rank: int,
) -> None:
    """Raise ValueError if the bank would be far larger than what the adapters' files hold.

    One adapter of a high rank makes the tensors of all adapters and modules that large.
    """
    need = 4 * rank * len(adapters) * sum(sum(module.shape) for module in modules)
    held = sum(4 * (a.size + b.size) for update in updates for a, b in update.values())
    if need > max(FREE_BYTES, MAX_PADDING * held):
        widest = max(adapters, key=lambda adapter: adapter.rank)
        raise ValueError(
            f"{widest.folder}: its rank of {widest.rank:,} would make the adapters of all modules "
            f"take {need:,} bytes, of which their files hold {held:,}; reduce r"
        )


def _existing_folder(folder: Path, task: str, name: str) -> str:
    """The task's folder. PEFT itself also accepts names with a hyphen."""
    return task if not os.path.lexists(folder / name) and (folder / task).exists() else name


def _empty_bank(modules: list[Module], config: ModelConfig) -> dict[str, np.ndarray]:
    return {
        f"{module.name}.{parameter}": np.zeros(shape, np.float32)
        for module in modules
        for parameter, shape in parameter_shapes(module, config).items()
        if parameter.startswith("lora")
    }


def _stack(
    module: Module,
    parameter: str,
    updates: list[Update | None],
    factors: list[float],
    shape: tuple[int, ...],
) -> np.ndarray:
    """One tensor of the bank: A of all adapters, or B of all adapters."""
    parts: list[np.ndarray | None] = []
    for update, factor in zip(updates, factors, strict=True):
        if update is None:
            parts.append(None)
        elif parameter == "lora_a":
            parts.append(update.a)
        else:
            parts.append(update.b if factor == 1 else update.b.astype(np.float32) * factor)
    dtypes = [part.dtype for part in parts if part is not None]
    stacked = np.zeros(shape, np.result_type(*dtypes) if dtypes else np.float32)
    for into, part in zip(stacked, parts, strict=True):
        if part is not None:
            into[: part.shape[0], : part.shape[1]] = part
    return stacked


def _read_adapter(folder: Path, name: str) -> Adapter:
    where = folder / name
    path = find_file(folder, f"{name}/adapter_config.json")
    if path is None:
        raise ValueError(f"{where} has no adapter_config.json, but config.json lists this adapter")
    settings = read_json(path)
    if settings.get("peft_type") != "LORA":
        raise ValueError(f"{path}: peft_type is {settings.get('peft_type')!r}, must be 'LORA'")
    for option, value in settings.items():
        if option not in KNOWN_OPTIONS and value not in DISABLED:
            raise ValueError(f"{path}: {option} is {value!r}; only plain LoRA is read")
    if settings.get("init_lora_weights") not in NEUTRAL_STARTS:
        raise ValueError(
            f"{path}: init_lora_weights is {settings['init_lora_weights']!r}, which changes the "
            "base; save it with PEFT's path_initial_model_for_weight_conversion"
        )
    rank, alpha = settings.get("r"), settings.get("lora_alpha")
    if type(rank) is not int or not 1 <= rank <= LIMITS["adapter_rank"]:
        raise ValueError(f"{path}: r is {rank!r}, must be 1..{LIMITS['adapter_rank']}")
    if isinstance(alpha, bool) or not isinstance(alpha, int | float) or not 0 < alpha <= MAX_ALPHA:
        raise ValueError(
            f"{path}: lora_alpha is {str(alpha)[:40]}, must be a number in (0, {MAX_ALPHA:,}]"
        )
    targets = settings.get("target_modules")
    if not isinstance(targets, list) or not all(isinstance(name, str) for name in targets):
        raise ValueError(f"{path}: target_modules must be a list of module names")
    weights = find_file(folder, f"{name}/adapter_model.safetensors")
    if weights is None:
        raise ValueError(f"{where} has no adapter_model.safetensors; no other format is read")
    tensors = {}
    for key, stored in read_tensors(weights).items():
        plain = key.removeprefix(PREFIX).removeprefix("roberta.")
        if plain in tensors:
            raise ValueError(f"{weights}: tensor {key!r} occurs twice")
        tensors[plain] = stored
    scale = alpha / (math.sqrt(rank) if settings.get("use_rslora") else rank)
    return Adapter(where, rank, float(alpha), scale, targets, tensors)


def _read_updates(adapter: Adapter, modules: list[Module]) -> dict[str, Update]:
    """The adapter's update of every module that it targets. No tensor may be left over."""
    tensors = dict(adapter.tensors)
    path = adapter.folder / "adapter_model.safetensors"

    def take(name: str, shape: tuple[int, ...]) -> np.ndarray:
        if name not in tensors:
            raise ValueError(f"{path} lacks tensor {name!r}, which target_modules requires")
        array = tensors.pop(name).array
        if array.shape != shape or array.dtype.kind == "i":
            raise ValueError(
                f"{path}: tensor {name!r} is {array.dtype} {list(array.shape)}, "
                f"must be floating point {list(shape)} (r is {adapter.rank})"
            )
        return array

    updates = {}
    for module in modules:
        wanted = [name for name in module.memory if _is_targeted(name, adapter.targets)]
        outputs, inputs = module.shape
        if wanted and module.kind == "embedding":
            a = take(f"{wanted[0]}.lora_embedding_A", (adapter.rank, outputs))
            b = take(f"{wanted[0]}.lora_embedding_B", (inputs, adapter.rank))
            updates[module.name] = Update(a.T, b.T)
        elif wanted:
            rows = outputs // len(module.memory)
            parts = {
                module.memory.index(name): Update(
                    take(f"{name}.lora_A.weight", (adapter.rank, inputs)),
                    take(f"{name}.lora_B.weight", (rows, adapter.rank)),
                )
                for name in wanted
            }
            updates[module.name] = _join(parts, rows, outputs)
    if tensors:
        raise ValueError(
            f"{path} has a tensor with no place in the model: {min(tensors)!r:.200}; "
            "target_modules in adapter_config.json must name the module of every tensor"
        )
    return updates


def _is_targeted(name: str, targets: list[str]) -> bool:
    """Whether PEFT would adapt the module: a target is a whole name, or its end after a dot."""
    return any(name == target or name.endswith(f".{target}") for target in targets)


def _join(parts: Mapping[int, Update], rows: int, outputs: int) -> Update:
    """One update for modules whose outputs are concatenated: part n starts at output n * rows.

    Parts with the same A share its columns in B; the other columns are zero in the part's outputs.
    """
    shared: list[np.ndarray] = []
    place = {}
    for number, (a, _) in parts.items():
        same = [i for i, other in enumerate(shared) if np.array_equal(a, other)]
        place[number] = same[0] if same else len(shared)
        if not same:
            shared.append(a)
    rank = shared[0].shape[0]
    dtype = np.result_type(*(b.dtype for _, b in parts.values()))
    joined = np.zeros((outputs, rank * len(shared)), dtype)
    for number, (_, b) in parts.items():
        column = place[number] * rank
        joined[number * rows : (number + 1) * rows, column : column + rank] = b
    return Update(np.concatenate(shared) if len(shared) > 1 else shared[0], joined)


def write_adapters(
    folder: Path,
    config: ModelConfig,
    modules: list[Module],
    load: Callable[[str], np.ndarray],
    dtype: np.dtype,
) -> None:
    """Write one PEFT folder per task; `load` returns a tensor of the bank by its name."""
    modules = [module for module in modules if module.has_adapters]
    alpha = config.adapter_alpha
    settings: dict[str, Any] = {
        "peft_type": "LORA",
        "task_type": None,
        "base_model_name_or_path": None,
        "inference_mode": True,
        "r": config.adapter_rank,
        "lora_alpha": int(alpha) if alpha == int(alpha) else alpha,
        "lora_dropout": 0.0,
        "bias": "none",
        # Whole names, because an ending such as "dense" would also match the MLM head.
        "target_modules": [name for module in modules for name in module.memory],
    }
    for adapter_id, name in enumerate(folder_names(config)):
        (folder / name).mkdir()
        tensors = {
            PREFIX + key: array
            for module in modules
            for key, array in _peft_tensors(
                module,
                load(f"{module.name}.lora_a")[adapter_id],
                load(f"{module.name}.lora_b")[adapter_id],
            )
        }
        write_tensors(folder / name / "adapter_model.safetensors", tensors, dtype=dtype)
        write_json(folder / name / "adapter_config.json", settings)


def _peft_tensors(module: Module, a: np.ndarray, b: np.ndarray) -> Iterator[tuple[str, np.ndarray]]:
    if module.kind == "embedding":
        yield f"{module.memory[0]}.lora_embedding_A", a.T
        yield f"{module.memory[0]}.lora_embedding_B", b.T
        return
    for name, part in zip(module.memory, np.split(b, len(module.memory)), strict=True):
        yield f"{name}.lora_A.weight", a
        yield f"{name}.lora_B.weight", part
