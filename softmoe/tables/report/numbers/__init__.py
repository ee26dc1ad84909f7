"""What a report counts: runs, groups of seeds, metrics, costs, intervals."""
