# type: ignore - TransformerLens 2.18 is not what is installed here
"""Makes the golden files of the classic analysis objects, with TransformerLens 2.18.0 itself.

Run by hand, in an environment of its own (it pins numpy < 2 and transformers 4):

    python3.11 -m venv ORACLE
    ORACLE/bin/pip install "transformer-lens<3" torch==2.13.0 "pyarrow<22"
    ORACLE/bin/python tests/compat/goldens/make_analysis.py

Everything is drawn from a generator. A file holds tensors only; a name's first part says what it
is: `weight`, `clean` (activations by their full names), `tokens`, or what is expected.
"""

import json
from functools import partial
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformer_lens import (
    FactoredMatrix,
    HookedTransformer,
    HookedTransformerConfig,
    SVDInterpreter,
    head_detector,
    patching,
    utils,
)

HERE = Path(__file__).parent
COMMON = {
    "n_layers": 2,
    "d_model": 32,
    "n_heads": 4,
    "d_head": 8,
    "d_mlp": 24,
    "d_vocab": 40,
    "n_ctx": 16,
    "seed": 0,
    "device": "cpu",
}
CONFIGS = {
    "ln": {**COMMON, "act_fn": "gelu_new", "normalization_type": "LN"},
    "rms": {
        **COMMON,
        "act_fn": "silu",
        "normalization_type": "RMS",
        "gated_mlp": True,
        "n_key_value_heads": 2,
        "positional_embedding_type": "rotary",
        "rotary_dim": 8,
    },
}
HEAD_SWEEPS = ("out", "q", "k", "v", "pattern")


def made(name: str) -> HookedTransformer:
    """A model with every weight drawn, but for two biases that GPT-2 and Llama do not have."""
    model = HookedTransformer(HookedTransformerConfig(**CONFIGS[name]))
    draws = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for key, weight in model.named_parameters():
            if key == "unembed.b_U" or (model.cfg.gated_mlp and key.endswith("b_in")):
                continue
            noise = torch.randn(weight.shape, generator=draws)
            if key.endswith(".w"):
                weight.copy_(1 + 0.3 * noise)
            elif ".b" in key:
                weight.copy_(0.3 * noise)
            else:
                weight.copy_(noise * 1.2 / weight.shape[-2] ** 0.5)
    return model.eval()


def difference(logits: torch.Tensor) -> torch.Tensor:
    """What the patching sweeps measure."""
    return (logits[:, -1, 3] - logits[:, -1, 7]).mean()


def cache_methods(model, cache) -> dict[str, torch.Tensor]:
    """Every stack of an ActivationCache."""
    found = {
        "accumulated": cache.accumulated_resid(incl_mid=True),
        "accumulated_ln": cache.accumulated_resid(apply_ln=True),
        "accumulated_1_ln": cache.accumulated_resid(1, apply_ln=True, mlp_input=True),
        "accumulated_pos": cache.accumulated_resid(1, pos_slice=2),
        "decompose_ln": cache.decompose_resid(apply_ln=True, pos_slice=(1, 4)),
        "decompose_mlp": cache.decompose_resid(mode="mlp", incl_embeds=False),
        "decompose_attn_1": cache.decompose_resid(1, mlp_input=True, mode="attn"),
        "heads": cache.stack_head_results(incl_remainder=True),
        "heads_1_ln": cache.stack_head_results(1, pos_slice=-1, apply_ln=True),
        "neurons": cache.stack_neuron_results(-1, pos_slice=-1, incl_remainder=True),
        "neurons_some": cache.stack_neuron_results(2, neuron_slice=[1, 5], apply_ln=True),
        "neurons_one": cache.get_neuron_results(1, neuron_slice=3, pos_slice=(2, None)),
        "activations": cache.stack_activation("pattern"),
        "full": cache.get_full_resid_decomposition(pos_slice=-1, apply_ln=True),
        "full_1": cache.get_full_resid_decomposition(1, mlp_input=True, expand_neurons=False),
    }
    stack = cache.decompose_resid(pos_slice=-1)
    right, wrong = torch.tensor([3, 5]), torch.tensor([7, 1])
    everywhere = cache.decompose_resid()
    found["attrs_one"] = cache.logit_attrs(everywhere, 3)
    found["attrs_rows"] = cache.logit_attrs(stack, right, wrong, pos_slice=-1)
    found["attrs_each"] = cache.logit_attrs(everywhere, (torch.arange(12) % 40).reshape(2, 6))
    found["attrs_row"] = cache.logit_attrs(stack, 3, 7, pos_slice=-1, batch_slice=1)
    return found


def labels(cache) -> dict[str, list[str]]:
    """The names of the components."""
    return {
        "accumulated": cache.accumulated_resid(incl_mid=True, return_labels=True)[1],
        "decompose": cache.decompose_resid(1, mlp_input=True, return_labels=True)[1],
        "heads": cache.stack_head_results(1, return_labels=True, incl_remainder=True)[1],
        "neurons": cache.stack_neuron_results(2, neuron_slice=(3, 5), return_labels=True)[1],
        "full": cache.get_full_resid_decomposition(1, expand_neurons=False, return_labels=True)[1],
    }


def composed(model) -> dict[str, torch.Tensor]:
    """Scores between heads, through the facade and through utils."""
    qk, ov = model.QK, model.OV
    found = {f"all_{kind}": model.all_composition_scores(kind) for kind in "QKV"}
    found["crossed"] = utils.composition_scores(ov[0], qk[1], broadcast_dims=True)
    found["paired"] = utils.composition_scores(ov[0], ov[1], broadcast_dims=False)
    found["QK_S"], found["OV_eigenvalues"] = qk.S, ov.eigenvalues.abs().sort(-1).values
    return found


def sweeps(model, tokens, clean_cache) -> dict[str, torch.Tensor]:
    """Every ready-made patching sweep."""
    names = ["resid_pre", "resid_mid", "attn_out", "mlp_out"]
    names += [f"attn_head_{part}_{over}_pos" for part in HEAD_SWEEPS for over in ("by", "all")]
    names += ["attn_head_pattern_dest_src_pos", "attn_head_all_pos_every"]
    names += ["attn_head_by_pos_every", "block_every"]
    found = {}
    for name in names:
        sweep = getattr(patching, f"get_act_patch_{name}")
        found[name] = sweep(model, tokens, clean_cache, difference)
    return found


def direct_paths(model, tokens, clean, corrupt) -> dict[str, torch.Tensor]:
    """From every head to one input of every later one, by hooks on its own split input.

    With grouped attention the inputs are ungrouped, so that a path ends in one head.
    """
    model.set_use_split_qkv_input(True)
    if model.cfg.n_key_value_heads is not None:
        model.set_ungroup_grouped_query_attention(True)

    def add(value, hook, head, delta):
        value = value.clone()
        value[:, :, head] += delta
        return value

    found = {}
    for part in "qkv":
        values = torch.zeros(2, 4, 2, 4)
        for source in range(4):
            z = clean["z", 0] - corrupt["z", 0]
            delta = z[:, :, source] @ model.blocks[0].attn.W_O[source]
            for head in range(4):
                hook = partial(add, head=head, delta=delta)
                logits = model.run_with_hooks(
                    tokens, fwd_hooks=[(f"blocks.1.hook_{part}_input", hook)]
                )
                values[0, source, 1, head] = difference(logits)
        found[part] = values
    model.set_use_split_qkv_input(False)
    if model.cfg.n_key_value_heads is not None:
        model.set_ungroup_grouped_query_attention(False)
    return found


def detected(model, tokens) -> dict[str, torch.Tensor]:
    """Scores of heads, without exclude_bos on a shared cache, which 2.18 writes into."""
    model.to_tokens = lambda seq: tokens  # these models have no tokenizer
    found = {}
    own = torch.rand(12, 12, generator=torch.Generator().manual_seed(2)).round().tril()
    for measure in ("mul", "abs"):
        for kind in head_detector.HEAD_NAMES:
            for bos in (False, True):
                for current in (False, True):
                    key = f"{measure}_{kind}_{int(bos)}{int(current)}"
                    found[key] = head_detector.detect_head(
                        model,
                        "",
                        kind,
                        exclude_bos=bos,
                        exclude_current_token=current,
                        error_measure=measure,
                    )
        found[f"{measure}_own"] = head_detector.detect_head(
            model, "", own, heads=[(0, 1), (1, 3)], error_measure=measure
        )
    return {**found, "pattern": own}


def singular(model) -> dict[str, torch.Tensor]:
    """Directions of the vocabulary; OV fails with grouped attention."""
    reader = SVDInterpreter(model)
    found = {kind: reader.get_singular_vectors(kind, 1, 5) for kind in ("w_in", "w_out")}
    if model.cfg.n_key_value_heads is None:
        found["OV"] = reader.get_singular_vectors("OV", 1, 5, head_index=2)
    return found


def factored() -> dict[str, torch.Tensor]:
    """A FactoredMatrix by itself: operations whose signs are not arbitrary."""
    draws = torch.Generator().manual_seed(3)
    a, b = torch.randn(2, 3, 6, 4, generator=draws), torch.randn(3, 4, 7, generator=draws)
    square, matrix = torch.randn(3, 4, 6, generator=draws), torch.randn(7, 5, generator=draws)
    vector, left = torch.randn(7, generator=draws), torch.randn(6, generator=draws)
    one = FactoredMatrix(a, b)
    return {
        "a": a, "b": b, "square": square, "matrix": matrix, "vector": vector, "left": left,
        "AB": one.AB,
        "S": one.S,
        "norm": one.norm(),
        "even": one.make_even().AB,
        "collapse_l_gram": one.collapse_l().mT @ one.collapse_l(),
        "collapse_r_gram": one.collapse_r() @ one.collapse_r().mT,
        "usv": one.U @ torch.diag_embed(one.S) @ one.Vh.mT,
        "eigenvalues": FactoredMatrix(a, square).eigenvalues.abs().sort(-1).values,
        "times_matrix": (one @ matrix).AB,
        "times_vector": one @ vector,
        "vector_times": left @ one,
        "times_factored": (one @ FactoredMatrix(b.mT, square)).AB,
        "scaled": (2 * one).AB,
        "corner": one.get_corner(2),
        "item": one[1, 2].AB,
        "row": one[1, :, 2].AB,
        "column": one[:, 1, :, 3].AB,
        "transposed": one.T.AB,
        "unsqueezed": one.unsqueeze(1).AB,
    }  # fmt: skip


def flat(**groups: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Tensors under `group/name`."""
    return {
        f"{group}/{name}": value.detach().clone().contiguous()
        for group, values in groups.items()
        for name, value in values.items()
    }


def write(name: str, tensors: dict[str, torch.Tensor]) -> None:
    save_file(tensors, HERE / f"{name}.safetensors")


def main() -> None:
    said = {"transformer_lens": "2.18.0", "torch": torch.__version__, "configs": CONFIGS}
    write("factored_matrix", flat(factored=factored()))
    for name in CONFIGS:
        model = made(name)
        draws = torch.Generator().manual_seed(4)
        clean_tokens, tokens = torch.randint(0, 40, (2, 2, 6), generator=draws)
        repeated = torch.randint(0, 40, (1, 6), generator=draws).repeat(1, 2)
        with torch.no_grad():
            logits, clean = model.run_with_cache(clean_tokens)
            _, corrupt = model.run_with_cache(tokens)
            recorded = dict(clean.cache_dict)  # stack_head_results adds to it
            kept = {key: value for key, value in recorded.items() if "rot_" not in key}
            write(
                f"analysis_{name}",
                flat(
                    weight=dict(model.named_parameters()),
                    tokens={"clean": clean_tokens, "corrupt": tokens, "repeated": repeated},
                    clean=kept,
                    logits={"clean": logits},
                ),
            )
            expected = flat(
                cache=cache_methods(model, clean),
                composition=composed(model),
                patch=sweeps(model, tokens, clean),
                direct=direct_paths(model, tokens, clean, corrupt),
                detect=detected(model, repeated),
                svd=singular(model),
            )
            write(f"analysis_{name}_expected", expected)
        said[f"labels_{name}"] = labels(clean)
    (HERE / "analysis.json").write_text(json.dumps(said, indent=2) + "\n")


if __name__ == "__main__":
    main()
