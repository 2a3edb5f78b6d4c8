"""A soak: concurrent callers under random faults, and their recorded history held to the books."""
