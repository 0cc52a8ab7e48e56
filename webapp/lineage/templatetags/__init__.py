"""Lineage as parts of other apps' pages."""
