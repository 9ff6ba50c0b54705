"""The web application: `streamlit run app/main.py`, or `python app/main.py --port 8501`.

Notable: this file runs from a checkout (`app/`) and from an installed wheel (`workbench/_app/`);
either way its folder is made importable as `app`, because Streamlit starts files, not packages.
"""

import importlib.util
import sys
from pathlib import Path

from streamlit.starlette import App

HERE = Path(__file__).resolve().parent


def _as_package(folder: Path) -> None:
    if "app" in sys.modules:
        return
    if importlib.util.find_spec("workbench") is None:
        sys.path.insert(0, str(folder.parent))  # a checkout that is not installed
    where = [str(folder)]
    spec = importlib.util.spec_from_file_location(
        "app", folder / "__init__.py", submodule_search_locations=where
    )
    assert spec is not None
    assert spec.loader is not None
    package = importlib.util.module_from_spec(spec)
    sys.modules["app"] = package
    spec.loader.exec_module(package)


_as_package(HERE)

from app.server import lifespan, middleware, on_script_error, routes  # noqa: E402 - needs `app`

# Streamlit finds this assignment by reading the file, so it must stay a plain call.
app = App(
    HERE / "script" / "ui.py",
    lifespan=lifespan,
    middleware=middleware(),
    routes=routes(),
    on_script_error=on_script_error,
)

if __name__ == "__main__":
    from app.options import options

    app.run(config=options(sys.argv[1:]))
