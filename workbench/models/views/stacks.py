"""A stack like another, of which some weights and parts are replaced and all others shared."""

import copy
from collections.abc import Callable
from dataclasses import replace

from torch import Tensor, nn

from workbench.core.errors import OptionError
from workbench.models.encoder_decoder import built
from workbench.models.layers.embed import Embedding, Unembedding
from workbench.models.layers.linear import Tiled
from workbench.models.layers.mlp import MLP, GatedMLP
from workbench.models.transformer import PreNormBlock, Stack, Transformer


def shared(stack: Stack) -> Stack:
    """A stack of its own whose weights are the very tensors of the other; costs no memory."""
    memo: dict[int, object] = {id(weight): weight for weight in stack.parameters()}
    return copy.deepcopy(stack, memo)


def cloned(stack: Stack) -> Stack:
    """A stack with weights of its own."""
    return copy.deepcopy(stack)


def frozen(value: Tensor) -> nn.Parameter:
    """A weight that takes no gradient."""
    return nn.Parameter(value.detach(), requires_grad=False)


def put(linear: nn.Linear, weight: Tensor, bias: Tensor | None) -> None:
    """Gives a linear map other weights; only for a stack that `shared` has made."""
    linear.weight = frozen(weight)
    if bias is not None:
        linear.bias = frozen(bias)


def blocks_of(stack: Stack) -> tuple[PreNormBlock, ...]:
    """Its blocks, typed, of a stack whose norms all come before what reads them.

    Raises:
        OptionError: If there are other blocks, or its vocabulary is narrower than its stream: of
            these, nothing here knows the parts.
    """
    embed, head = stack.embed, stack.unembed
    narrow = isinstance(embed, Embedding) and embed.project is not None
    if narrow or (isinstance(head, Unembedding) and head.project is not None):
        allowed = "a model whose vocabulary is as wide as its stream, for weight views"
        raise OptionError("model", allowed, f"one of width {stack.embed.tokens.shape[1]}")
    blocks = tuple(block for block in stack.blocks if isinstance(block, PreNormBlock))
    others = [type(b).__name__ for b in stack.blocks if not isinstance(b, PreNormBlock)]
    others += [type(b.mlp).__name__ for b in blocks if not isinstance(b.mlp, MLP | GatedMLP | None)]
    if others:
        allowed = "a model of pre-norm blocks, as weight views and the classic interface need it"
        raise OptionError("model", allowed, f"one of {others[0]}")
    return blocks


def words_of(stack: Stack) -> Unembedding:
    """Its unembedding, of a stack that has no other head.

    Raises:
        OptionError: If it has another head: of that, nothing here knows the parts.
    """
    head = stack.unembed
    if not isinstance(head, Unembedding):
        allowed = "a model with a plain unembedding, as weight views and the classic interface need"
        raise OptionError("model", allowed, f"one with a {type(head).__name__}")
    return head


def embed_of(stack: Stack) -> Embedding:
    """Its embedding, of a stack that has no other kind.

    Raises:
        OptionError: If it has another: of that, nothing here knows the parts.
    """
    embed = stack.embed
    if not isinstance(embed, Embedding):
        allowed = "a model with a plain embedding, as weight views and the classic interface need"
        raise OptionError("model", allowed, f"one with a {type(embed).__name__}")
    return embed


def bias_of(linear: nn.Linear) -> Tensor | None:
    """A linear map's bias, where it has one."""
    return dict(linear.named_parameters()).get("bias")


def ungrouped(model: Transformer) -> Transformer:
    """A view in which each head has keys and values of its own, those of its group; says the same.

    It shares all but the weights of keys and values.
    """
    stack = shared(model.stack)
    for block in blocks_of(stack):
        attn = block.attn
        times = attn.n_heads // attn.n_groups
        for linear in (attn.k, attn.v):
            weight, bias = linear.weight.unflatten(0, (-1, attn.d_head)), bias_of(linear)
            own = None if bias is None else bias.unflatten(0, (-1, attn.d_head))
            repeated = None if own is None else own.repeat_interleave(times, 0).flatten()
            put(linear, weight.repeat_interleave(times, 0).flatten(0, 1), repeated)
        attn.n_groups = block.inputs.n_groups = attn.n_heads
    stack.sizes = replace(stack.sizes, n_key_value_heads=stack.sizes.n_heads)
    return like(model, stack, "ungrouped")


def first_blocks(model: Transformer, n_layers: int | None, n_ctx: int | None) -> Transformer:
    """The first blocks of a model, or with a shorter context; itself for None.

    Raises:
        OptionError: If it has not so many blocks, or reads not so much.
    """
    if n_layers is None and n_ctx is None:
        return model
    sizes = model.sizes
    count = sizes.n_layers if n_layers is None else n_layers
    length = sizes.n_ctx if n_ctx is None else n_ctx
    if not 1 <= count <= sizes.n_layers:
        raise OptionError("first_n_layers", f"within 1…{sizes.n_layers}", n_layers)
    if not 1 <= length <= sizes.n_ctx:
        raise OptionError("n_ctx", f"within 1…{sizes.n_ctx}", n_ctx)
    whole = shared(model.stack)
    if whole.embed.positions is not None:
        whole.embed.positions = frozen(whole.embed.positions[:length])
    stack = Stack(
        sizes=replace(sizes, n_layers=count, n_ctx=length),
        embed=whole.embed,
        blocks=blocks_of(whole)[:count],
        ln_final=whole.ln_final,
        unembed=whole.unembed,
        rotary=whole.rotary,
        local_rotary=whole.local_rotary,
        causal=whole.causal,
        tied=whole.tied,
        score_bias=whole.score_bias,
    )
    return like(model, stack, f"first {count} blocks, {length} positions")


def like(model: Transformer, stack: Stack, change: str) -> Transformer:
    """A model of that stack, named like the other; `change` sets its fingerprint apart."""
    fingerprint = f"{model.fingerprint}+{change}" if change else model.fingerprint
    return built(stack, name=model.name, fingerprint=fingerprint, tokenizer=model.tokenizer)


def untiled(model: Transformer) -> Transformer:
    """The same tensors in a stack of its own, without second forms of its matrices.

    Those would not see a write to what they were made of.
    """
    stack = shared(model.stack)
    for part in stack.modules():
        if isinstance(part, Tiled):
            part.tiles = None
    return like(model, stack, "")


def converted(stack: Stack, change: Callable[[Tensor], Tensor]) -> Stack:
    """A stack whose weights are the changed ones; what two places share they go on sharing."""
    made: dict[int, Tensor] = {}
    weights = dict(stack.named_parameters(remove_duplicate=False))
    for weight in weights.values():
        if id(weight) not in made:
            made[id(weight)] = change(weight.detach())
    new = shared(stack)
    new.load_state_dict({name: made[id(w)] for name, w in weights.items()}, assign=True)
    return new
