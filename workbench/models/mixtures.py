"""What families of experts share: how checkpoints name them, in one tensor or one by one."""

from collections.abc import Mapping

from torch import Tensor

from workbench.core.errors import OptionError
from workbench.models.config import Config
from workbench.models.layers.experts import Choice, Experts, of_all, of_all_normalised
from workbench.models.transformer import Stack

READ = frozenset(  # the last four have no effect at inference
    "num_experts_per_tok output_router_logits router_aux_loss_coef router_jitter_noise".split()
)
MATRICES = ("gate", "up", "down")


def expert_parts(stack: Stack) -> tuple[tuple[str, str], ...]:
    """Old and new names of every expert's matrices, within a layer."""
    count = max((len(m.experts) for m in stack.modules() if isinstance(m, Experts)), default=0)
    return tuple(
        (f"mlp.experts.{index}.{part}_proj", f"mlp.experts.{index}.{part}")
        for index in range(count)
        for part in MATRICES
    )


def apart(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights with the experts of joint tensors under names of their own, as views.

    transformers 5 keeps (expert, gate and up, d_model) and (expert, d_model, d_mlp) in memory;
    files hold a matrix for each expert.
    """
    found = dict[str, Tensor]()
    for name, weight in weights.items():
        layer, joint, kind = name.partition(".mlp.experts.")
        if not joint or weight.ndim != 3 or kind not in ("gate_up_proj", "down_proj"):
            found[name] = weight
            continue
        for index, matrix in enumerate(weight):
            one = f"{layer}.mlp.experts.{index}"
            if kind == "down_proj":
                found[f"{one}.down_proj.weight"] = matrix
                continue
            gate, up = matrix[: len(matrix) // 2], matrix[len(matrix) // 2 :]
            found[f"{one}.gate_proj.weight"], found[f"{one}.up_proj.weight"] = gate, up
    return found


def choice(config: Config) -> Choice:
    """Whether the weights of the chosen experts are made to sum to 1."""
    normalised = config.flag("norm_topk_prob", default=False)
    return of_all_normalised if normalised else of_all


def is_sparse(config: Config, layer: int) -> bool:
    """Whether a layer of Qwen's has experts.

    Raises:
        OptionError: If the config's `mlp_only_layers` are no list.
    """
    dense: object = config.values.get("mlp_only_layers") or []
    if not isinstance(dense, list | tuple):
        name = f"{config.family}: config key 'mlp_only_layers'"
        raise OptionError(name, "a list of layers", dense)
    every = config.count("decoder_sparse_step", default=1)
    return layer not in dense and (layer + 1) % every == 0


def is_all_sparse(config: Config) -> bool:
    """Whether every layer has experts."""
    return all(is_sparse(config, layer) for layer in range(config.layers("num_hidden_layers")))
