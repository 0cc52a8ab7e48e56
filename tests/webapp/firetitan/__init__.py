"""Tests of webapp.firetitan."""
