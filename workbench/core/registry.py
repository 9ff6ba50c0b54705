"""Extensions found by their file: one public module of a folder, one constant, no list to keep.

The file's name is the extension's name (`direct_logit_attribution.py`). A dash in what a user
types is the same as an underscore.
"""

import importlib
import pkgutil
from collections.abc import Iterator, Mapping
from typing import Generic, TypeVar, final

from typing_extensions import override

from workbench.core.errors import UnknownNameError

Extension = TypeVar("Extension")


@final
class Registry(Mapping[str, Extension], Generic[Extension]):
    """A read-only table of a folder's extensions, imported when first looked at."""

    def __init__(self, package: str, constant: str, kind: type[Extension]) -> None:
        self._package, self._constant, self._kind = package, constant, kind

    @override
    def __getitem__(self, name: str) -> Extension:
        """The extension of that name.

        Raises:
            UnknownNameError: If the folder has no such file; names the nearest.
            TypeError: If the file does not define the constant as it must.
        """
        file = name.replace("-", "_") if isinstance(name, str) else ""
        if file not in self._names():
            raise UnknownNameError(self._what, str(name), self._names())
        module = importlib.import_module(f"{self._package}.{file}")
        extension = vars(module).get(self._constant)
        if not isinstance(extension, self._kind):
            message = f"{module.__name__}.{self._constant} is no {self._kind.__name__}"
            raise TypeError(message)
        return extension

    @property
    def _what(self) -> str:
        """One of the folder's extensions, in words: a family, a method, a data set."""
        folder = self._package.rsplit(".", 1)[-1]
        single = f"{folder[:-3]}y" if folder.endswith("ies") else folder.removesuffix("s")
        return single.replace("dataset", "data set")

    @override
    def __iter__(self) -> Iterator[str]:
        return iter(self._names())

    @override
    def __len__(self) -> int:
        return len(self._names())

    def _names(self) -> tuple[str, ...]:
        path = importlib.import_module(self._package).__path__
        names = (module.name for module in pkgutil.iter_modules(path))
        return tuple(sorted(name for name in names if not name.startswith("_")))


def discover(package: str, constant: str, kind: type[Extension]) -> Registry[Extension]:
    """The extensions of a folder: each public module's `constant`, which must be a `kind`.

    Nothing is imported until a name is looked up, so that `import workbench` stays light.
    """
    return Registry(package, constant, kind)
