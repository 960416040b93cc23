"""A finished folder to the Hub: what Niwaki wrote there, and nothing else that lies in it."""

from __future__ import annotations

import json
from pathlib import Path

from huggingface_hub import CommitOperationAdd, HfApi
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalTokenNotFoundError
from huggingface_hub.utils import validate_repo_id

from niwaki.checkpoint.folder import written_files
from niwaki.checkpoint.library import UNREADABLE, line
from niwaki.config.text import place_named
from niwaki.errors import RequestError, WorkError

_MODELS = ("config.json", "adapter_config.json", "modules.json")
"""Files of which a folder with a model has one."""

_OWN_BUSINESS = ("report.html", "result.json", "recipe.yaml")
"""Files that show rows of the evaluation data, or where models and data lie on this machine."""

_ADAPTER = "/adapter_config.json"
"""That of an adapter which lies below its base."""


def push(folder: Path, repository: str, private: bool = False, with_report: bool = False) -> str:
    """Upload a folder that Niwaki wrote to the model repository `owner/name`, made if it is not there; its address.

    `with_report` uploads also what shows rows of the evaluation data and where it lay: the report, the result that it
    is made of, the recipe.

    Raises:
        RequestError: a folder that Niwaki did not write or that holds no model, one whose mark leads out of it, a name
            that is none, a config of an adapter that cannot be read. WorkError: the Hub cannot be reached, or says no;
            a repository that is public already where `private` is asked.
    """
    folder = Path(place_named("DIR", folder))
    files = [path.relative_to(folder).as_posix() for path in written_files(folder)]
    if not files:
        raise RequestError(f"DIR must be a folder that Niwaki wrote, got {str(folder)!r}")
    if not set(files) & set(_MODELS):
        raise RequestError(f"DIR must hold a model, as prune and finetune write it, got {str(folder)!r} without")
    try:
        validate_repo_id(repository)
    except HFValidationError as error:
        raise RequestError(f"REPOSITORY must be owner/name, got {repository!r}: {error}") from error
    pushed = [name for name in files if with_report or name not in _OWN_BUSINESS]
    paths = {name: (folder / name).absolute() for name in pushed}  # a folder that is called ~ is not the home
    contents = {name: _based_on(repository, path) if name.endswith(_ADAPTER) else path for name, path in paths.items()}
    try:
        operations = [CommitOperationAdd(name, content) for name, content in contents.items()]
    except ValueError as error:  # a name that is none there, such as .git
        raise RequestError(f"DIR must hold files that the Hub takes, got {str(folder)!r}: {line(error)}") from error
    api = HfApi()
    try:
        address = api.create_repo(repository, private=private or None, exist_ok=True)
        if private and not api.model_info(repository).private:  # the Hub leaves what is there as it is
            raise WorkError(f"the Hub has {repository!r} already, and it is public; nothing was uploaded")
        api.create_commit(repository, operations, commit_message="Written by Niwaki")
    except LocalTokenNotFoundError as error:
        raise WorkError("the Hub asks who you are: log in with `hf auth login`, or set HF_TOKEN") from error
    except (HfHubHTTPError, OSError) as error:
        raise WorkError(f"the Hub did not take {repository!r}: {' '.join(str(error).split())}") from error
    return str(address)


def _based_on(repository: str, path: Path) -> bytes:
    """The config of an adapter with the repository as its base, in place of where that lies on this machine.

    Raises:
        RequestError: a file that is none.
    """
    try:
        config = dict(json.loads(path.read_text(encoding="utf-8")))
    except UNREADABLE as error:
        raise RequestError(f"DIR must hold adapters as PEFT writes them, got {str(path)!r}: {line(error)}") from error
    return (json.dumps({**config, "base_model_name_or_path": repository}, indent=2) + "\n").encode()
