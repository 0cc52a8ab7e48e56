#!/usr/bin/env python
"""Django's command line, and Hone's: up, model add, sampler."""

import os
import sys

from django.conf import settings
from django.core.exceptions import ImproperlyConfigured
from django.core.management import execute_from_command_line


def main() -> None:
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "webapp.settings")
    try:
        settings.HONE_HOME  # noqa: B018 - reads the settings, which make the state folder
    except (ImproperlyConfigured, OSError) as error:
        sys.exit(f"The settings cannot be read: {error}.")
    execute_from_command_line(sys.argv)


if __name__ == "__main__":
    main()
