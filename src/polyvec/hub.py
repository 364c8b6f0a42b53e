"""Models from the Hugging Face hub: only safetensors and JSON files, and never code.

`huggingface_hub` reads its own settings: HF_TOKEN for models with restricted access, HF_ENDPOINT
for a mirror, HF_HUB_OFFLINE to use only what is cached, and HF_HOME for the cache.
"""

import logging
from pathlib import Path

from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

PATTERNS = ["*.safetensors", "*.json"]
"""The files of a model. ONNX, pickle and Python files are not downloaded."""

CLIENT_ERROR: type[Exception] = HfHubHTTPError.__bases__[0]
"""The HTTP client's own error. Versions of the library have used requests, httpx and httpx2."""


def download(name: str) -> Path:
    """The folder of a hub model, which is downloaded with a progress bar unless it is cached.

    `name` is "org/name", or "org/name@revision" for a branch, a tag or a commit. Without a network
    the cached model is used. Raises ValueError if the model does not exist or cannot be downloaded.
    """
    model, _, revision = name.partition("@")
    # It reports every attempt; the last one is reported here.
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)
    try:
        folder = Path(snapshot_download(model, revision=revision or None, allow_patterns=PATTERNS))
    except HFValidationError:
        raise ValueError(f"there is no folder {name}, and it names no hub model") from None
    except LocalEntryNotFoundError:
        raise ValueError(
            f"{name} is not on this machine yet, and the Hugging Face hub cannot be reached"
        ) from None
    except HfHubHTTPError as error:
        status = error.response.status_code
        raise ValueError(f"the Hugging Face hub refused {name} with status {status}") from None
    # The library takes for granted that a mirror or a proxy answers what the hub answers, so any
    # expression that reads an answer can fail.
    except (CLIENT_ERROR, OSError, ValueError, TypeError, LookupError, AttributeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ValueError(
            f"{name} could not be downloaded ({type(error).__name__}: {reason}); "
            "check the network and HF_ENDPOINT"
        ) from None
    if not (folder / "config.json").is_file():
        raise ValueError(f"{name} has no config.json on the hub, so it is no model for polyvec")
    return folder
