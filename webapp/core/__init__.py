"""What every app stands on: errors, ids, events, dispatch and the REST defaults."""
