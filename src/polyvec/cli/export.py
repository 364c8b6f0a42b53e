"""`polyvec export`: a model in the layout that other libraries read."""

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from polyvec.terminal import note


def export(
    model: str, folder: Annotated[Path, Parameter(name="OUT")], /, *, int8: bool = False
) -> None:
    """Write a model in full precision, in the layout that transformers and PEFT read.

    With --int8 it is written in polyvec's own layout, with 8 bits per number, in half of the space
    that bfloat16 takes.

    polyvec export mini exported/

    polyvec export jinaai/jina-embeddings-v3 smaller/ --int8

    Parameters
    ----------
    model
        A model folder or a name on the Hugging Face hub. "mini" is the bundled model.
    folder
        The folder to write. An older export in it is replaced; a folder with other contents is
        refused.
    int8
        Write 8 bits per number. Only polyvec reads this layout. Many processors also encode large
        models faster with it.

    """
    from polyvec.checkpoint import load_checkpoint, save_checkpoint, save_compact
    from polyvec.model_folder import find_model
    from polyvec.tokenizer import Tokenizer

    source = find_model(model)
    config, weights = load_checkpoint(source)
    files = Tokenizer.load(source, config.max_tokens).files()
    (save_compact if int8 else save_checkpoint)(folder, config, weights, files=files)
    note(f"wrote {folder}")
