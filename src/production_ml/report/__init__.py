"""The report: one HTML file that tells what a run did, how it failed and how it came back."""

from production_ml.report.run_report import write_report

__all__ = ["write_report"]
