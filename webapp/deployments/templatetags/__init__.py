"""Template filters of serving."""
