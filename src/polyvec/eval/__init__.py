"""Scores for any embedding model, on the field's own benchmark code (mteb)."""

from polyvec.eval.local import local_tasks
from polyvec.eval.models import load_model
from polyvec.eval.protocol import MtebEncoder, paper_adapter
from polyvec.eval.report import render_report
from polyvec.eval.run import evaluate
from polyvec.eval.summary import Score, Summary, TaskScore, read_summaries

__all__ = [
    "MtebEncoder",
    "Score",
    "Summary",
    "TaskScore",
    "evaluate",
    "load_model",
    "local_tasks",
    "paper_adapter",
    "read_summaries",
    "render_report",
]
