"""Scores for any embedding model, on the field's own benchmark code (mteb)."""

from polyvec.eval.local import local_tasks
from polyvec.eval.models import MODELS, load_model
from polyvec.eval.protocol import MtebEncoder, paper_adapter
from polyvec.eval.report import render_report
from polyvec.eval.run import Summary, evaluate, read_summaries

__all__ = [
    "MODELS",
    "MtebEncoder",
    "Summary",
    "evaluate",
    "load_model",
    "local_tasks",
    "paper_adapter",
    "read_summaries",
    "render_report",
]
