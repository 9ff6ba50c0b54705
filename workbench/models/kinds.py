"""Which kind of model a stack is one of: a registry would be more than these three lines."""

from workbench.core.protocols import Vocabulary
from workbench.models.encoder_decoder import EncoderDecoder, TwoStacks
from workbench.models.transformer import Origin, Stack, Transformer
from workbench.models.two_stream import TwoStream, TwoStreamStack


def model_of(
    stack: Stack,
    *,
    name: str,
    fingerprint: str,
    tokenizer: Vocabulary | None,
    origin: Origin | None = None,
) -> Transformer:
    """The frozen model of one stack, of two, or of two streams."""
    match stack:
        case TwoStacks():
            return EncoderDecoder(
                stack, name=name, fingerprint=fingerprint, tokenizer=tokenizer, origin=origin
            )
        case TwoStreamStack():
            return TwoStream(
                stack, name=name, fingerprint=fingerprint, tokenizer=tokenizer, origin=origin
            )
        case _:
            return Transformer(
                stack, name=name, fingerprint=fingerprint, tokenizer=tokenizer, origin=origin
            )
