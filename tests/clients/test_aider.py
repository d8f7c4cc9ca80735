"""aider, unmodified, edits a file of a real git repository with a model behind the gateway."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from tests.clients import upstream
from tests.clients.appliance import Appliance
from tests.clients.upstream import ToolCaller
from tests.support.environments import environment

HERE = Path(__file__).parent
QUIET = ("--yes-always", "--no-check-update", "--no-show-model-warnings", "--analytics-disable", "--no-gitignore")


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """One file, one commit."""
    place = tmp_path / "repository"
    place.mkdir()
    (place / upstream.EDITED).write_text(upstream.BEFORE)
    for words in (["init", "--quiet"], ["add", "."], ["commit", "--quiet", "--message", "First"]):
        git(place, *words)
    return place


def git(place: Path, *words: str) -> str:
    done = subprocess.run(["git", *words], cwd=place, env=environ(place), capture_output=True, text=True, check=True)
    return done.stdout


def environ(place: Path, **more: str) -> dict[str, str]:
    """Nothing of the caller's own settings."""
    author = {"GIT_AUTHOR_NAME": "Test", "GIT_AUTHOR_EMAIL": "test@example.invalid"}
    committer = {"GIT_COMMITTER_NAME": "Test", "GIT_COMMITTER_EMAIL": "test@example.invalid"}
    return {"PATH": os.environ["PATH"], "HOME": str(place.parent), **author, **committer, **more}


@pytest.mark.parametrize("streams", ["--stream", "--no-stream"])
def test_it_edits_and_commits(fleet: Appliance, caller: ToolCaller, repository: Path, streams: str) -> None:
    caller.seen.clear()
    model = ["--model", f"openai/{upstream.EDITOR}", "--edit-format", "diff", "--map-tokens", "0", streams]
    done = subprocess.run(
        [environment(HERE / "aider.txt") / "aider", *model, *QUIET, "--message", "Greet the world", upstream.EDITED],
        cwd=repository,
        env=environ(repository, OPENAI_API_BASE=fleet.url, OPENAI_API_KEY=fleet.token),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert (repository / upstream.EDITED).read_text() == upstream.AFTER, done.stdout
    assert git(repository, "log", "--format=%s").splitlines() == [upstream.COMMIT, "First"]
    edit = caller.requests[0]
    assert edit.get("stream", False) == (streams == "--stream")
