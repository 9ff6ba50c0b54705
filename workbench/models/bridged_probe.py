"""What a bridge really does, found out with a few tokens while the model is loaded.

built(theirs)  a model of transformers, bridged  ->  Bridged: its sites, and what listens at them
"""

import copy
import inspect
import re
import warnings
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, final

import torch
from torch import Tensor, nn

from workbench.core.axes import Logits
from workbench.core.errors import OptionError, UnknownNameError
from workbench.core.sites import Site, Sites
from workbench.models.bridged_sites import Fired, adds_up, form_of, names, why_not
from workbench.models.bridged_step import NOW, Form, Listener, SteppedBlock

ROWS = 2
DROPPED = "what it shows is used up already: a change there would be dropped"
SCALE, STATE = ".hook_scale", ".hook_ssm_state"
_LAYER = re.compile(r"\.[0-9]+\.")


@final
@dataclass(frozen=True, eq=False)
class Bridged:
    """A model of transformers whose modules call taps, and what was found out about it."""

    theirs: Any
    config: Any  # the bridge's: sizes by its names
    tokens: Tensor  # of the probe
    logits: Logits  # of transformers, before it was bridged
    n_layers: int
    takes: frozenset[str]  # names of arguments of its forward
    sites: Sites
    unreachable: Mapping[str, str]


@contextmanager
def quiet() -> Generator[None]:
    """Without what the bridge warns of: aliases it lacks, and changes that it computes anew."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def own_copy(theirs: nn.Module) -> Any:
    """A model of the same weights and buffers, in modules of its own, frozen.

    The bridge puts itself in the modules' place, so the caller's model is left alone.
    """
    same: dict[int, Any] = {}
    for module in theirs.modules():
        for weight in module.parameters(recurse=False):
            plain = weight.detach().clone() if weight.is_inference() else weight.detach()
            same.setdefault(id(weight), nn.Parameter(plain, requires_grad=False))
        for buffer in module.buffers(recurse=False):
            same.setdefault(id(buffer), buffer.detach())
    return copy.deepcopy(theirs, same).eval()


def built(theirs: Any) -> Bridged:
    """Bridges a model that nobody else holds.

    Costs four forwards of some tokens, one of them with its graph.

    Raises:
        UnknownNameError: If the bridge has no adapter for its class; names the nearest.
        OptionError: If it is no single stack of blocks.
    """
    from transformer_lens.factories.architecture_adapter_factory import SUPPORTED_ARCHITECTURES
    from transformer_lens.model_bridge.sources import _bridge_builder
    from transformer_lens.utilities.attn_implementation import force_eager_attention

    kind = type(theirs).__name__
    if kind not in SUPPORTED_ARCHITECTURES:
        raise UnknownNameError("bridged architecture", kind, SUPPORTED_ARCHITECTURES)
    if theirs.config.is_encoder_decoder:
        raise OptionError("model", "of one stack: a bridged encoder–decoder is not run", kind)
    force_eager_attention(theirs)
    takes = frozenset(inspect.signature(theirs.forward).parameters)
    tokens = _tokens(theirs)
    with torch.no_grad():
        logits: Tensor = _probed(theirs, takes, tokens).logits
    with quiet(), torch.random.fork_rng(devices=[]):  # it draws weights, and puts others there
        bridge: Any = _bridge_builder.build_bridge_from_module(
            theirs, kind, hf_config=theirs.config, model_name=kind
        )
    theirs.requires_grad_(requires_grad=False).eval()
    sites, unreachable = _listened(bridge, theirs, takes, tokens)
    n_layers = len(bridge.blocks)
    return Bridged(theirs, bridge.cfg, tokens, logits, n_layers, takes, sites, unreachable)


def call(
    theirs: Any,
    takes: frozenset[str],
    tokens: Tensor,
    positions: Tensor | None = None,
    real: Tensor | None = None,
) -> Any:
    """A forward of transformers' own, without a cache; of what it does not take, nothing is told.

    `takes` are the names of its arguments. Where positions are not among them, it counts them.
    """
    given = {"position_ids": positions, "use_cache": False, "attention_mask": real}
    told = {name: value for name, value in given.items() if name in takes and value is not None}
    return theirs(tokens, **told)


def _probed(theirs: Any, takes: frozenset[str], tokens: Tensor) -> Any:
    """The same of the probe, which has no pads."""
    positions = torch.arange(tokens.shape[1], device=tokens.device).expand(tokens.shape)
    return call(theirs, takes, tokens, positions)


def _tokens(theirs: Any) -> Tensor:
    """Two rows of tokens that are as many as no other axis is long, as far as that is known."""
    config = theirs.config.to_dict()
    sizes = {value for value in config.values() if isinstance(value, int)}
    columns = next(count for count in (7, 5, 9, 11, 13, 6, 10) if count not in sizes)
    draws = torch.Generator().manual_seed(0)
    words = int(theirs.get_input_embeddings().weight.shape[0])
    drawn = torch.randint(0, words, (ROWS, columns), generator=draws)
    return drawn.to(theirs.get_input_embeddings().weight.device)


@final
class _Scan:
    """What passes at hooks in one forward, and a zero added to each, to be differentiated by."""

    def __init__(self, columns: int) -> None:
        self.columns = columns
        self.order: list[str] = []
        self.shapes: dict[str, list[tuple[int, ...]]] = {}
        self.values: dict[str, Tensor] = {}
        self.zeros: dict[str, Tensor] = {}
        self.slow: frozenset[str] = frozenset()  # passed only where mixers go by position

    def at(self, name: str) -> Any:
        """What is to be called at a hook."""

        def seen(value: Tensor, hook: object) -> Tensor | None:  # noqa: ARG001 - it is told
            self.order.append(name)
            self.shapes.setdefault(name, []).append(tuple(value.shape))
            self.values[name] = value.detach().clone()
            if not value.is_floating_point():
                return None
            zeros = torch.zeros_like(value, requires_grad=True)
            self.zeros.setdefault(name, zeros)
            return value + self.zeros[name] if len(self.shapes[name]) == 1 else None

        return seen

    def fired(self, name: str) -> Fired:
        """The shapes of each time."""
        return Fired(tuple(self.shapes[name]), self.values[name].is_floating_point())

    def felt(self, logits: Tensor) -> frozenset[str]:
        """The hooks that the logits depend on."""
        draws = torch.Generator().manual_seed(1)
        weights = torch.randn(logits.shape, generator=draws).to(logits)
        total = (logits * weights).sum()
        zeros = list(self.zeros.values())
        found: Any = torch.autograd.grad(total, zeros, allow_unused=True)
        slopes: Sequence[Tensor | None] = found
        pairs = zip(self.zeros, slopes, strict=True)
        return frozenset(name for name, slope in pairs if slope is not None)


def _listened(
    bridge: Any, theirs: Any, takes: frozenset[str], tokens: Tensor
) -> tuple[Sites, Mapping[str, str]]:
    """Puts a listener at every hook that is a site; the sites, and what is none and why.

    Raises:
        OptionError: If there are no blocks.
    """
    hooks: Mapping[str, Any] = bridge.hook_dict
    blocks = [name for name in hooks if re.fullmatch(r"blocks\.[0-9]+\.hook_in", name)]
    if not blocks:
        raise OptionError("model", "of one stack of blocks that follow one another", theirs)
    named = {one.hook: one.site for one in names(hooks, len(blocks), _norms(bridge, hooks))}
    mixers = _mixers(bridge, hooks)
    scan = _scanned(hooks, named, mixers, theirs, takes, tokens)
    _step_blocks(bridge, theirs, takes, tokens)
    forms = _forms(named, scan)
    reasons = {name: form for name, form in forms.items() if isinstance(form, str)}
    sites = _install(hooks, named, forms, scan)
    slow = {named[name] for name in scan[0].slow}
    for layer, mixer in mixers.items():
        _scan_on_request(mixer, tuple(s for s in sites if s in slow and s.layer == layer))
    left = {name: why for name, why in why_not(hooks, reasons).items() if not _is_site(hooks, name)}
    return sites, {_LAYER.sub(".{}.", name, count=1): why for name, why in left.items()}


def _is_site(hooks: Mapping[str, Any], name: str) -> bool:
    """Whether somebody of ours listens there."""
    return any(isinstance(handle.user_hook, Listener) for handle in hooks[name].fwd_hooks)


def _norms(bridge: Any, hooks: Mapping[str, Any]) -> Mapping[str, bool]:
    """Each norm by its path, and whether it is one without a mean."""
    from transformer_lens.model_bridge.generalized_components import NormalizationBridge

    paths = [name.removesuffix(SCALE) for name in hooks if name.endswith(SCALE)]
    found: Mapping[str, Any] = {path: bridge.get_submodule(path) for path in paths}
    return {
        path: bool(module.uses_rms_norm)
        for path, module in found.items()
        if isinstance(module, NormalizationBridge)
    }


def _mixers(bridge: Any, hooks: Mapping[str, Any]) -> Mapping[int, Any]:
    """The mixers by layer which can go position by position, past hooks of their states."""
    from transformer_lens.model_bridge.generalized_components.ssm_protocol import SSMStateHookMixin

    paths = [name.removesuffix(STATE) for name in hooks if name.endswith(STATE)]
    found: Mapping[str, Any] = {path: bridge.get_submodule(path) for path in paths}
    return {
        int(path.split(".")[1]): module
        for path, module in found.items()
        if isinstance(module, SSMStateHookMixin) and re.fullmatch(r"blocks\.[0-9]+\.mixer", path)
    }


def _scanned(
    hooks: Mapping[str, Any],
    named: Mapping[str, Site],
    mixers: Mapping[int, Any],
    theirs: Any,
    takes: frozenset[str],
    tokens: Tensor,
) -> tuple[_Scan, frozenset[str]]:
    """A forward with its graph, past every hook that has a name here.

    Where mixers can go position by position, a second forward does; of it only those hooks are
    taken that are not passed otherwise.
    """
    plain, felt = _scan_once(hooks, named, theirs, takes, tokens)
    if not mixers:
        return plain, felt
    for mixer in mixers.values():
        mixer.eager_scan = True
    slow, moved = _scan_once(hooks, named, theirs, takes, tokens)
    for mixer in mixers.values():
        mixer.eager_scan = False
    plain.slow = frozenset(slow.shapes.keys() - plain.shapes.keys())
    plain.order = [name for name in slow.order if name in plain.slow or name in plain.shapes]
    plain.shapes |= {name: slow.shapes[name] for name in plain.slow}
    plain.values |= {name: slow.values[name] for name in plain.slow}
    return plain, felt | (moved & plain.slow)


def _scan_once(
    hooks: Mapping[str, Any],
    named: Mapping[str, Site],
    theirs: Any,
    takes: frozenset[str],
    tokens: Tensor,
) -> tuple[_Scan, frozenset[str]]:
    scan = _Scan(tokens.shape[1])
    for name in named:
        hooks[name].add_hook(scan.at(name))
    with quiet(), torch.enable_grad():
        felt = scan.felt(_probed(theirs, takes, tokens).logits)
    for name in named:
        hooks[name].remove_hooks("fwd")
    return scan, felt


def _step_blocks(bridge: Any, theirs: Any, takes: frozenset[str], tokens: Tensor) -> None:
    """Puts a forward of ours in each block's place, and has it see once what the block returns."""
    for index, block in enumerate(bridge.blocks):
        vars(block)["forward"] = SteppedBlock(index, block.forward)
    with quiet(), torch.no_grad():
        _probed(theirs, takes, tokens)


def _forms(
    named: Mapping[str, Site], scanned: tuple[_Scan, frozenset[str]]
) -> Mapping[str, Form | str]:
    """How each hook reads; or why it is no site."""
    scan, felt = scanned
    found: dict[str, Form | str] = {}
    for name, site in named.items():
        if name not in scan.shapes:
            found[name] = "not passed in a run"
        elif name not in felt:
            found[name] = DROPPED
        else:
            found[name] = form_of(site, scan.fired(name), ROWS, scan.columns)
    return found


def _install(
    hooks: Mapping[str, Any],
    named: Mapping[str, Site],
    forms: Mapping[str, Form | str],
    scanned: tuple[_Scan, frozenset[str]],
) -> Sites:
    """Listens at each hook that reads; the sites in the order in which they were passed."""
    scan, _ = scanned
    sites: list[Site] = []
    for name in dict.fromkeys(scan.order):
        form = forms[name]
        if isinstance(form, str):
            continue
        listener = Listener(named[name], form)
        if named[name].short == "hook_attn_out" and _is_all_that_is_added(name, scan):
            listener = replace(listener, mid=Site("blocks.{}.hook_resid_mid", named[name].layer))
        hooks[name].add_perma_hook(listener)
        sites.extend(site for site in (listener.site, listener.mid) if site is not None)
    return tuple(sites)


def _is_all_that_is_added(attention: str, scan: _Scan) -> bool:
    """Whether the stream that the neurons read is the one before, and what attention wrote."""
    at = attention.removesuffix("hook_attn_out")
    seen = [scan.values.get(at + name) for name in ("hook_in", "hook_attn_out", "hook_resid_mid")]
    found = [value for value in seen if value is not None]
    return len(found) == 3 and adds_up(*found)


def _scan_on_request(mixer: Any, sites: Sites) -> None:
    """Has a mixer go position by position when a tap asks for one of `sites`, else as it does."""

    def asked(_mixer: object) -> bool:
        step = NOW.get()
        return step is not None and step.wants(sites)

    kind = type(mixer)
    vars(mixer).pop("eager_scan", None)
    mixer.__class__ = type(kind.__name__, (kind,), {"eager_scan": property(asked)})
