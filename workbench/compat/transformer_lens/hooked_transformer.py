"""`HookedTransformer`: the classic interface as a facade over a model of this library.

Notable: hooks, flags and defaults live here, never on the model; so one facade may be shared by
threads, each with its own `run_with_hooks`, `run_with_cache` and `hooks()`. The class is as wide as
the one it stands for; what it does is in the modules beside it.
"""
# ruff: noqa: FBT001, FBT002, PLR0913, N802, A002 - the classic names and signatures

from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, final

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from typing_extensions import override

from workbench.compat.transformer_lens import processing
from workbench.compat.transformer_lens.activation_cache import ActivationCache
from workbench.compat.transformer_lens.building import build, initialise
from workbench.compat.transformer_lens.calls import (
    Call,
    Given,
    Read,
    Returned,
    ReturnType,
    run_call,
)
from workbench.compat.transformer_lens.calls import read as read_call
from workbench.compat.transformer_lens.config import HookedTransformerConfig
from workbench.compat.transformer_lens.describe import config_of, enabled
from workbench.compat.transformer_lens.factored_matrix import FactoredMatrix
from workbench.compat.transformer_lens.generation import Sampling, continued
from workbench.compat.transformer_lens.hooks import Direction, Here, Hooks, Names, Pairs, SitePoint
from workbench.compat.transformer_lens.key_value_cache import HookedTransformerKeyValueCache
from workbench.compat.transformer_lens.recording import Kept, NamesFilter, check_reached, wanted
from workbench.compat.transformer_lens.slices import Slice, SliceInput
from workbench.compat.transformer_lens.taps import HookTap, Nodes, check_fired, gradients_at
from workbench.compat.transformer_lens.tokens import PaddingSide, Texts
from workbench.compat.transformer_lens.utils import lm_cross_entropy_loss
from workbench.compat.transformer_lens.weights import BlockWeights, ClassicWeights, NormWeights
from workbench.core.data import Batch
from workbench.core.errors import OptionError, PromptError, UnknownNameError
from workbench.core.protocols import Vocabulary
from workbench.core.sites import Site
from workbench.core.tap import UNTAPPED, chain
from workbench.models.load import as_vocabulary, load
from workbench.models.transformer import Transformer
from workbench.models.views.folded import Folding, Parity
from workbench.models.views.stacks import cloned, first_blocks

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Cached: TypeAlias = ActivationCache | dict[str, Tensor]
Place: TypeAlias = torch.device | torch.dtype | str


@final
class HookedTransformer:
    """The classic interface over a model that is loaded, or built from a configuration.

    `model` wraps a model that is there already, as `from_pretrained` does; else one is built, with
    fresh weights, which are the facade's own and may be trained. `default_padding_side` and
    `cfg.default_prepend_bos` stand where a call leaves them out.

    Raises:
        OptionError: If the configuration asks for what is not built here; names the option.
    """

    def __init__(
        self,
        cfg: HookedTransformerConfig | Mapping[str, Any],
        tokenizer: object | None = None,
        move_to_device: bool = True,
        default_padding_side: PaddingSide = "right",
        *,
        model: Transformer | None = None,
    ) -> None:
        self.cfg = replace(HookedTransformerConfig.unwrap(cfg))
        self._vocabulary: Vocabulary | None = None
        self._side: PaddingSide = default_padding_side
        self.parity: Parity | None = None  # of the view it shows, where weights were processed
        self.training = False
        self._trainable = model is None
        if tokenizer is not None or model is None or model.tokenizer is None:
            given = None if tokenizer is None else as_vocabulary(tokenizer)
        else:
            given = model.tokenizer
        if given is not None:
            self.set_tokenizer(given, default_padding_side)
        self._bind(build(self.cfg, given) if model is None else model)
        names = [str(site) for site in self._model.sites]
        self._hooks = Hooks(self._enabled, names)
        self.hook_dict = {name: SitePoint(name, self._hooks) for name in names}
        if model is None and self.cfg.init_weights:
            self.init_weights()
        if model is None and move_to_device and self.cfg.device is not None:
            self.to(self.cfg.device, print_details=False)

    # --- where it comes from --------------------------------------------------------------------

    @classmethod
    def from_pretrained(
        cls,
        model_name: "str | Path | Transformer",
        fold_ln: bool = True,
        center_writing_weights: bool = True,
        center_unembed: bool = True,
        refactor_factored_attn_matrices: bool = False,
        checkpoint_index: int | None = None,
        checkpoint_value: int | None = None,
        hf_model: "PreTrainedModel | None" = None,
        device: str | torch.device | None = None,
        n_devices: int = 1,
        tokenizer: object | None = None,
        move_to_device: bool = True,
        fold_value_biases: bool = True,
        default_prepend_bos: bool | None = None,
        default_padding_side: PaddingSide = "right",
        dtype: torch.dtype | str = "float32",
        first_n_layers: int | None = None,
        n_ctx: int | None = None,
    ) -> "HookedTransformer":
        """A facade over what `wb.load` loads by that name, its weights processed as a view.

        The model in the cache stays as it is; `parity` says how far the view is from it.

        Raises:
            UnknownNameError: If there is no such model.
            OptionError: If an option asks for what is not built here.
        """
        processing.refuse_checkpoints(checkpoint_index, checkpoint_value, n_devices)
        flags = Folding(
            fold_ln,
            center_writing_weights,
            center_unembed,
            fold_value_biases,
            refactor_factored_attn_matrices,
        )
        if isinstance(model_name, Transformer):
            model = model_name
        else:
            source = model_name if hf_model is None else hf_model
            where = device if move_to_device else None
            kind = processing.as_dtype(dtype)
            model = load(source, tokenizer=tokenizer, dtype=kind, device=where)
        model = first_blocks(model, first_n_layers, n_ctx)
        view, parity = processing.processed(model, flags)
        cfg = config_of(view)
        cfg.default_prepend_bos = True if default_prepend_bos is None else default_prepend_bos
        made = cls(cfg, tokenizer, move_to_device, default_padding_side, model=view)
        made.parity = parity
        return made

    @classmethod
    def from_pretrained_no_processing(
        cls,
        model_name: "str | Path | Transformer",
        hf_model: "PreTrainedModel | None" = None,
        device: str | torch.device | None = None,
        tokenizer: object | None = None,
        default_prepend_bos: bool | None = None,
        default_padding_side: PaddingSide = "right",
        dtype: torch.dtype | str = "float32",
        first_n_layers: int | None = None,
        n_ctx: int | None = None,
    ) -> "HookedTransformer":
        """The same with the weights as they are.

        Raises:
            UnknownNameError: If there is no such model.
        """
        return cls.from_pretrained(
            model_name,
            fold_ln=False,
            center_writing_weights=False,
            center_unembed=False,
            fold_value_biases=False,
            hf_model=hf_model,
            device=device,
            tokenizer=tokenizer,
            default_prepend_bos=default_prepend_bos,
            default_padding_side=default_padding_side,
            dtype=dtype,
            first_n_layers=first_n_layers,
            n_ctx=n_ctx,
        )

    @property
    def engine(self) -> Transformer:
        """The model that runs; frozen, unless the facade was made from a configuration."""
        return self._model

    # --- running --------------------------------------------------------------------------------

    def forward(
        self,
        input: Given,
        return_type: ReturnType = "logits",
        loss_per_token: bool = False,
        prepend_bos: bool | None = None,
        padding_side: PaddingSide | None = None,
        start_at_layer: int | None = None,
        tokens: Int[Tensor, "batch pos"] | None = None,
        shortformer_pos_embed: Tensor | None = None,
        attention_mask: Tensor | None = None,
        stop_at_layer: int | None = None,
        past_kv_cache: HookedTransformerKeyValueCache | None = None,
    ) -> Returned:
        """Logits, loss (nats), both, or None; with `stop_at_layer` the stream before that block.

        Runs the blocks from `start_at_layer` (then `input` is the stream there) to `stop_at_layer`,
        exclusive, and no others; both as Python slices. A list of texts is masked where it is
        padded, ids only where `attention_mask` (1 is real) or left padding says so.

        Raises:
            PromptError: If the input cannot be run.
            OptionError: If an option is outside what it may be.
            ShapeError: If a hook returns a tensor of another shape.
        """
        processing.refuse_shortformer(shortformer_pos_embed)
        call = Call(
            input,
            return_type,
            loss_per_token,
            prepend_bos,
            padding_side,
            start_at_layer,
            tokens,
            attention_mask,
            stop_at_layer,
            past_kv_cache,
        )
        reading, model = self._reading(call), self._model
        return run_call(call, reading, model, self._tap(reading.batch))

    __call__ = forward

    def run_with_hooks(
        self,
        input: Given,
        return_type: ReturnType = "logits",
        loss_per_token: bool = False,
        prepend_bos: bool | None = None,
        padding_side: PaddingSide | None = None,
        start_at_layer: int | None = None,
        tokens: Int[Tensor, "batch pos"] | None = None,
        shortformer_pos_embed: Tensor | None = None,
        attention_mask: Tensor | None = None,
        stop_at_layer: int | None = None,
        past_kv_cache: HookedTransformerKeyValueCache | None = None,
        *,
        fwd_hooks: Pairs = (),
        bwd_hooks: Pairs = (),
        reset_hooks_end: bool = True,
        clear_contexts: bool = False,
    ) -> Returned:
        """A forward with hooks of this call only, (name or predicate, function of value and hook).

        `bwd_hooks` see the gradient when the caller goes backward from what is returned.

        Raises:
            UnknownNameError: If a hook names no site.
            NeverActedError: If a hook by an exact name was never reached.
        """
        processing.refuse_shortformer(shortformer_pos_embed)
        call = Call(
            input,
            return_type,
            loss_per_token,
            prepend_bos,
            padding_side,
            start_at_layer,
            tokens,
            attention_mask,
            stop_at_layer,
            past_kv_cache,
        )
        reading, model = self._reading(call), self._model
        with self.hooks(fwd_hooks, bwd_hooks, reset_hooks_end, clear_contexts):
            tap = self._tap(reading.batch)
            output = run_call(call, reading, model, tap)
        check_fired(tap, [name for name, _ in fwd_hooks], self._ended(call))
        return output

    def run_with_cache(
        self,
        input: Given,
        return_type: ReturnType = "logits",
        loss_per_token: bool = False,
        prepend_bos: bool | None = None,
        padding_side: PaddingSide | None = None,
        start_at_layer: int | None = None,
        tokens: Int[Tensor, "batch pos"] | None = None,
        shortformer_pos_embed: Tensor | None = None,
        attention_mask: Tensor | None = None,
        stop_at_layer: int | None = None,
        past_kv_cache: HookedTransformerKeyValueCache | None = None,
        *,
        return_cache_object: bool = True,
        remove_batch_dim: bool = False,
        names_filter: NamesFilter = None,
        device: torch.device | str | None = None,
        incl_bwd: bool = False,
        fwd_hooks: Pairs = (),
        bwd_hooks: Pairs = (),
        reset_hooks_end: bool = True,
        clear_contexts: bool = False,
        pos_slice: Slice | SliceInput = None,
    ) -> tuple[Any, Any]:
        """What `forward` returns, and the activations as the hooks left them.

        `names_filter` is a name, glob, predicate, or several names; None keeps what the classic
        flags enable, and the cache computes the other sites when they are read. `incl_bwd` adds
        `name_grad`, the gradient of a scalar output. `pos_slice` cuts positions (queries in
        attention squares), an int keeping the axis.

        Raises:
            UnknownNameError: If a name fits no site.
            NotRecordedError: If the run stops before a site asked for by name.
        """
        processing.refuse_shortformer(shortformer_pos_embed)
        call = Call(
            input,
            return_type,
            loss_per_token,
            prepend_bos,
            padding_side,
            start_at_layer,
            tokens,
            attention_mask,
            stop_at_layer,
            past_kv_cache,
        )
        kept = Kept(device, remove_batch_dim, pos_slice)
        chosen = wanted(names_filter, self._hooks, self._model.sites, self._enabled())
        nodes = Nodes(chosen.sites, gradients=incl_bwd)
        reading, model = self._reading(call), self._model
        with self.hooks(fwd_hooks, bwd_hooks, reset_hooks_end, clear_contexts):
            hooked = self._tap(reading.batch)
            with torch.set_grad_enabled(incl_bwd or torch.is_grad_enabled()):
                output = run_call(call, reading, model, chain(hooked, nodes))
        check_fired(hooked, [name for name, _ in fwd_hooks], self._ended(call))
        check_reached(chosen, nodes.seen, self._ended(call))
        seen = {site: nodes.seen[site] for site in chosen.sites if site in nodes.seen}
        entries = {str(site): kept.entry(site, value) for site, value in seen.items()}
        if incl_bwd:
            slopes = gradients_at(output, seen)
            entries |= {f"{site}_grad": kept.entry(site, value) for site, value in slopes.items()}
        if not return_cache_object:
            return output, entries
        more = self._more(call, kept, pure=not hooked.any and past_kv_cache is None)
        cache = ActivationCache(entries, self, has_batch_dim=not remove_batch_dim, more=more)
        return output, cache

    def input_to_embed(
        self,
        input: Given,
        prepend_bos: bool | None = None,
        padding_side: PaddingSide | None = None,
        attention_mask: Tensor | None = None,
        past_kv_cache: HookedTransformerKeyValueCache | None = None,
    ) -> tuple[Tensor, Tensor | None, None, Tensor | None]:
        """The stream before block 0, the ids, None (no shortformer), and the mask if there is one.

        With `start_at_layer=0`, and the mask, the rest of a forward.

        Raises:
            PromptError: If the input cannot be run.
        """
        call = Call(
            input,
            prepend_bos=prepend_bos,
            padding_side=padding_side,
            attention_mask=attention_mask,
            past_kv_cache=past_kv_cache,
        )
        reading = self._reading(call)
        stream = self._model.embed(reading.batch, self._tap(reading.batch))
        mask = None if reading.real is None else reading.real.int()
        return stream, reading.ids, None, mask

    def loss_fn(
        self,
        logits: Float[Tensor, "batch pos d_vocab"],
        tokens: Int[Tensor, "batch pos"],
        attention_mask: Tensor | None = None,
        per_token: bool = False,
    ) -> Tensor:
        """The next-token loss in nats: the mean, or each (batch pos−1), 0 where masked."""
        real = None if attention_mask is None else attention_mask.to(logits.device).bool()
        return lm_cross_entropy_loss(logits, tokens.to(logits.device), real, per_token)

    def generate(
        self,
        input: str | list[str] | Int[Tensor, "batch pos"] = "",
        max_new_tokens: int = 10,
        stop_at_eos: bool = True,
        eos_token_id: int | Sequence[int] | None = None,
        do_sample: bool = True,
        top_k: int | None = None,
        top_p: float | None = None,
        temperature: float = 1.0,
        freq_penalty: float = 0.0,
        use_past_kv_cache: bool = True,
        prepend_bos: bool | None = None,
        padding_side: PaddingSide | None = None,
        return_type: Literal["input", "str", "tokens", "embeds"] = "input",
        verbose: bool = True,  # noqa: ARG002 - nothing is ever printed
        *,
        seed: int | None = None,
    ) -> Any:
        """The prompt with what comes after it: text for text, ids for ids, or as asked.

        Row i draws with `seed + i` (None: a fresh seed); the process's random state is not used.

        Raises:
            OptionError: If an option is outside what it may be.
            PromptError: If the prompt cannot be run.
        """
        if return_type not in ("input", "str", "tokens", "embeds"):
            allowed = "'input', 'str', 'tokens' or 'embeds'"
            raise OptionError("return_type", allowed, return_type)
        side: PaddingSide = "left" if isinstance(input, list) else self._side
        call = Call(input, prepend_bos=prepend_bos, padding_side=padding_side or side)
        reading, model = self._reading(call), self._model
        new = continued(
            model,
            reading.batch,
            self._tap,
            Sampling(do_sample, top_k, top_p, temperature, freq_penalty),
            steps=max_new_tokens,
            ends=self._ends(eos_token_id) if stop_at_eos else (),
            use_cache=use_past_kv_cache,
            seed=seed,
        )
        return self._finished(reading, new, "str" if _is_text(input) else "tokens", return_type)

    # --- hooks ----------------------------------------------------------------------------------

    @contextmanager
    def hooks(
        self,
        fwd_hooks: Pairs = (),
        bwd_hooks: Pairs = (),
        reset_hooks_end: bool = True,
        clear_contexts: bool = False,
    ) -> Generator["HookedTransformer"]:
        """Hooks of this block and this thread; they go when it ends, also by an exception."""
        with self._hooks.block(fwd_hooks, bwd_hooks, keep=not reset_hooks_end):
            try:
                yield self
            finally:
                if clear_contexts:
                    self.clear_contexts()

    def add_hook(
        self,
        name: Names,
        hook: Callable[..., Any],
        dir: Direction = "fwd",
        is_permanent: bool = False,
        level: int | None = None,
        prepend: bool = False,
    ) -> None:
        """Adds a hook that stays until `reset_hooks`.

        Raises:
            UnknownNameError: If the name is no site.
        """
        self._hooks.add(
            name, hook, direction=dir, permanent=is_permanent, level=level, prepend=prepend
        )

    def add_perma_hook(self, name: Names, hook: Callable[..., Any], dir: Direction = "fwd") -> None:
        """Adds a hook that only `reset_hooks(including_permanent=True)` removes."""
        self._hooks.add(name, hook, direction=dir, permanent=True)

    def reset_hooks(
        self,
        clear_contexts: bool = True,
        direction: Literal["fwd", "bwd", "both"] = "both",
        including_permanent: bool = False,
        level: int | None = None,
    ) -> None:
        """Removes hooks, those of open blocks of this thread too unless a level is named."""
        if clear_contexts:
            self.clear_contexts()
        self._hooks.reset(direction=direction, permanent=including_permanent, level=level)

    def remove_all_hook_fns(
        self,
        direction: Literal["fwd", "bwd", "both"] = "both",
        including_permanent: bool = False,
        level: int | None = None,
    ) -> None:
        """Removes hooks and leaves their contexts."""
        self._hooks.reset(direction=direction, permanent=including_permanent, level=level)

    def clear_contexts(self) -> None:
        """Empties `hook.ctx` at every site."""
        self._hooks.clear_contexts()

    def hook_points(self) -> list[SitePoint]:
        """Every site as a hook point."""
        return list(self.hook_dict.values())

    @property
    def mod_dict(self) -> Mapping[str, SitePoint]:
        """The hook points by name: what hooks may be put on."""
        return self.hook_dict

    @property
    def context_level(self) -> int:
        """How many `hooks()` blocks of this facade are open here."""
        return self._hooks.level

    def add_caching_hooks(
        self,
        names_filter: NamesFilter = None,
        incl_bwd: bool = False,
        device: torch.device | str | None = None,
        remove_batch_dim: bool = False,
        cache: dict[str, Tensor] | None = None,
    ) -> dict[str, Tensor]:
        """Adds hooks that fill `cache` in every run from now on, and returns it."""
        found, forward, backward = self.get_caching_hooks(
            names_filter, incl_bwd, device, remove_batch_dim, cache
        )
        for name, hook in forward:
            self.add_hook(name, hook)
        for name, hook in backward:
            self.add_hook(name, hook, "bwd")
        return found

    def get_caching_hooks(
        self,
        names_filter: NamesFilter = None,
        incl_bwd: bool = False,
        device: torch.device | str | None = None,
        remove_batch_dim: bool = False,
        cache: dict[str, Tensor] | None = None,
        pos_slice: Slice | SliceInput = None,
    ) -> tuple[dict[str, Tensor], Pairs, Pairs]:
        """A dictionary, and hooks that fill it when they are given to a run."""
        found: dict[str, Tensor] = {} if cache is None else cache
        kept = Kept(device, remove_batch_dim, pos_slice)
        sites = wanted(names_filter, self._hooks, self._model.sites, self._enabled()).sites

        def save(value: Tensor, hook: Here) -> None:
            found[hook.name] = kept.entry(Site.parse(hook.name), value)

        def save_slope(value: Tensor, hook: Here) -> None:
            found[f"{hook.name}_grad"] = kept.entry(Site.parse(hook.name), value)

        forward = [(str(site), save) for site in sites]
        return found, forward, [(str(site), save_slope) for site in sites] if incl_bwd else []

    # --- tokens ---------------------------------------------------------------------------------

    @property
    def tokenizer(self) -> Vocabulary | None:
        """The vocabulary; nothing here ever changes it."""
        return self._vocabulary

    def set_tokenizer(self, tokenizer: object, default_padding_side: PaddingSide = "right") -> None:
        """Gives the facade a vocabulary, or a Hugging Face tokenizer, of which it takes a copy.

        Raises:
            OptionError: If it is neither, or the side is none.
        """
        if default_padding_side not in ("left", "right"):
            raise OptionError("default_padding_side", "'left' or 'right'", default_padding_side)
        vocabulary = as_vocabulary(tokenizer)
        self._vocabulary, self._side = vocabulary, default_padding_side
        self.cfg.tokenizer_prepends_bos = len(vocabulary.encode("")) > 0

    def to_tokens(
        self,
        input: str | list[str],
        prepend_bos: bool | None = None,
        padding_side: PaddingSide | None = None,
        move_to_device: bool = True,
        truncate: bool = True,
    ) -> Int[Tensor, "batch pos"]:
        """The ids of a text or texts, the beginning token first, padded on one side.

        Raises:
            PromptError: If there is no tokenizer.
        """
        texts = self._vocabulary_texts().given(prepend_bos, padding_side)
        device = self._model.device if move_to_device else torch.device("cpu")
        return texts.padded(texts.rows(input, truncate=truncate), device).ids

    def to_string(self, tokens: Any) -> str | list[str]:
        """The text of ids (pos), or of each row (batch pos).

        Raises:
            PromptError: If there is no tokenizer.
        """
        return self._vocabulary_texts().text(tokens)

    def to_str_tokens(
        self,
        input: Any,
        prepend_bos: bool | None = None,
        padding_side: PaddingSide | None = None,
    ) -> list[str] | list[list[str]]:
        """Each token of a text or of ids as a text of its own; of each of a list.

        Raises:
            PromptError: If there is no tokenizer.
        """
        texts = self._vocabulary_texts().given(prepend_bos, padding_side)
        return texts.pieces(input, self._model.device)

    def to_single_token(self, string: str) -> int:
        """The id of a text that is one token.

        Raises:
            TokenError: If it is none or several.
        """
        return self._vocabulary_texts().single(string)

    def to_single_str_token(self, int_token: int) -> str:
        """The text of one id.

        Raises:
            PromptError: If there is no tokenizer.
        """
        return self._vocabulary_texts().vocabulary.decode([int_token])

    def get_token_position(
        self,
        single_token: str | int | Int[Tensor, ""],
        input: str | Int[Tensor, "..."],
        mode: Literal["first", "last"] = "first",
        prepend_bos: bool | None = None,
        padding_side: PaddingSide | None = None,
    ) -> int:
        """Where a token stands first, or last, in a text or in ids (pos) or (1 pos).

        Raises:
            TokenError: If it does not occur.
        """
        texts = self._vocabulary_texts()
        return texts.given(prepend_bos, padding_side).position(single_token, input, mode)

    def tokens_to_residual_directions(
        self, tokens: str | int | Int[Tensor, "..."]
    ) -> Float[Tensor, "... d_model"]:
        """The columns of W_U of these tokens: the logit is the product with it, on folded weights.

        Raises:
            TokenError: If a text is not one token.
        """
        if isinstance(tokens, Tensor) and tokens.numel() > 1:
            return self.W_U[:, tokens].movedim(0, -1)
        token = self.to_single_token(tokens) if isinstance(tokens, str) else int(tokens)
        return self.W_U[:, token]

    # --- weights --------------------------------------------------------------------------------

    @property
    def blocks(self) -> tuple[BlockWeights, ...]:
        """The blocks, each with `attn`, `mlp`, `ln1` and `ln2`."""
        return self._weights.blocks

    @property
    def ln_final(self) -> NormWeights:
        """The final norm; may be called."""
        return self._weights.ln_final

    @property
    def W_E(self) -> Float[Tensor, "d_vocab d_model"]:
        """The token embedding."""
        return self._weights.W_E

    @property
    def W_pos(self) -> Float[Tensor, "n_ctx d_model"]:
        """The learned positions; an error where there are none."""
        return self._weights.W_pos

    @property
    def W_E_pos(self) -> Float[Tensor, "d_vocab_and_n_ctx d_model"]:
        """Token embedding and learned positions, one after the other."""
        return torch.cat([self.W_E, self.W_pos])

    @property
    def W_U(self) -> Float[Tensor, "d_model d_vocab"]:
        """The unembedding."""
        return self._weights.W_U

    @property
    def b_U(self) -> Float[Tensor, " d_vocab"]:
        """The bias of the logits."""
        return self._weights.b_U

    @property
    def W_Q(self) -> Float[Tensor, "layer head d_model d_head"]:
        """What queries read."""
        return self._weights.stacked("W_Q", lambda block: block.attn.W_Q)

    @property
    def W_K(self) -> Float[Tensor, "layer head d_model d_head"]:
        """What keys read; repeated within a group."""
        return self._weights.stacked("W_K", lambda block: block.attn.W_K)

    @property
    def W_V(self) -> Float[Tensor, "layer head d_model d_head"]:
        """What values read; repeated within a group."""
        return self._weights.stacked("W_V", lambda block: block.attn.W_V)

    @property
    def W_O(self) -> Float[Tensor, "layer head d_head d_model"]:
        """What heads write."""
        return self._weights.stacked("W_O", lambda block: block.attn.W_O)

    @property
    def W_in(self) -> Float[Tensor, "layer d_model d_mlp"]:
        """What neurons read."""
        return self._weights.stacked("W_in", lambda block: block.mlp.W_in)

    @property
    def W_gate(self) -> Float[Tensor, "layer d_model d_mlp"] | None:
        """What gates read; None where there are none."""
        if not self.cfg.gated_mlp:
            return None
        return self._weights.stacked("W_gate", processing.gate_of)

    @property
    def W_out(self) -> Float[Tensor, "layer d_mlp d_model"]:
        """What neurons write."""
        return self._weights.stacked("W_out", lambda block: block.mlp.W_out)

    @property
    def b_Q(self) -> Float[Tensor, "layer head d_head"]:
        """The biases of the queries."""
        return self._weights.stacked("b_Q", lambda block: block.attn.b_Q)

    @property
    def b_K(self) -> Float[Tensor, "layer head d_head"]:
        """The biases of the keys; repeated within a group."""
        return self._weights.stacked("b_K", lambda block: block.attn.b_K)

    @property
    def b_V(self) -> Float[Tensor, "layer head d_head"]:
        """The biases of the values; repeated within a group."""
        return self._weights.stacked("b_V", lambda block: block.attn.b_V)

    @property
    def b_O(self) -> Float[Tensor, "layer d_model"]:
        """What attention writes whatever it reads."""
        return self._weights.stacked("b_O", lambda block: block.attn.b_O)

    @property
    def b_in(self) -> Float[Tensor, "layer d_mlp"]:
        """The biases of the neurons."""
        return self._weights.stacked("b_in", lambda block: block.mlp.b_in)

    @property
    def b_out(self) -> Float[Tensor, "layer d_model"]:
        """What neurons write whatever they read."""
        return self._weights.stacked("b_out", lambda block: block.mlp.b_out)

    @property
    def QK(self) -> FactoredMatrix:
        """W_Q W_Kᵀ of every head."""
        return FactoredMatrix(self.W_Q, self.W_K.mT)

    @property
    def OV(self) -> FactoredMatrix:
        """W_V W_O of every head."""
        return FactoredMatrix(self.W_V, self.W_O)

    def embed(self, tokens: Int[Tensor, "batch pos"]) -> Float[Tensor, "batch pos d_model"]:
        """The rows of W_E."""
        return self.W_E[tokens]

    def unembed(self, residual: Float[Tensor, "... d_model"]) -> Float[Tensor, "... d_vocab"]:
        """The logits of what the final norm gave."""
        return residual @ self.W_U + self.b_U

    def accumulated_bias(
        self, layer: int, mlp_input: bool = False, include_mlp_biases: bool = True
    ) -> Float[Tensor, " d_model"]:
        """All biases written before a layer: of its attention too with `mlp_input`."""
        return processing.accumulated_bias(
            self.blocks,
            layer,
            self.cfg.d_model,
            mlp_input=mlp_input,
            neurons=include_mlp_biases and not self.cfg.attn_only,
        )

    def all_composition_scores(
        self, mode: Literal["Q", "K", "V"]
    ) -> Float[Tensor, "layer head other_layer other_head"]:
        """How much of each later head reads what each earlier one writes; 0 unless it is later.

        Raises:
            OptionError: If the mode is none of the three.
        """
        return processing.composition(self.QK, self.OV, mode)

    def all_head_labels(self) -> list[str]:
        """L0H0, L0H1 and so on."""
        layers, heads = range(self.cfg.n_layers), range(self.cfg.n_heads)
        return [f"L{layer}H{head}" for layer in layers for head in heads]

    # --- changing what it shows -----------------------------------------------------------------

    def state_dict(self) -> dict[str, Tensor]:
        """The weights by their classic names: the facade's own tensors, without their graph."""
        return {name: value.detach() for name, value in self._weights.named().items()}

    def load_state_dict(self, state_dict: Mapping[str, Tensor], strict: bool = True) -> None:
        """Takes weights by their classic names.

        A facade that was made from a configuration copies them into its own; any other shows a
        view with them from now on, and the loaded model stays as it is.

        Raises:
            WeightsError: If `strict` and names are missing or left over; or if shapes differ.
        """
        self._bind(
            processing.loaded(self._model, state_dict, strict=strict, in_place=self._trainable)
        )

    def load_and_process_state_dict(
        self,
        state_dict: Mapping[str, Tensor],
        fold_ln: bool = True,
        center_writing_weights: bool = True,
        center_unembed: bool = True,
        fold_value_biases: bool = True,
        refactor_factored_attn_matrices: bool = False,
    ) -> None:
        """Takes weights, missing biases as 0 and norm weights as 1, and shows them processed.

        Raises:
            WeightsError: If shapes differ, or names are unknown.
        """
        filled = processing.completed(self.state_dict(), state_dict)
        self._bind(processing.loaded(self._model, filled, strict=True, in_place=self._trainable))
        flags = Folding(
            fold_ln,
            center_writing_weights,
            center_unembed,
            fold_value_biases,
            refactor_factored_attn_matrices,
        )
        self._process(flags)

    def process_weights_(
        self,
        fold_ln: bool = True,
        center_writing_weights: bool = True,
        center_unembed: bool = True,
        refactor_factored_attn_matrices: bool = False,
    ) -> None:
        """Shows the weights processed from now on (value biases too); see `parity`.

        The model it showed stays as it is.

        Raises:
            OptionError: If the view would not say what the model says.
        """
        steps = Folding(
            fold_ln,
            center_writing_weights,
            center_unembed,
            True,  # noqa: FBT003 - always, as in the classic
            refactor_factored_attn_matrices,
        )
        self._process(steps)

    def to(self, device_or_dtype: Place, print_details: bool = True) -> "HookedTransformer":  # noqa: ARG002
        """Moves or converts the weights; a loaded model stays where it is, and is copied."""
        self._bind(processing.moved(self._model, device_or_dtype, in_place=self._trainable))
        self.cfg.device, self.cfg.dtype = str(self._model.device), self._model.dtype
        return self

    def cuda(self, device: int | str | torch.device | None = None) -> "HookedTransformer":
        """To a GPU."""
        return self.to(f"cuda:{device}" if isinstance(device, int) else device or "cuda")

    def cpu(self) -> "HookedTransformer":
        """To the CPU."""
        return self.to("cpu")

    def mps(self) -> "HookedTransformer":
        """To an Apple GPU."""
        return self.to("mps")

    def parameters(self) -> Iterator[nn.Parameter]:
        """The weights; only those of a facade made from a configuration take gradients."""
        return self._model.stack.parameters()

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """The same with their names in the stack, which are not the classic ones."""
        return self._model.stack.named_parameters()

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forgets the gradients of the weights."""
        self._model.stack.zero_grad(set_to_none=set_to_none)

    def train(self, mode: bool = True) -> "HookedTransformer":
        """Marks the facade as training.

        Raises:
            OptionError: If the model was loaded: its weights are frozen, and shared.
        """
        if mode and not self._trainable:
            raise OptionError("train", "of a model made from a configuration", repr(self))
        self.training = mode
        return self

    def eval(self) -> "HookedTransformer":
        """Marks it as not training."""
        return self.train(mode=False)

    def init_weights(self) -> None:
        """Draws the weights anew, from a generator seeded with `cfg.seed`.

        Raises:
            OptionError: If the model was loaded, or `init_mode` is not built here.
        """
        if not self._trainable:
            raise OptionError("init_weights", "of a model made from a configuration", repr(self))
        initialise(self._model.stack, self.cfg)

    def set_use_attn_result(self, use_attn_result: bool) -> None:
        """Whether a cache of everything holds `hook_result`; asking for it is enough otherwise."""
        self.cfg.use_attn_result = use_attn_result

    def set_use_split_qkv_input(self, use_split_qkv_input: bool) -> None:
        """The same for `hook_q_input`, `hook_k_input` and `hook_v_input`."""
        self.cfg.use_split_qkv_input = use_split_qkv_input

    def set_use_hook_mlp_in(self, use_hook_mlp_in: bool) -> None:
        """The same for `hook_mlp_in`."""
        self.cfg.use_hook_mlp_in = use_hook_mlp_in

    def set_use_attn_in(self, use_attn_in: bool) -> None:
        """The same for `hook_attn_in`.

        Raises:
            OptionError: If heads are grouped, so that no one tensor feeds all three.
        """
        if use_attn_in and self.cfg.groups != self.cfg.n_heads:
            raise OptionError("use_attn_in", "False with grouped heads", use_attn_in)
        self.cfg.use_attn_in = use_attn_in

    def set_ungroup_grouped_query_attention(self, ungroup_grouped_query_attention: bool) -> None:
        """Accepted where heads are not grouped.

        Raises:
            OptionError: If they are: keys and values have one head per group here.
        """
        if ungroup_grouped_query_attention and self.cfg.groups != self.cfg.n_heads:
            allowed = "False: hook_k and hook_v have one head per group here"
            raise OptionError("ungroup_grouped_query_attention", allowed, True)  # noqa: FBT003
        self.cfg.ungroup_grouped_query_attention = ungroup_grouped_query_attention

    @override
    def __repr__(self) -> str:
        return f"HookedTransformer({self._model!r})"

    # --- inside ---------------------------------------------------------------------------------

    def _bind(self, model: Transformer) -> None:
        if self._trainable:
            model.stack.requires_grad_(requires_grad=True)
        self._model = model
        self._weights = ClassicWeights(model.stack, keep=not self._trainable)

    def _process(self, flags: Folding) -> None:
        view, self.parity = processing.processed(self._model, flags)
        if self._trainable:
            view = processing.wrapped(view, cloned(view.stack))
        self.cfg.normalization_type = config_of(view).normalization_type
        self._bind(view)

    def _reading(self, call: Call) -> Read:
        texts = None if self._vocabulary is None else self._vocabulary_texts()
        return read_call(call, self._model, texts)

    def _vocabulary_texts(self) -> Texts:
        if self._vocabulary is None:
            raise PromptError(f"{self.cfg.model_name} has no tokenizer; give it one, or use ids.")
        return Texts(self._vocabulary, self.cfg.n_ctx, self.cfg.default_prepend_bos, self._side)

    def _tap(self, batch: Batch) -> HookTap:
        contexts, positions = self._hooks.contexts, batch.positions
        return HookTap(
            self._hooks.current(), lambda site: Here(str(site), contexts[str(site)], positions)
        )

    def _enabled(self) -> list[str]:
        return [str(site) for site in self._model.sites if enabled(self.cfg, site)]

    def _ended(self, call: Call) -> str:
        first, stop = call.range(self.cfg.n_layers)
        return f"it ran blocks {first} to {stop - 1}" if stop > first else "it ran no block"

    def _more(self, call: Call, kept: Kept, *, pure: bool) -> Callable[[str], Tensor]:
        model, texts = self._model, None if self._vocabulary is None else self._vocabulary_texts()

        def more(name: str) -> Tensor:
            known = {str(site): site for site in model.sites}
            hint = f"The run it holds: {self._ended(call)}."
            if name not in known:
                raise UnknownNameError("activation", name, known, hint)
            nodes = Nodes((known[name],), gradients=False)
            if pure:
                run_call(call, read_call(call, model, texts), model, nodes)
            if known[name] not in nodes.seen:
                again = "" if pure else " It had hooks, so it cannot be run again for it."
                raise UnknownNameError("activation in this cache", name, (), hint + again)
            return kept.entry(known[name], nodes.seen[known[name]])

        return more

    def _ends(self, eos: int | Sequence[int] | None) -> tuple[int, ...]:
        if isinstance(eos, int):
            return (eos,)
        if eos is not None:
            return tuple(eos)
        return () if self._vocabulary is None else tuple(self._vocabulary.eos_ids)

    def _finished(self, reading: Read, new: Tensor, kind: str, asked: str) -> Any:
        whole = torch.cat([reading.batch.tokens, new], 1)
        kind = kind if asked == "input" else asked
        if kind == "tokens":
            return whole
        if kind == "embeds":
            zeros = torch.zeros(len(whole), dtype=torch.long, device=whole.device)
            return self._model.embed(Batch(whole, None, zeros, zeros), UNTAPPED)
        vocabulary = self._vocabulary_texts().vocabulary
        real = torch.ones_like(whole, dtype=torch.bool)
        if reading.batch.real is not None:
            real[:, : reading.batch.real.shape[1]] = reading.batch.real
        rows = [row[mask].tolist() for row, mask in zip(whole, real, strict=True)]
        texts = [vocabulary.decode(row, skip_special=True) for row in rows]
        return texts[0] if len(texts) == 1 else texts


def _is_text(given: object) -> bool:
    return isinstance(given, str | list)
