"""From a source to global batches on the devices."""
