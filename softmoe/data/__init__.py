"""From examples by index to global batches on the devices, whatever they hold.

A folder for each kind of example says how one is loaded.
"""
