"""What both public classes share: choices, fitting, reading, persistence, dataset figures.

Orchestration only: each idea has a file of its own.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field
from numbers import Integral
from pathlib import Path
from typing import Any, Literal, TypeVar

import torch
from captum._utils.common import (
    _format_additional_forward_args,
    _format_tensor_into_tuples,
)
from captum.attr._utils.attribution import InternalAttribution
from captum.attr._utils.common import _format_input_baseline, _validate_input
from torch import Tensor, nn
from tqdm.auto import tqdm

from captum_mi import checkpoint, ranks
from captum_mi.batches import (
    Batch,
    batches,
    check_inputs,
    check_types,
    chunks,
    device_of,
    dtype_of,
    epochs_of,
    explained_calls,
    move,
    rebuilt,
)
from captum_mi.bottleneck import logit_of
from captum_mi.fitting import Settings, fill_bank, survey, train
from captum_mi.graphs import Recorder
from captum_mi.heatmap import Unit, check_map_input, find_map_input, per_unit
from captum_mi.history import History
from captum_mi.hooks import OnRepeat, layer_names
from captum_mi.networks import Networks
from captum_mi.outputs import OutputKind, PredictionKind
from captum_mi.passes import Passes
from captum_mi.placing import offsets
from captum_mi.precision import chosen_amp, full_precision, surrounding_amp
from captum_mi.preserve import evaluation_mode, isolated_randomness
from captum_mi.reading import (
    Estimate,
    Estimator,
    Information,
    Kind,
    Read,
    Reader,
    Weighting,
    estimates,
)
from captum_mi.readout import Readout, target_index
from captum_mi.refinement import shared_noise
from captum_mi.remember import FirstPasses
from captum_mi.sites import layers_of
from captum_mi.structure import (
    Design,
    Structure,
    check_choice,
    default_layers,
    default_stages,
    probe,
)
from captum_mi.warn import warn
from captum_mi.weights import WeightWatch, check_shapes, fingerprint, shapes

__all__ = ["BottleneckAttribution"]

Layers = str | nn.Module | Sequence[str | nn.Module]
Result = TypeVar("Result")
Self = TypeVar("Self", bound="BottleneckAttribution")


@dataclass(frozen=True)
class _Fit:
    """What ``fit`` or ``load`` leaves behind."""

    structure: Structure
    networks: Networks
    beta2: float
    history: History
    watch: WeightWatch
    base: nn.Module | None
    recorder: Recorder = field(default_factory=Recorder)


class BottleneckAttribution(InternalAttribution):
    """An attribution method that is fitted once, on chosen layers of a model."""

    #: Whether the layers' evidence for a class is combined before it is weighted.
    _joined = False

    def __init__(
        self,
        model: nn.Module,
        layer: Layers | None = None,
        global_layer: str | nn.Module | None = None,
        context_layers: Layers | None = None,
        downstream: Callable[..., Tensor] | None = None,
        *,
        head_layers: Layers | None = None,
        output: OutputKind | None = None,
        prediction: PredictionKind | None = None,
        marginal: Literal["data", "uniform"] = "data",
        alpha: float | Tensor | None = None,
        noise: Literal["matched", "standard"] = "matched",
        inference: Literal["conv", "mlp"] = "conv",
        critic: Literal["separable", "concatenated"] = "separable",
        head_hidden: Sequence[int] = (256, 256),
        critic_hidden: Sequence[int] = (256,),
        on_repeat: OnRepeat = "error",
        map_input: int | None = None,
        channel_axis: Literal["first", "last"] | None = None,
        input_channel_axis: Literal["first", "last"] | None = None,
    ) -> None:
        r"""
        Args:
            model: the model to explain, a ``torch.nn.Module``. It is never changed.
            layer: where noise is injected and information is read: a module of the model or
                its dotted name, or a list of them. Features may be ``(N, C)``, ``(N, C, L)``,
                ``(N, C, H, W)`` or ``(N, C, D, H, W)``. Default: the last blocks of the two
                stages before the deepest (in a ResNet ``layer2`` and ``layer3``), which ``fit``
                finds, of those that depend on ``map_input``, and ``layers`` then names.
            global_layer: the layer whose output is y. Default: the model's output.
            context_layers: the layers that the inference network reads. Default: the last
                block of every stage (the four deepest), and the chosen layers; ``fit`` names them.
            downstream: function from representations ``(M, D)``, followed by the additional
                forward arguments, to logits ``(M, classes)``, for evidence of classes when y
                is continuous (Gaussian).
            head_layers: further layers that are read without noise injected there. Deep ones
                tell the classes of one image apart; they enter the posterior over positions.
                Default: the last block of the deepest stage, which ``fit`` names. ``[]`` for none.
            output: what y is: ``"categorical"`` (logits), ``"bernoulli"`` (logits of labels,
                or one logit), ``"probabilities"`` or ``"gaussian"``. Default: Gaussian for a
                global layer; for the model's output Bernoulli if it is a single number, else
                categorical.
            prediction: with a global layer, what the model's output is, to which the second pass
                is held: ``"categorical"``, ``"bernoulli"`` or ``"probabilities"``, as above.
                Default: as for the model's output.
            marginal: the marginal of the downstream function's classes: its mean prediction
                over the fitting ``"data"``, or ``"uniform"``, where the classes change.
            alpha: noise coefficient by hand, in [0, 1]: a number, or a tensor of the shape of
                the finest chosen layer's positions. Default: inferred.
            noise: ``"matched"`` standardises each channel with its moments over the fitting
                data before mixing; ``"standard"`` mixes N(0, 1) into the raw features.
            inference: ``"conv"`` or ``"mlp"`` (one position at a time).
            critic: ``"separable"`` or ``"concatenated"``.
            head_hidden: widths of the heads' hidden layers; ``()`` for a single layer.
            critic_hidden: widths of the critics' hidden layers; ``()`` for a single layer.
            on_repeat: which call counts of a layer that runs several times in a forward pass:
                ``"first"``, ``"last"``, or ``"error"``.
            map_input: with several inputs, the index of the one that maps belong to. Default:
                the only one whose axes match the features'.
            channel_axis: where the features have their channels, ``"first"`` or ``"last"``.
                Default: told by the inputs' positions, first where both would do, as for most
                sequences: say ``"last"`` for a transformer or a recurrent network on inputs
                ``(N, L, features)``. With them last, features may be ``(N, L, C)``,
                ``(N, H, W, C)``, ``(N, D, H, W, C)``, or of images tokens ``(N, T, C)`` of square
                patches, row by row, after 0, 1, 2 or 5 that belong to no position, such as a
                class token; those are noised with the mean of alpha's logit.
            input_channel_axis: where the input that maps belong to has its channels. Default:
                last if its other axes, and not its last ones, are the features' at a stride,
                first where both would do, as for a convolution over the time of many-channelled
                inputs ``(N, time, channels)``: say ``"last"``.

        Raises:
            ValueError: for an unknown layer (with the closest names) or option.
            TypeError: if the model is not a module.
        """
        if not isinstance(model, nn.Module) or isinstance(model, torch.jit.ScriptModule):
            raise TypeError(
                f"model must be a torch.nn.Module, whose layers can be hooked; got "
                f"{type(model).__name__}"
            )
        if isinstance(model, nn.DataParallel) and len(model.device_ids) > 1:
            raise TypeError(
                "model is a DataParallel over several devices, whose copies share their hooks; "
                "pass model.module, or use a process for each device (see fit)"
            )
        super().__init__(model, None)
        self.global_layer = (
            None if global_layer is None else layer_names(model, [global_layer])[0]
        )
        if prediction is not None and (global_layer is None or downstream is not None):
            raise ValueError(
                f"prediction={prediction!r} is for a global layer without a downstream function, "
                f"whose classes exclude one another; got global_layer={global_layer!r} and "
                f"downstream={downstream!r}. What y is, output= says"
            )
        self.context_layers = _optional_names(model, context_layers)
        self.head_layers = _optional_names(model, head_layers)
        self.layers: list[str] = []
        if layer is not None:
            self._name_layers(layer)
        self.downstream = downstream
        self.design = Design(
            noise=noise, inference=inference, critic=critic, output=output,
            prediction=prediction, marginal=marginal,
            head_hidden=tuple(head_hidden), critic_hidden=tuple(critic_hidden),
            on_repeat=on_repeat, map_input=map_input, channel_axis=channel_axis,
            input_channel_axis=input_channel_axis,
        )
        self.alpha = None if alpha is None else _alpha_tensor(alpha)
        self._fit: _Fit | None = None

    def _name_layers(self, layer: Layers) -> None:
        self._several = isinstance(layer, (list, tuple))
        chosen: Sequence[str | nn.Module] = layer if self._several else [layer]  # type: ignore
        if not chosen:
            raise ValueError("layer is an empty list; name at least one layer")
        self.layers = layer_names(self.forward_func, chosen)
        if len(set(self.layers)) < len(self.layers):
            raise ValueError(f"layer names a layer twice: {self.layers}")
        repeated = set(self.layers) & set(self.head_layers or ())
        if repeated:
            raise ValueError(
                f"head_layers names {sorted(repeated)}, which layer names already: those have "
                "heads of their own"
            )
        self._set_modules()

    def _set_modules(self) -> None:
        """Captum's own attribute: the modules, as they were given."""
        modules = [self.forward_func.get_submodule(name) for name in self.layers]
        self.layer = modules if self._several else modules[0]

    # ------------------------------------------------------------------ state

    @property
    def model(self) -> nn.Module:
        """The model that is explained: the user's, or the copy that a fit has fine-tuned."""
        if self._fit is not None and self._fit.base is not None:
            return self._fit.base
        return self.forward_func

    @property
    def history(self) -> History:
        """The course of the last fit."""
        return self._fitted().history

    @property
    def networks(self) -> Networks:
        """The fitted networks."""
        return self._fitted().networks

    def _fitted(self) -> _Fit:
        if self._fit is None:
            name = type(self).__name__
            raise RuntimeError(
                f"this {name} is not fitted yet: call .fit(loader) with a loader over your "
                f"data, or {name}.load(path, model) for a saved fit"
            )
        return self._fit

    def has_convergence_delta(self) -> bool:
        """False: information is not a decomposition of the output's value."""
        return False

    def attribute_future(self) -> None:
        """Not implemented.

        Raises:
            NotImplementedError: always.
        """
        raise NotImplementedError(f"attribute_future is not implemented for {type(self).__name__}")

    # ------------------------------------------------------------------ fitting

    def fit(
        self,
        loader: Iterable[Any],
        steps: int = 700,
        *,
        additional_forward_args: object = None,
        prepare_batch: Callable[[Any], Any] | None = None,
        task: Literal["prediction", "labels"] = "prediction",
        beta1: float = 1.0,
        beta2: float | None = None,
        kappa: float | None = None,
        lr: float = 1e-3,
        weight_decay: float = 1e-2,
        bank_size: int = 16384,
        locals_per_example: int = 8,
        finetune_base: bool = False,
        base_lr: float = 1e-4,
        amp: bool | None = None,
        cache_bytes: int = 2**31,
        seed: int = 0,
        progress: bool = True,
    ) -> History:
        r"""Fit the estimators and the bottleneck, once per dataset.

        Minimises ``(task loss + beta2 * (information + capacity of x')) / (1 + beta2) - beta1 *
        InfoNCE``, the model frozen, with one-cycle AdamW. Walks the loader once for moments and
        marginals, then for ``steps`` batches, then once more to fill the reference bank.

        Under ``torchrun``, with an initialised process group and the model on each process's
        device, every process calls this with a loader over its own share of the data (such as
        with a ``DistributedSampler``): the fit is that of one process with all shares of a batch
        as its batch, and every process ends up with it. A process that calls it alone waits for
        the others.

        On CUDA a step on batches of one shape is recorded as a graph, unless the model waits for
        the device in its passes, takes additional arguments, is fine-tuned, or several processes
        fit: kernels then run without Python between them. (To find out whether the model waits,
        PyTorch is told to raise where anything does, in any thread, during the first step.)

        Args:
            loader: any iterable that can be walked again. A bare tensor is the inputs, a pair
                is (inputs, labels), a longer tuple is several inputs. Batches are moved to the
                model's device; a sampler that has ``set_epoch`` is told of every walk. One
                example in eight, told by its bits, is held out from the heads: images that are
                augmented anew in each walk are not the same to it, and the held-out figures
                then not those of unseen ones.
            steps: training steps, a batch each.
            additional_forward_args: further arguments of the model, as for ``attribute``.
            prepare_batch: turns what the loader yields into one of the forms above or a
                :class:`captum_mi.Batch`.
            task: what the second pass is held to: the model's own ``"prediction"``, or the
                ``"labels"`` (as the excess over the loss of the clean pass).
            beta1: weight of InfoNCE. With a frozen model it only scales the critics' own
                learning; 0 leaves them out, and ``estimator="infomax"`` with them.
            beta2: weight of the information in x', by hand. Default: held by ``kappa``.
            kappa: distortion to hold, in nats. Default: a quarter of the distortion of
                predicting the marginal, so that it suits any number of classes.
            lr: largest learning rate of the one-cycle schedule.
            weight_decay: of AdamW.
            bank_size: locals in the reference bank of each layer.
            locals_per_example: positions per example and step that InfoNCE contrasts.
            finetune_base: also train a deep copy of the model, as the source describes; it is
                ``attr.model`` afterwards.
            base_lr: learning rate of that copy.
            amp: bfloat16 for the passes of the model. Default: on CUDA, for float32 models;
                inside ``torch.autocast``, what that says. A CPU without bfloat16 instructions
                takes several times as long with it.
            cache_bytes: memory, on the model's device, for what the first walk's passes of the
                model gave. If it suffices for all examples, and the loader yields the same ones
                again, in whatever order, later walks need no first passes; else nothing is kept.
                On CUDA, where steps are recorded, they are run anew.
            seed: of all randomness in the fit. Global random states are left as they were.
            progress: show progress bars with the terms of the objective.

        Returns:
            The history of the terms, with ``.plot()``.

        Raises:
            ValueError: for an empty loader, NaN or Inf in inputs or features, a layer without
                positions (input-shaped class), or options out of range.
            TypeError: for a loader that cannot be walked twice or yields examples one by one, or
                inputs of another dtype than the model's.
            FloatingPointError: if the fit diverges.
            RuntimeError: if a layer never runs, or runs twice, or if alpha is to be inferred and
                the prediction has no gradient to the layers.

        Warns:
            UserWarning: if kappa is not reached, a head is no better than the marginal, or the
                positions of a layer that was named follow none of the inputs'.
        """
        settings = Settings(
            steps=steps, lr=lr, weight_decay=weight_decay, task=task, beta1=beta1, beta2=beta2,
            kappa=kappa, locals_per_example=locals_per_example, base_lr=base_lr,
            progress=progress,
        )
        if beta1 and bank_size < 1:
            raise ValueError(
                f"bank_size must be at least 1; got {bank_size}. Pass beta1=0 for no critics")
        if cache_bytes < 0:
            raise ValueError(f"cache_bytes must be at least 0; got {cache_bytes}")
        original: nn.Module = self.forward_func
        base = copy.deepcopy(original) if finetune_base else None
        model = original if base is None else base
        args = _format_additional_forward_args(additional_forward_args) or ()
        precision = chosen_amp(model, amp)

        with ExitStack() as stack:
            begin_walk = stack.enter_context(epochs_of(loader))

            def walk() -> Iterator[Batch]:
                begin_walk()
                return batches(loader, device_of(model), prepare_batch, args)

            stack.enter_context(isolated_randomness(seed))
            for module in (original, model, self.downstream):
                if isinstance(module, nn.Module):
                    stack.enter_context(evaluation_mode(module))
            stack.enter_context(torch.inference_mode(False))
            stack.enter_context(torch.enable_grad())
            stack.enter_context(full_precision(model))
            first = next(walk())
            if self.design.map_input is not None:
                check_map_input(self.design.map_input, len(first.inputs))
            with explained_calls(first):
                stages = None
                if not self.layers:
                    stages = default_stages(
                        model, first, self.design.channel_axis, self.design.map_input)
                    self._name_layers(default_layers(stages))
                structure = self._probe(model, first, stages)
            structure = self._placed(model, structure, first)
            sizes = [bank_size] * len(structure.sites) if beta1 else []
            networks = self._build(model, structure, sizes)
            passes = self._passes(model, structure, precision)
            records = _records_steps(model, base)
            limit = cache_bytes if structure.resumes and base is None and not records else 0
            firsts = FirstPasses(passes, networks.noised_sites, limit, _length(loader))
            found = survey(firsts, networks, walk, settings)
            if self.downstream is not None:
                networks.class_log_marginal = found.task_output.log_marginal  # type: ignore
            teacher = None
            if base is not None:
                for parameter in base.parameters():
                    parameter.requires_grad_(parameter.is_floating_point())
                teacher = self._passes(original, structure, precision)
            recorder = Recorder(may_wait=True, most=2, most_bytes=2**40) if records else None
            history, beta2 = train(firsts, networks, walk, found, settings, teacher, recorder)
            fill_bank(firsts, networks, walk, found, settings)
        networks.requires_grad_(False)
        self._set_fit(_Fit(structure, networks, beta2, history, WeightWatch(model), base))
        return history

    def _set_fit(self, fit: _Fit) -> None:
        """Keep a fit, and name the layers that it reads where none were named."""
        self._fit = fit
        self.head_layers = layers_of(fit.structure.head_sites)
        self.context_layers = layers_of(fit.structure.context)

    def _probe(
        self, model: nn.Module, batch: Batch, stages: Sequence[str] | None
    ) -> Structure:
        structure = probe(
            model, batch, self.design, self.layers, self.head_layers, self.context_layers,
            self.global_layer, self.downstream, stages,
        )
        self._check_sites(structure)
        self._check_inputs(structure, batch.inputs)
        return structure

    def _placed(self, model: nn.Module, structure: Structure, batch: Batch) -> Structure:
        """The structure, with where positions lie in the input that maps belong to, if any."""
        try:
            mapped = find_map_input(batch.inputs, structure.position_axes, self.design.map_input)
        except ValueError:
            return structure
        passes = self._passes(model, structure, None)
        found = offsets(passes, structure.sites, batch, mapped, self.design)
        return dataclasses.replace(structure, offsets=found)

    def _check_sites(self, structure: Structure) -> None:
        """Whether maps can be made of these sites."""

    def _check_inputs(self, structure: Structure, inputs: tuple[Tensor, ...]) -> None:
        """Whether they belong to one of these inputs."""

    def _build(
        self, model: nn.Module, structure: Structure, bank_sizes: Sequence[int]
    ) -> Networks:
        networks = Networks(self.design, structure, self.alpha, bank_sizes)
        return networks.to(device_of(model), _own_dtype(model))

    def _passes(
        self, model: nn.Module, structure: Structure, amp: torch.dtype | None
    ) -> Passes:
        return Passes(
            model, structure.layers, structure.global_layer, self.design.on_repeat,
            self.downstream, amp, structure.replays,
        )

    def _reading_passes(self) -> Passes:
        """Passes of the model that is explained, in the precision that surrounds the call."""
        return self._passes(self.model, self._fitted().structure, surrounding_amp(self.model))

    @contextmanager
    def _reading(self, seed: int | None = None) -> Iterator[None]:
        """Without gradients, in eval mode, in full precision; all left as found."""
        downstream = self.downstream
        with (
            torch.inference_mode(False), torch.no_grad(), isolated_randomness(seed),
            evaluation_mode(self.model), full_precision(self.model),
            evaluation_mode(downstream) if isinstance(downstream, nn.Module) else nullcontext(),
        ):
            yield

    def _move_networks(self, fit: _Fit) -> None:
        """To where the model is, in its precision; in every call it would cost more than a map."""
        device, dtype = device_of(self.model), _own_dtype(self.model)
        if device_of(fit.networks) != device or dtype_of(fit.networks) != dtype:
            fit.networks.to(device, dtype)

    # ------------------------------------------------------------------ maps

    def _maps(
        self,
        inputs: tuple[Tensor, ...],
        additional_forward_args: object,
        index: Tensor | None,
        *,
        classes: bool = False,
        information: Information,
        estimator: Estimator,
        internal_batch_size: int | None,
        refine_steps: int,
        unit: Unit,
        weighting: Weighting | None = None,
        baselines: Any = None,
        finish: Callable[[list[Tensor], list[tuple[float, ...]]], Result],
    ) -> Result:
        """What ``finish`` makes of maps ``(N, M, *positions)`` of every site, and their offsets.

        M is 1, or all classes; redundant is a difference of what it makes. Whether all went well
        is looked at last, so that until then the CPU may be ahead of a CUDA device.
        """
        fit = self._fitted()
        check_choice("information", information, Information)
        check_choice("estimator", estimator, Estimator)
        self._check_critics(fit, estimator)
        if not isinstance(refine_steps, Integral) or refine_steps < 0:
            raise ValueError(f"refine_steps must be an integer >= 0; got {refine_steps!r}")
        chosen = "none" if classes else _weighting(
            weighting, estimator, index, refine_steps, fit.structure)
        if baselines is not None and chosen != "shares":
            raise ValueError(
                "baselines are what replaces blocks of the input, which only refine_steps=n with "
                f"a target and weighting='shares' does; got refine_steps={refine_steps} and "
                f"weighting {chosen!r}"
            )
        passes, device = self._reading_passes(), inputs[0].device
        args = move(_format_additional_forward_args(additional_forward_args) or (), device)
        factor = per_unit(unit)
        blanks = _blanks(inputs, baselines) if chosen == "shares" else ()
        joined = self._joined and chosen != "none"
        read: tuple[Read, ...] = (
            ("general", "sufficient") if information == "redundant" else (information,))
        kinds = [Kind(one, classes, chosen, joined) for one in read]
        results: list[list[list[Tensor]]] = [[] for _ in kinds]
        reader: Reader | None = None
        with self._reading():
            self._move_networks(fit)
            readout = Readout.of(fit.networks, self.downstream, dtype_of(self.model))
            index = None if index is None else index.clone()  # not of an inference mode outside
            both = inputs + blanks
            for part, part_args, part_index in chunks(both, args, index, internal_batch_size):
                if reader is not None:
                    reader.check()
                reader = Reader(
                    passes, fit.networks, readout, part[: len(inputs)], part_args, estimator,
                    fit.beta2, refine_steps, part[len(inputs) :] or None,
                )
                for kind, parts in zip(kinds, results):
                    maps = reader.read(kind, part_index, fit.recorder)
                    parts.append([one * factor for one in maps])
            assert reader is not None
            places = reader.offsets(joined)
            finished = [finish([torch.cat(one) for one in zip(*parts)], places)
                        for parts in results]
            result = finished[0] if len(finished) == 1 else _difference(*finished)
            unchanged = fit.watch.look()  # while a CUDA device is busy
        self._warn_if_changed(unchanged())
        reader.check()
        return result

    def _check_critics(self, fit: _Fit, estimator: Estimator) -> None:
        if estimator == "infomax" and not len(fit.networks.critics):
            raise ValueError(
                "estimator='infomax' needs the critics, which a fit with beta1=0 leaves out; "
                "fit with beta1 > 0"
            )

    def _prepare(
        self, inputs: Any, target: Any, additional_forward_args: object, waits: bool = False
    ) -> tuple[tuple[Tensor, ...], Tensor | None]:
        """Checked inputs on the model's device, and the classes that a target selects.

        On CUDA NaN and Inf are looked for only if the call ``waits`` for the device anyway: else
        what is read of the inputs tells them later.
        """
        fit = self._fitted()
        device = device_of(self.model)
        formatted = tuple(x.detach().to(device) for x in _format_tensor_into_tuples(inputs))
        fit.structure.signature.check(formatted)
        check = check_inputs if waits or device.type != "cuda" else check_types
        check(formatted, dtype_of(self.model))
        if target is None:
            return formatted, None
        n = len(formatted[0])
        shape = self._target_shape(fit, n, additional_forward_args, device)
        return formatted, move(target_index(target, n, shape), device)

    def _target_shape(
        self, fit: _Fit, n: int, additional_forward_args: object, device: torch.device
    ) -> tuple[int, ...]:
        """What targets index. A downstream function's classes may differ from the fit's."""
        if self.downstream is None or self.design.marginal != "uniform":
            return fit.structure.target_shape
        args = move(_format_additional_forward_args(additional_forward_args) or (), device)
        y = torch.zeros(n, *fit.structure.y_shape, device=device, dtype=dtype_of(self.model))
        with self._reading():
            return tuple(self.downstream(y, *args).shape[1:])

    def _warn_if_changed(self, unchanged: bool) -> None:
        if not unchanged:
            warn(
                "the model's weights have changed since the fit, so its moments, heads and "
                "critics belong to another model; fit again, or use .bind(model) if a fit is "
                "meant to serve another copy"
            )

    def predict_noised(
        self,
        inputs: Tensor | tuple[Tensor, ...],
        additional_forward_args: object = None,
        alpha_inputs: Tensor | tuple[Tensor, ...] | None = None,
        seed: int = 0,
    ) -> Tensor:
        """What the model predicts from x': the second pass, with one seeded draw of noise.

        Args:
            inputs: as for ``attribute``.
            additional_forward_args: further arguments of the model.
            alpha_inputs: inputs whose alpha is taken instead, of the same shape: for testing
                what the mask alone gives away (:func:`captum_mi.metrics.mask_leak`).
            seed: of the noise, which is the same for every example.

        Returns:
            The model's output, or that of the downstream function, ``(N, ...)``.
        """
        fit = self._fitted()
        formatted, _ = self._prepare(inputs, None, additional_forward_args, waits=True)
        masked = formatted
        if alpha_inputs is not None:
            masked, _ = self._prepare(alpha_inputs, None, additional_forward_args, waits=True)
        self._warn_if_changed(fit.watch.look()())
        args = move(
            _format_additional_forward_args(additional_forward_args) or (), formatted[0].device
        )
        passes, networks = self._reading_passes(), fit.networks
        with self._reading():
            self._move_networks(fit)
            z = networks.standardise(passes.features(masked, args))
            noise = shared_noise({site: z[site] for site in networks.noised_sites}, seed)
            noised = networks.injections(networks.alpha_logits(z), noise)
            return passes.second(formatted, args, noised).prediction

    # ------------------------------------------------------------------ dataset figures

    def information(
        self,
        loader: Iterable[Any],
        *,
        additional_forward_args: object = None,
        prepare_batch: Callable[[Any], Any] | None = None,
        estimator: Estimator = "variational",
        unit: Unit = "nats",
        seed: int = 0,
        progress: bool = True,
    ) -> dict[str, dict[str, Estimate]]:
        """Dataset means of the information per position, layer by layer.

        Unlike ``attribute``, which reads x' at its mean, this averages over seeded noise.

        Args:
            loader: as for ``fit``; under ``torchrun`` every process calls this, with its share.
            additional_forward_args: further arguments of the model.
            prepare_batch: as for ``fit``.
            estimator: ``"variational"`` or ``"infomax"``.
            unit: ``"nats"`` or ``"bits"``.
            seed: of the noise.
            progress: show a progress bar.

        Returns:
            Layer name -> ``general``, ``sufficient``, ``redundant`` (general - sufficient) and
            ``capacity`` (summed over channels), each the mean over positions and examples, with
            the standard error over examples.
        """
        fit = self._fitted()
        check_choice("estimator", estimator, Estimator)
        self._check_critics(fit, estimator)
        args = _format_additional_forward_args(additional_forward_args) or ()
        walk = batches(loader, device_of(self.model), prepare_batch, args)
        passes, factor = self._reading_passes(), per_unit(unit)
        rows: list[Tensor] = []
        with self._reading(seed):
            self._move_networks(fit)
            readout = Readout.of(fit.networks, self.downstream, dtype_of(self.model))
            shown = progress and ranks.is_first()
            for batch in tqdm(walk, desc="information", unit="batch", disable=not shown):
                check_inputs(batch.inputs, dtype_of(self.model))
                reader = Reader(
                    passes, fit.networks, readout, batch.inputs,
                    batch.additional_forward_args, estimator, fit.beta2,
                )
                rows.append(reader.dataset_rows().cpu() * factor)
                reader.check()
        every = ranks.gather_rows(torch.cat(rows).to(device_of(self.model))).cpu()
        return estimates([site.name for site in fit.structure.sites], every)

    # ------------------------------------------------------------------ persistence

    def save(self, path: str | Path) -> None:
        """Write the fit to a safetensors file: networks, moments, bank, choices and names.

        The model itself is not saved, except for a copy that the fit has fine-tuned.

        Raises:
            FileNotFoundError: if the file's folder does not exist.
            IsADirectoryError: if the path is a folder.
        """
        fit = self._fitted()
        tensors = {f"networks.{k}": v for k, v in fit.networks.state_dict().items()}
        if fit.base is not None:
            tensors |= {f"base.{k}": v for k, v in fit.base.state_dict().items()}
        state = {
            "layers": self.layers,
            "several": self._several,
            "global_layer": self.global_layer,
            "context_layers": self.context_layers,
            "head_layers": self.head_layers,
            "downstream": self.downstream is not None,
            "design": self.design.to_dict(),
            "structure": fit.structure.to_dict(),
            "alpha": None if self.alpha is None else self.alpha.tolist(),
            "bank_sizes": [len(fit.networks.bank(i)) for i in range(len(fit.networks.banks))],
            "beta2": fit.beta2,
            "history": vars(fit.history),
            "base": fit.base is not None,
            "shapes": shapes(self.forward_func),
            "fingerprint": fit.watch.expected if fit.base is None
            else fingerprint(self.forward_func),
        }
        checkpoint.write(path, tensors, state)

    @classmethod
    def load(
        cls: type[Self],
        path: str | Path,
        model: nn.Module,
        downstream: Callable[..., Tensor] | None = None,
        strict: bool = True,
    ) -> Self:
        """Read a fit and bind it to a model by the names of its layers.

        Args:
            path: a file that ``save`` wrote.
            model: the model that was fitted on, or a copy.
            downstream: the downstream function, if the fit had one.
            strict: raise if the model's weights are not those of the fit; ``False`` checks
                names and shapes only.

        Raises:
            FileNotFoundError: if there is no such file.
            ValueError: for a corrupted or foreign file, or a model whose layers, shapes or
                weights differ from the fit's; says which.
        """
        tensors, state = checkpoint.read(path)
        check_shapes(state["shapes"], model)
        if strict and fingerprint(model) != state["fingerprint"]:
            raise ValueError(
                "the model's weights are not those that the fit was made on (their fingerprints "
                "differ). Load the same weights, or pass strict=False to use the fit as it is"
            )
        if state["downstream"] and downstream is None:
            raise ValueError(
                "the fit had a downstream function, which is not saved; pass downstream= to load"
            )
        design = Design.from_dict(state["design"])
        layer = state["layers"] if state["several"] else state["layers"][0]
        alpha = None if state["alpha"] is None else torch.tensor(state["alpha"])
        attribution = cls(
            model, layer, state["global_layer"], state["context_layers"], downstream,
            head_layers=state["head_layers"], alpha=alpha, **design.to_dict(),
        )
        attribution._restore(tensors, state)
        return attribution

    def _restore(self, tensors: dict[str, Tensor], state: dict[str, Any]) -> None:
        model: nn.Module = self.forward_func
        structure = Structure.from_dict(state["structure"])
        self._check_sites(structure)
        networks = self._build(model, structure, state["bank_sizes"])
        networks.load_state_dict(_with_prefix(tensors, "networks."))
        base = None
        if state["base"]:
            base = copy.deepcopy(model)
            base.load_state_dict(_with_prefix(tensors, "base."))
        self._set_fit(_Fit(
            structure, networks.requires_grad_(False), state["beta2"],
            History(**state["history"]), WeightWatch(model if base is None else base), base,
        ))

    def bind(
        self: Self, model: nn.Module, downstream: Callable[..., Tensor] | None = None
    ) -> Self:
        """The same fit on another copy of the model; names and shapes are checked, not weights.

        Args:
            model: a model with the same layers and shapes, for example with randomised weights.
            downstream: the downstream function of that copy. Default: of the same name in it, if
                this one is a module of the model or a method of one; else this one.

        Returns:
            A new attribution that shares the fitted networks.

        Raises:
            ValueError: if names or shapes differ; says which.
        """
        fit = self._fitted()
        check_shapes(shapes(self.model), model)
        bound = copy.copy(self)
        bound.forward_func = model
        if downstream is None:
            downstream = _counterpart(self.downstream, self.forward_func, model)
        bound.downstream = downstream
        bound._set_modules()
        bound._fit = dataclasses.replace(fit, base=None, watch=WeightWatch(model))
        return bound


def _optional_names(model: nn.Module, layers: Layers | None) -> list[str] | None:
    if layers is None:
        return None
    return layer_names(model, [layers] if isinstance(layers, (str, nn.Module)) else layers)


def _counterpart(
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


def _weighting(
    weighting: Weighting | None, estimator: Estimator, index: Tensor | None,
    refine_steps: int, structure: Structure,
) -> Weighting:
    """The weighting that was asked for, or the most telling one that is possible."""
    axes = structure.position_axes
    of_class = estimator == "variational" and index is not None and axes > 0
    if weighting is None:
        if not of_class:
            return "none"
        return "shares" if refine_steps and structure.has_shares else "posterior"
    check_choice("weighting", weighting, Weighting)
    if weighting != "none" and not of_class:
        raise ValueError(
            f"weighting={weighting!r} needs the variational evidence for a class, at a layer with "
            f"positions; got estimator={estimator!r}, {'no' if index is None else 'a'} target and "
            f"{axes} position axes"
        )
    if weighting == "shares" and not (refine_steps and structure.has_shares):
        raise ValueError(
            "weighting='shares' needs a prediction of classes and a number of blocks to remove, "
            f"such as refine_steps=9; got refine_steps={refine_steps}"
            f"{'' if structure.has_shares else ' and a prediction without classes'}"
        )
    return weighting


def _difference(one: Any, other: Any) -> Any:
    """Of tensors, in tuples or lists of the same form."""
    if isinstance(one, Tensor):
        return one - other
    return rebuilt(one, [_difference(*pair) for pair in zip(one, other)])


def _records_steps(model: nn.Module, base: nn.Module | None) -> bool:
    """Whether a fit tries to record its steps: on CUDA, alone, for a model that stays as it is."""
    return device_of(model).type == "cuda" and base is None and ranks.world() == 1


def _length(loader: Iterable[Any]) -> int | None:
    """How many batches a loader has, if it knows."""
    try:
        return len(loader)  # type: ignore[arg-type]
    except TypeError:  # as a DataLoader over a stream
        return None


def _own_dtype(model: nn.Module) -> torch.dtype:
    """What our networks compute in beside a model."""
    return torch.promote_types(dtype_of(model), torch.float32)


def _blanks(inputs: tuple[Tensor, ...], baselines: Any) -> tuple[Tensor, ...]:
    """Baselines, in any of Captum's forms, as tensors of the inputs' shapes."""
    inputs, formatted = _format_input_baseline(inputs, baselines)
    _validate_input(inputs, formatted)
    blanks = []
    for x, baseline in zip(inputs, formatted):
        given = torch.as_tensor(baseline, device=x.device)
        blank = given.to(x.dtype)
        if not x.is_floating_point() and not torch.equal(blank.to(given.dtype), given):
            raise ValueError(f"baselines={baseline} are no values of inputs of {x.dtype}")
        blanks.append(blank.expand_as(x))
    return tuple(blanks)


def _alpha_tensor(alpha: float | Tensor) -> Tensor:
    tensor = torch.as_tensor(alpha, dtype=torch.get_default_dtype()).detach()
    logit_of(tensor)  # raises outside of [0, 1]
    return tensor


def _with_prefix(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
