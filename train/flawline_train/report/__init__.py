"""The training report: one page beside the bundle to explore, one inside it that runs nothing."""

from flawline_train.report.data import ReportData, report_of_manifest
from flawline_train.report.page import interactive_html, report_path, static_html

__all__ = ["ReportData", "interactive_html", "report_of_manifest", "report_path", "static_html"]
