"""What a program reads whose key opens nothing, or another project."""

import sys

import tinker
from program import connect, open_model, report

path = sys.argv[1] if len(sys.argv) > 1 else ""
told = {}
try:
    service = connect()
    if path:
        service.create_training_client_from_state(path).result()
    else:
        open_model(service)
except tinker.APIStatusError as error:
    told = {"status": error.status_code, "text": str(error)}
report(**told)
