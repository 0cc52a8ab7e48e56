"""Exports pushed to a Hub, with a token that lives as long as the call."""

from pathlib import Path

import httpx2
from django.conf import settings
from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, OfflineModeIsEnabled

from training.errors import InvalidInput
from webapp.checkpoints.models import Export

DENIED = (401, 403)


def push_export(
    export: Export, repo: str, token: str, *, is_private: bool = True, endpoint: str | None = None
) -> str:
    """The url of what is there then. InvalidInput says in a sentence why nothing is."""
    folder = Path(settings.HONE_HOME) / export.path
    if not export.is_ready or not folder.is_dir():
        raise InvalidInput(f"the export {export.pk} is {export.status}: nothing is there to push")
    api = HfApi(endpoint=endpoint, token=token)
    try:
        api.create_repo(repo, private=is_private, exist_ok=True)
        message = f"{export.checkpoint.name}, step {export.checkpoint.step}"
        done = api.upload_folder(repo_id=repo, folder_path=folder, commit_message=message)
    except HFValidationError as error:
        raise InvalidInput(f"{repo!r} is no name of a repository: {error}") from None
    except HfHubHTTPError as error:
        raise InvalidInput(say_refusal(error, repo, api.endpoint)) from None
    except OfflineModeIsEnabled:
        raise InvalidInput("HF_HUB_OFFLINE is set: unset it for this call") from None
    except (httpx2.TransportError, OSError) as error:
        raise InvalidInput(
            f"{api.endpoint} cannot be reached from here ({type(error).__name__}): download the"
            " export, and push it from a machine with a network"
        ) from None
    return str(done.commit_url)


def say_refusal(error: HfHubHTTPError, repo: str, endpoint: str) -> str:
    status = error.response.status_code
    if status in DENIED:
        return f"{endpoint} did not take the token for {repo}: it needs the right to write there"
    return f"{endpoint} answered {status} for {repo}: {error.server_message or error}"
