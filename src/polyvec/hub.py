"""Models from the Hugging Face hub: safetensors and JSON files, and nothing that is code."""

from pathlib import Path

from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

PATTERNS = ["*.safetensors", "*.json"]
"""What a model is made of; ONNX, pickle and Python files stay where they are."""


def download(name: str) -> Path:
    """The folder of a hub model, downloaded with a progress bar unless it is here already.

    Without a network it is taken from the cache. Raises ValueError if it can't be had.
    """
    try:
        return Path(snapshot_download(name, allow_patterns=PATTERNS))
    except HFValidationError:
        raise ValueError(f"there is no folder {name}, and it is no name of a hub model") from None
    except LocalEntryNotFoundError:
        raise ValueError(
            f"{name} is not on this machine yet, and the Hugging Face hub can't be reached"
        ) from None
    except HfHubHTTPError as error:
        status = error.response.status_code
        raise ValueError(f"the Hugging Face hub refused {name} with status {status}") from None
