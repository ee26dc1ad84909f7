"""A suite's report: from one JSON a run to a table and a page to send."""
