"""What a page is. Its file's name is its address; `order` says where it stands in the menu."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from app.desk import Desk


@dataclass(frozen=True)
class Page:
    """A lens on the investigation: `render` draws it, given a desk whose frame is already drawn."""

    title: str
    icon: str  # "" for none; else a name such as ":material/grid_on:"
    render: Callable[["Desk"], None]
    order: int = 100  # pages of the same order stand in alphabetical order
