"""Uploaded rows: immutable versions, their validation reports and token previews."""
