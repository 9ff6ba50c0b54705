"""Starting the app: from a checkout (`app/`) or from an installed wheel (`workbench/_app/`)."""

import os
import subprocess
import sys
from pathlib import Path

from workbench.core.errors import MissingDependencyError, OptionError

HERE = Path(__file__).resolve().parent
PORTS = range(1, 65536)


def serve_app(*, port: int = 8501, model: str | None = None) -> int:
    """Serves the app on 127.0.0.1 until it is stopped; its exit code.

    `model` is what the app loads first; it reads it from `WORKBENCH_MODEL`.

    Raises:
        OptionError: If the port is none.
        MissingDependencyError: If this installation came without the app.
    """
    if port not in PORTS:
        raise OptionError("port", "1…65535", port)
    environment = {**os.environ} | ({} if model is None else {"WORKBENCH_MODEL": model})
    command = [sys.executable, str(app_file()), "--port", str(port)]
    try:
        return subprocess.run(command, env=environment, check=False).returncode
    except KeyboardInterrupt:
        return 0


def app_file() -> Path:
    """The file that starts the app.

    Raises:
        MissingDependencyError: If it is not there.
    """
    for candidate in (HERE / "_app" / "main.py", HERE.parent / "app" / "main.py"):
        if candidate.exists():
            return candidate
    raise MissingDependencyError("This installation has no app; install interp-workbench again.")
