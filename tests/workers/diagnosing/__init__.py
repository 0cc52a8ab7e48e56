"""What each diagnostic says, just below and just above its bounds."""
