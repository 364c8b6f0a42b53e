"""`polyvec info`: what a model is."""

import sys

from polyvec.terminal import plain_line


def info(model: str | None = None, /) -> None:
    """Describe a model: its shape, tasks, embedding sizes and heads.

    The list also says in which layout the model is stored, and how large it is.

    polyvec info

    polyvec info path/to/model

    Parameters
    ----------
    model
        A model folder or a name on the Hugging Face hub. The default is the bundled model.

    """
    import math

    from polyvec.checkpoint import detect_layout, load_checkpoint
    from polyvec.model_folder import find_model

    folder = find_model(model)
    config, weights = load_checkpoint(folder)
    parameters = sum(math.prod(weight.shape) for weight in weights.values())
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    facts = {
        "model": str(folder),
        "layout": detect_layout(folder),
        "parameters": f"{parameters:,}",
        "size on disk": f"{size / 1e6:,.1f} MB",
        "vocabulary": f"{config.vocab_size:,} pieces",
        "layers": f"{config.num_layers} of width {config.width}",
        "heads": f"{config.num_heads}, feed-forward {config.ffn_width:,}",
        "longest text": f"{config.max_tokens:,} tokens",
        "dims": ", ".join(map(str, config.dims)),
        "tasks": ", ".join(task.name for task in config.tasks) or "none",
        "adapters": f"rank {config.adapter_rank}" if config.tasks else "none",
        "sparse head": "yes" if config.sparse_head else "none",
        "multi-vector": f"{config.multi_vector_dim} numbers per token"
        if config.multi_vector_dim
        else "none",
    }
    for name, value in facts.items():
        sys.stdout.write(plain_line(f"{name:13} {value}") + "\n")
