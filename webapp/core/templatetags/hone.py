"""Filters that write numbers, sizes, durations and times the way every page does."""

from django import template

register = template.Library()
