"""The command line of the processes."""
