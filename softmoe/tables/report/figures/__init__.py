"""Which plots a report has, made from groups of runs."""
