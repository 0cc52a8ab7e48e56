"""The tests of Hone."""
