"""Read by lm-eval's Python before lm-eval: a task's templates get no further than its rows."""

import jinja2
from jinja2.sandbox import SandboxedEnvironment

# lm-eval takes its environment from here, and fills templates in without a sandbox of its own.
vars(jinja2)["Environment"] = SandboxedEnvironment
