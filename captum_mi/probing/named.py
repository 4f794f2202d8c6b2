"""Parts of a model that the user has named, and their counterparts in another copy of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from captum_mi.model.hooks import layer_names

__all__ = ["Layers", "Named", "check_named", "counterpart"]

#: As users give layers: a module of the model, its dotted name, or a list of them.
Layers = str | nn.Module | Sequence[str | nn.Module]


@dataclass(frozen=True)
class Named:
    """Dotted names; ``None`` where a fit is to find the layers.

    Attributes:
        layers: where noise is injected and information is read.
        several: whether these are a list, so that results for them are lists.
        head_layers: which are read without noise.
        context_layers: which the inference network reads.
        global_layer: whose output is y; ``None`` for the model's output.
    """

    layers: list[str] | None
    several: bool
    head_layers: list[str] | None
    context_layers: list[str] | None
    global_layer: str | None

    @classmethod
    def of(
        cls, model: nn.Module, layer: Layers | None, head_layers: Layers | None,
        context_layers: Layers | None, global_layer: str | nn.Module | None,
    ) -> Named:
        """Look the layers up in a model.

        Raises:
            ValueError: for an unknown layer (with the closest names), one that is named twice, or
                none at all.
        """
        layers, heads = _names(model, layer), _names(model, head_layers)
        context = _names(model, context_layers)
        if context == []:
            raise ValueError(
                "context_layers is an empty list, and alpha has to be inferred from something; "
                "name at least one layer, or leave context_layers out"
            )
        if layers is not None:
            check_named(layers, heads or [])
        return cls(
            layers, layer is None or isinstance(layer, (list, tuple)), heads,
            context,
            None if global_layer is None else layer_names(model, [global_layer])[0],
        )

    def modules(self, model: nn.Module, layers: Sequence[str]) -> nn.Module | list[nn.Module]:
        """The layers themselves, as they were given: one, or a list."""
        modules = [model.get_submodule(name) for name in layers]
        return modules if self.several else modules[0]


def _names(model: nn.Module, layers: Layers | None) -> list[str] | None:
    if layers is None:
        return None
    given = layers if isinstance(layers, (list, tuple)) else [layers]
    return layer_names(model, given)  # type: ignore[arg-type]


def check_named(layers: list[str], head_layers: list[str]) -> None:
    """Whether these layers can be read, and these by a head alone.

    Raises:
        ValueError: for no layer, or one that is named twice.
    """
    if not layers:
        raise ValueError("layer is an empty list; name at least one layer")
    if len(set(layers)) < len(layers):
        raise ValueError(f"layer names a layer twice: {layers}")
    repeated = set(layers) & set(head_layers)
    if repeated:
        raise ValueError(
            f"head_layers names {sorted(repeated)}, which layer names already: those have heads "
            "of their own"
        )


def counterpart(
    downstream: Callable[..., Tensor] | None, model: nn.Module, other: nn.Module
) -> Callable[..., Tensor] | None:
    """The other model's own, of a downstream function that is a part of a model or its method."""
    owner = getattr(downstream, "__self__", downstream)
    for name, module in model.named_modules():
        if module is owner:
            part = other.get_submodule(name)
            method = getattr(downstream, "__name__", None) if owner is not downstream else None
            return part if method is None else getattr(part, method)
    return downstream
