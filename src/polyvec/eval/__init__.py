"""Evaluation of any embedding model with mteb, on task folders or on mteb's own tasks."""

from polyvec.eval.markdown_report import render_report
from polyvec.eval.models import load_model
from polyvec.eval.protocol import MtebEncoder, paper_adapter
from polyvec.eval.results import Score, Summary, TaskScore, read_summaries
from polyvec.eval.runner import evaluate
from polyvec.eval.task_folders import local_tasks

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
