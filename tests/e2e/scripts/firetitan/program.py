"""What every script of a user of the Fireworks SDK begins with. Each prints one JSON object."""

import json
import logging
import os
import sys
from typing import Any

API_KEY = os.environ["FIREWORKS_API_KEY"]
BASE_URL = os.environ["FIREWORKS_BASE_URL"]
MODEL = "accounts/fireworks/models/tiny-chatml-1m"
SHAPE = "accounts/fireworks/trainingShapes/tiny-chatml-1m-cpu"

logging.basicConfig(stream=sys.stderr, level=logging.INFO)


def report(**result: Any) -> None:
    print(json.dumps(result, default=str))
