"""The folder of training and evaluation data, which the repository does not contain."""

import os
from pathlib import Path

DATA_VARIABLE = "POLYVEC_DATA"
"""Name of the environment variable that holds the folder."""


def data_folder(given: Path | None) -> Path:
    """Return `given`, or the folder that `POLYVEC_DATA` names.

    Raises ValueError if there is neither, or if the path is not a folder; the message says how to
    get data.
    """
    named = os.environ.get(DATA_VARIABLE)
    if given is None and not named:
        raise ValueError(
            f"no data folder: pass --data FOLDER or set {DATA_VARIABLE}; polyvec ships no data, "
            'and docs/training.md ("Data") describes the folder, its tables and how to make them'
        )
    folder = Path(named or "") if given is None else given
    if not folder.is_dir():
        raise ValueError(
            f'the data folder {folder} does not exist; docs/training.md ("Data") describes '
            "the folder, its tables and how to make them"
        )
    return folder


def has_data_folder(given: Path | None) -> bool:
    """Tell whether a data folder is named, by the argument or by `POLYVEC_DATA`."""
    return given is not None or bool(os.environ.get(DATA_VARIABLE))
