"""The run report: one HTML file that tells what happened."""
