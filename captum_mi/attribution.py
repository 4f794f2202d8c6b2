"""The two public classes: maps of the inputs' shape, and at the layer's own resolution."""

from __future__ import annotations

from typing import Any

from captum._utils.common import _format_output, _is_tuple
from captum.attr._utils.attribution import LayerAttribution
from captum.log import log_usage
from torch import Tensor

from captum_mi.base import BottleneckAttribution
from captum_mi.grid import Place
from captum_mi.maps.heatmap import Unit, joined, to_input, zeros_for
from captum_mi.maps.question import Estimator, Information, Question, Weighting
from captum_mi.probing.structure import Structure
from captum_mi.warn import warn

__all__ = ["InfoBottleneckAttribution", "LayerInfoBottleneckAttribution"]


class InfoBottleneckAttribution(BottleneckAttribution):
    r"""Information-bottleneck attribution, of the shape of the input.

    *Where in this input is the information that the decision rests on, and how much of it?*
    Fitted once per dataset; afterwards an attribution costs about a forward pass, for any class.

    Features of the chosen layers are noised, :math:`x' = \alpha\epsilon + (1-\alpha)x`, with an
    :math:`\alpha` that an inference network reads off the first forward pass. It is trained so
    that x' holds as little information as it can while the second forward pass, continued from
    x', still predicts the same. Heads :math:`q(y | x'_{ij})` and InfoMax critics
    :math:`f(x_{ij}, y_i)` estimate how much each position tells about the global representation
    y. The maps are, per position,

    .. math::

        \text{sufficient, class } t:\quad & \log q(t | x'_{ij}) - \log r(t) \\
        \text{sufficient, no target}:\quad & KL\bigl(q(y | x'_{ij}) \,\|\, r(y)\bigr) \\
        \text{general}:\quad & \text{the same, of the clean features } x_{ij} \\
        \text{redundant}:\quad & \text{general} - \text{sufficient}

    in nats, those of x' in the mean over the noise, resized to the input so that an example's sum
    is the total over positions (local terms overlap: that total is not the information of the
    image). The evidence for a class is weighted by the probability that the class is shown at the
    position, given what all heads say and what the bottleneck lets pass; ``weighting="none"``
    leaves it as it is.

    Sources: VIB (Alemi et al., 2017, https://arxiv.org/abs/1612.00410), Deep InfoMax (Hjelm et
    al., 2019, https://arxiv.org/abs/1808.06670), IBA (Schulz et al., 2020,
    https://arxiv.org/abs/2001.00396).

    Example::

        >>> import warnings
        >>> import torch
        >>> model = torch.nn.Sequential(
        ...     torch.nn.Conv2d(3, 8, 3, padding=1), torch.nn.ReLU(),
        ...     torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(), torch.nn.Linear(8, 4))
        >>> images = torch.randn(32, 3, 16, 16, generator=torch.manual_seed(0))
        >>> attr = InfoBottleneckAttribution(model, layer="1")
        >>> with warnings.catch_warnings():  # two steps are too few, and say so
        ...     warnings.simplefilter("ignore")
        ...     history = attr.fit([images], steps=2, progress=False)
        >>> attr.attribute(images, target=2).shape
        torch.Size([32, 3, 16, 16])
    """

    _joined = True

    def _check_structure(self, structure: Structure) -> None:
        for site in structure.sites:
            if not site.position_axes:
                raise ValueError(
                    f"layer {site.name!r} returns (N, {site.channels}): it has no positions to "
                    "map onto the input. Choose a layer with positions, or use "
                    "LayerInfoBottleneckAttribution for the value per example"
                )
        for site, lattices in zip(structure.sites, structure.lattices):
            if lattices and all(one.length == 1 for one in lattices):
                warn(
                    f"layer {site.name!r} has a single position, whose map is flat. Choose a "
                    "layer with more, such as one before the pooling"
                )
        self._check_mapped(structure)

    @log_usage()
    def attribute(
        self,
        inputs: Tensor | tuple[Tensor, ...],
        target: Any = None,
        additional_forward_args: object = None,
        information: Information = "sufficient",
        estimator: Estimator = "variational",
        internal_batch_size: int | None = None,
        weighting: Weighting | None = None,
        refine_steps: int = 0,
        baselines: Any = None,
        alpha_steps: int = 0,
        unit: Unit = "nats",
    ) -> Tensor | tuple[Tensor, ...]:
        r"""Maps of the inputs' shape. Deterministic, and independent of the batch.

        Inside ``torch.autocast`` the model runs in mixed precision, the fitted networks do not. On
        CUDA, what these make of the features is recorded as a graph the second time that inputs
        of a shape come.

        Args:
            inputs: input, or tuple of inputs, batch first, as the model takes them.
            target: the class, in any of Captum's forms. ``None`` gives the expectation over
                classes, which is never negative (variational estimator, except redundant).
            additional_forward_args: further arguments of the model.
            information: ``"sufficient"`` (what x' tells: what the decision needs), ``"general"``
                (what the clean features tell) or ``"redundant"`` (their difference, signed).
            estimator: ``"variational"``: the heads. ``"infomax"``: pointwise mutual information
                of position and y, by the critics against the reference bank; the target is
                checked and otherwise without effect.
            internal_batch_size: examples per forward pass. Default: all at once.
            weighting: where the evidence for a class is shown. ``"posterior"`` weights it with
                the probability that the class is shown at the position
                (:func:`captum_mi.maps.posterior.position_posterior`); the positive total, and
                evidence against the class, stay. ``"none"`` leaves the log ratio at each position
                as it is. Default: ``"posterior"`` for the variational evidence of a class, else
                ``"none"``.
            refine_steps: forward passes that measure what the decision loses, at most so many:
                without one of up to 9 blocks of the input (:mod:`captum_mi.maps.ablation`), then
                with one half or the other (:mod:`captum_mi.maps.halves`). Two passes with a
                backward pass more give each position's share in the decision, integrated
                gradients of its features (:mod:`captum_mi.maps.shares`). All of it weights the
                posterior (:func:`captum_mi.maps.weighting.weighted`). 9 is a good number, 39 a
                more faithful one for three times the cost.
            baselines: what takes the place of a block or half, and where the integrated gradients
                start, in any of Captum's forms. Default: 0, the mean of normalised images.
            alpha_steps: Adam steps on alpha for each example, from what was inferred, with a pass
                and a backward pass each through the layers above the first bottleneck.
            unit: ``"nats"`` or ``"bits"``.

        Returns:
            Tensor or tuple of the inputs' shapes. With several inputs the map belongs to the one
            that matches the features' axes (``map_input``); the others get zeros.

        Raises:
            RuntimeError: before ``fit`` or ``load``.
            ValueError, TypeError: for inputs unlike the fit's, NaN or Inf, or unknown options.
            AssertionError, IndexError: for bad targets, as Captum raises them.
        """
        is_tuple = _is_tuple(inputs)
        formatted, args, index = self._prepare(inputs, target, additional_forward_args)
        mapped = self._fitted().structure.mapped
        assert mapped is not None

        def of_inputs(
            maps: list[Tensor], places: list[tuple[Place, ...]]
        ) -> tuple[Tensor, ...]:
            return tuple(
                to_input(maps, x, mapped.first_axis, places)
                if i == mapped.index else zeros_for(x)
                for i, x in enumerate(formatted)
            )

        question = self._question(
            index, information, estimator, weighting, refine_steps, alpha_steps)
        results = self._maps(
            question, formatted, args, index,
            internal_batch_size=internal_batch_size, unit=unit, baselines=baselines,
            finish=of_inputs,
        )
        formatted_output: Tensor | tuple[Tensor, ...] = _format_output(is_tuple, results)
        return formatted_output

    def evidence(
        self,
        inputs: Tensor | tuple[Tensor, ...],
        additional_forward_args: object = None,
        information: Information = "sufficient",
        internal_batch_size: int | None = None,
        alpha_steps: int = 0,
        unit: Unit = "nats",
    ) -> Tensor:
        """Evidence for every class from one pass, at the finest chosen layer's resolution.

        Args:
            inputs: as for ``attribute``.
            additional_forward_args: further arguments of the model.
            information: ``"sufficient"``, ``"general"`` or ``"redundant"``.
            internal_batch_size: examples per forward pass. Default: all at once.
            alpha_steps: Adam steps on alpha, from what was inferred.
            unit: ``"nats"`` or ``"bits"``.

        Returns:
            ``(N, classes, *positions)``: ``log q(t | .) - log r(t)`` per position, averaged over
            the layers. Classes of an output of several axes are flattened.

        Raises:
            RuntimeError: before ``fit`` or ``load``.
            ValueError: if y is continuous and there is no downstream function.
        """
        formatted, args, _ = self._prepare(inputs, None, additional_forward_args)
        question = Question(
            information, "variational", alpha_steps=alpha_steps, classes=True)
        return self._maps(
            question, formatted, args, None,
            internal_batch_size=internal_batch_size, unit=unit,
            finish=joined,
        )


class LayerInfoBottleneckAttribution(BottleneckAttribution, LayerAttribution):
    r"""The maps of :class:`InfoBottleneckAttribution` at the layer's own resolution.

    Also for layers without positions, ``(N, C)``: one value per example, ``(N, 1)``. Of the
    outputs of layers alone: there is no ``attribute_to_layer_input``. ``layer`` may be left out,
    as for the input-shaped class.

    Example::

        >>> import warnings
        >>> import torch
        >>> model = torch.nn.Sequential(torch.nn.Linear(6, 8), torch.nn.ReLU(),
        ...                             torch.nn.Linear(8, 3))
        >>> rows = torch.randn(64, 6, generator=torch.manual_seed(0))
        >>> attr = LayerInfoBottleneckAttribution(model, layer=model[1])
        >>> with warnings.catch_warnings():  # two steps are too few, and say so
        ...     warnings.simplefilter("ignore")
        ...     history = attr.fit([rows], steps=2, progress=False)
        >>> attr.attribute(rows, target=0).shape
        torch.Size([64, 1])
    """

    @log_usage()
    def attribute(
        self,
        inputs: Tensor | tuple[Tensor, ...],
        target: Any = None,
        additional_forward_args: object = None,
        information: Information = "sufficient",
        estimator: Estimator = "variational",
        internal_batch_size: int | None = None,
        weighting: Weighting | None = None,
        refine_steps: int = 0,
        baselines: Any = None,
        alpha_steps: int = 0,
        unit: Unit = "nats",
    ) -> Any:
        """Maps per position, in nats; arguments as for the input-shaped class.

        Returns:
            ``(N, 1, *positions)``; a tuple where the layer returns a tuple of tensors; a list
            of these for a list of layers.
        """
        formatted, args, index = self._prepare(inputs, target, additional_forward_args)
        question = self._question(
            index, information, estimator, weighting, refine_steps, alpha_steps)
        return self._maps(
            question, formatted, args, index,
            internal_batch_size=internal_batch_size, unit=unit, baselines=baselines,
            finish=self._per_layer,
        )

    def evidence(
        self,
        inputs: Tensor | tuple[Tensor, ...],
        additional_forward_args: object = None,
        information: Information = "sufficient",
        internal_batch_size: int | None = None,
        alpha_steps: int = 0,
        unit: Unit = "nats",
    ) -> Any:
        """Evidence for every class; arguments as for the input-shaped class.

        Returns:
            ``(N, classes, *positions)`` for each layer, structured as ``attribute`` does.

        Raises:
            RuntimeError: before ``fit`` or ``load``.
            ValueError: if y is continuous and there is no downstream function.
        """
        formatted, args, _ = self._prepare(inputs, None, additional_forward_args)
        question = Question(
            information, "variational", alpha_steps=alpha_steps, classes=True)
        return self._maps(
            question, formatted, args, None,
            internal_batch_size=internal_batch_size, unit=unit, finish=self._per_layer,
        )

    def _per_layer(self, maps: list[Tensor], _: list[tuple[Place, ...]]) -> Any:
        sites = self._fitted().structure.sites
        results: list[Any] = []
        for layer in self.layers:
            parts = [(site, one) for site, one in zip(sites, maps) if site.layer == layer]
            is_tuple = parts[0][0].part is not None
            results.append(_format_output(is_tuple, tuple(one for _, one in parts)))
        return results if self._named.several else results[0]
