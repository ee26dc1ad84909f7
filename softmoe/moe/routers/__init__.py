"""Who goes to which expert: what the papers propose, a file each."""
