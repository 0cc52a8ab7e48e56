"""Filters for whatever page shows a load's proof."""

from django import template

from webapp.deployments.proofs import list_phases

register = template.Library()
register.filter("phases", list_phases)
