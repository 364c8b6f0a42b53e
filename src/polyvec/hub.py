"""Models from the Hugging Face hub: only safetensors and JSON files, and never code."""

from pathlib import Path

from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

PATTERNS = ["*.safetensors", "*.json"]
"""The files of a model. ONNX, pickle and Python files are not downloaded."""


def download(name: str) -> Path:
    """The folder of a hub model, which is downloaded with a progress bar unless it is cached.

    Without a network the cached model is used. Raises ValueError if the model does not exist or
    cannot be downloaded.
    """
    try:
        return Path(snapshot_download(name, allow_patterns=PATTERNS))
    except HFValidationError:
        raise ValueError(f"there is no folder {name}, and it names no hub model") from None
    except LocalEntryNotFoundError:
        raise ValueError(
            f"{name} is not on this machine yet, and the Hugging Face hub cannot be reached"
        ) from None
    except HfHubHTTPError as error:
        status = error.response.status_code
        raise ValueError(f"the Hugging Face hub refused {name} with status {status}") from None
