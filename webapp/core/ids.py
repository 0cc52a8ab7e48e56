"""Short public ids that say what they name, such as `run-8f3k2m9q4x7t`."""

import secrets
from functools import partial

ALPHABET = "23456789abcdefghjkmnpqrstuvwxyz"  # no 0, o, 1, i, l: people read these aloud


def make_id(prefix: str) -> str:
    return f"{prefix}-{''.join(secrets.choice(ALPHABET) for _ in range(12))}"


make_project_id = partial(make_id, "prj")
make_key_id = partial(make_id, "key")
make_base_model_id = partial(make_id, "base")
make_isolation_test_id = partial(make_id, "iso")
make_dataset_id = partial(make_id, "ds")
make_version_id = partial(make_id, "dsv")
make_generation_id = partial(make_id, "gen")
make_run_id = partial(make_id, "run")
make_checkpoint_id = partial(make_id, "ckpt")
make_export_id = partial(make_id, "exp")
make_deployment_id = partial(make_id, "dep")
make_session_id = partial(make_id, "ses")
make_custom_loss_id = partial(make_id, "loss")
make_sampling_session_id = partial(make_id, "sam")
make_suite_id = partial(make_id, "suite")
make_evaluation_id = partial(make_id, "eval")
make_run_group_id = partial(make_id, "grp")
make_alias_id = partial(make_id, "alias")
make_webhook_id = partial(make_id, "hook")
