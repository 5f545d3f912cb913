"""The quick start: a data set that needs no download, and its report."""

from .data import CLASSES, write_dataset
from .report import write_report

__all__ = ['CLASSES', 'write_dataset', 'write_report']
