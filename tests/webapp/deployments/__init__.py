"""Tests of webapp.deployments."""
