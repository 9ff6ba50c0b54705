"""A conversation as a model was trained to read it, and which of its tokens each speaker said.

Notable: templates are data of strangers; transformers renders them in a sandbox. Who said what is
found by rendering twice, the second time with a mark in each message's place, so a word of a
message that also occurs in the template's own text is never taken for it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, final

from workbench.core.errors import FormatError, PromptError


class Span(NamedTuple):
    """The tokens of what one speaker said, without the template's own words around it."""

    role: str
    start: int
    stop: int


@final
@dataclass(frozen=True)
class ChatPrompt:
    """A rendered conversation; `spans` is empty where the template rewrites what was said."""

    text: str
    ids: tuple[int, ...]
    spans: tuple[Span, ...]


Message = Mapping[str, str]


def render(
    template: str,
    messages: Sequence[Message],
    special: Mapping[str, str],
    *,
    add_generation_prompt: bool,
) -> str:
    """The text of a conversation under a template.

    Raises:
        PromptError: If the template refuses the messages; says why.
        FormatError: If the template itself is broken.
    """
    from jinja2 import TemplateError, TemplateSyntaxError
    from jinja2.exceptions import SecurityError
    from transformers.utils import chat_template_utils

    untyped: Any = chat_template_utils
    plain = [dict(message) for message in messages]
    try:
        texts, _ = untyped.render_jinja_template(
            [plain],
            chat_template=template,
            add_generation_prompt=add_generation_prompt,
            **special,
        )
    except (TemplateSyntaxError, SecurityError) as error:
        raise FormatError(f"The model's chat template cannot be used: {error}.") from None
    except (TemplateError, TypeError, ValueError, KeyError, IndexError, OverflowError) as error:
        raise PromptError(
            f"The model's chat template refuses these {len(plain)} messages: {error}. "
            "Most want an optional 'system', then 'user' and 'assistant' in turn."
        ) from None
    return str(texts[0])


def check_messages(messages: Sequence[Message]) -> None:
    """Refuses what is no conversation.

    Raises:
        PromptError: If there is no message, or one lacks a role or text content.
    """
    if not messages:
        raise PromptError("A conversation needs at least one message, {'role': …, 'content': …}.")
    for place, message in enumerate(messages):
        if not isinstance(message, Mapping):
            wanted = "a table with 'role' and 'content'"
            raise PromptError(f"message {place}: expected {wanted}, got {message!r:.60}.")
        for key in ("role", "content"):
            if not isinstance(message.get(key), str):
                raise PromptError(
                    f"message {place}: expected text under {key!r}, got {message.get(key)!r}."
                )


def said(
    template: str, messages: Sequence[Message], special: Mapping[str, str], text: str
) -> tuple[tuple[int, int], ...]:
    """Where in `text` each message's content stands; empty if the template rewrites it."""
    marks = [f"\ue000{place}\ue001" for place in range(len(messages))]
    marked = [{**message, "content": mark} for message, mark in zip(messages, marks, strict=True)]
    try:
        frame = render(template, marked, special, add_generation_prompt=False)
    except (PromptError, FormatError):
        return ()
    found: list[tuple[int, int]] = []
    at = 0
    for message, mark in zip(messages, marks, strict=True):
        before, marked_here, frame = frame.partition(mark)
        content = message["content"]
        start = at + len(before)
        as_said = next((c for c in (content, content.strip()) if text.startswith(c, start)), None)
        if not marked_here or as_said is None or text[at:start] != before:
            return ()
        at = start + len(as_said)
        found.append((start, at))
    return tuple(found) if text.startswith(frame, at) else ()
