"""The folder of a model: the bundled one, one on disk, or one that is downloaded first."""

import importlib.util
from pathlib import Path

BUNDLED = Path(__file__).parent / "models" / "mini"
"""The model that ships with the package."""

BUNDLED_NAMES = ("mini", "polyvec-mini")
"""Names of the bundled model, unless a folder has the name."""


def find_model(model: str | Path | None) -> Path:
    """The folder of a model. A model of the Hugging Face hub is downloaded first, once.

    `model` is as for `Encoder.load`; "mini" is the bundled model, like None. Raises
    ValueError if there is no such model.
    """
    if model is None:
        return BUNDLED
    if Path(model).is_dir():
        return Path(model)
    if model in BUNDLED_NAMES:
        return BUNDLED
    # A revision after "@" may have slashes of its own.
    if isinstance(model, str) and model.partition("@")[0].count("/") == 1 and model[0] not in "/.~":
        if importlib.util.find_spec("huggingface_hub") is None:
            raise ValueError(
                f"there is no folder {model}; downloading a model from the Hugging Face hub needs "
                "an extra: pip install 'polyvec[hub]'"
            )
        from polyvec.hub import download

        return download(model)
    raise ValueError(f"there is no folder {model}")
