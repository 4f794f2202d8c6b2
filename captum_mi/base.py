"""What both public classes share: choices, fitting, reading, persistence, dataset figures.

Orchestration only: each idea has a file of its own.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, TypeVar

import torch
from captum._utils.common import (
    _format_additional_forward_args,
    _format_tensor_into_tuples,
)
from captum.attr._utils.attribution import InternalAttribution
from torch import Tensor, nn

from captum_mi import checkpoint, ranks
from captum_mi.bottleneck import logit_of
from captum_mi.choices import whole
from captum_mi.critics import CriticKind
from captum_mi.fitting.fit import Fit
from captum_mi.fitting.fit_networks import fit_networks
from captum_mi.fitting.history import History
from captum_mi.fitting.settings import Settings, Task
from captum_mi.grid import Place
from captum_mi.inference import InferenceKind
from captum_mi.maps.baselines import tensors_of
from captum_mi.maps.heatmap import Unit, per_unit
from captum_mi.maps.information import Estimate, dataset_rows, estimates
from captum_mi.maps.question import Estimator, Information, Question, Weighting
from captum_mi.maps.reading import Reader
from captum_mi.maps.readout import target_index
from captum_mi.model.arguments import chunks, move, rebuilt
from captum_mi.model.batches import Data
from captum_mi.model.hooks import OnRepeat
from captum_mi.model.inputs import check_inputs, check_types
from captum_mi.model.modules import device_of, dtype_of
from captum_mi.model.passes import Passes
from captum_mi.model.preserve import isolated_randomness, left_as_found
from captum_mi.model.sites import layers_of
from captum_mi.model.strides import ChannelAxis
from captum_mi.model.weights import WeightWatch, check_shapes, fingerprint, shapes
from captum_mi.networks import Networks
from captum_mi.outputs import OutputKind, PredictionKind
from captum_mi.probing.design import Design, MarginalKind, Noise, widths
from captum_mi.probing.map_input import unmatched
from captum_mi.probing.named import Layers, Named, counterpart
from captum_mi.probing.structure import Structure
from captum_mi.progress import bar
from captum_mi.warn import warn

__all__ = ["BottleneckAttribution"]

Result = TypeVar("Result")
Self = TypeVar("Self", bound="BottleneckAttribution")


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
        marginal: MarginalKind = "data",
        alpha: float | Tensor | None = None,
        noise: Noise = "matched",
        inference: InferenceKind = "conv",
        critic: CriticKind = "separable",
        head_hidden: Sequence[int] = (256,),
        critic_hidden: Sequence[int] = (256,),
        on_repeat: OnRepeat = "error",
        map_input: int | None = None,
        channel_axis: ChannelAxis | None = None,
        input_channel_axis: ChannelAxis | None = None,
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
            alpha: noise coefficient by hand, in [0, 1]: a number, or a tensor ``(*positions)``,
                which is resized to each layer's grid. Default: inferred.
            noise: ``"matched"`` standardises each channel with its moments over the fitting
                data before mixing; ``"standard"`` mixes N(0, 1) into the raw features.
            inference: ``"conv"`` or ``"mlp"`` (one position at a time).
            critic: ``"separable"`` or ``"concatenated"``.
            head_hidden: widths of the heads' hidden layers; ``()`` for a single layer. The mean of
                their parameters over the noise, which maps of x' rest on, is exact for at most
                one.
            critic_hidden: widths of the critics' hidden layers; ``()`` for a single layer.
            on_repeat: which call counts of a layer that runs several times in a forward pass:
                ``"first"``, ``"last"``, or ``"error"``.
            map_input: with several inputs, the index of the one that maps belong to. Default:
                the only one whose axes match the features'.
            channel_axis: where the features have their channels, ``"first"`` or ``"last"``.
                Default: told by the inputs' positions, first where both would do, as for most
                sequences without attention: say ``"last"`` for a recurrent network on inputs
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
                f"{type(model).__name__}. Wrap a function in a module that calls it"
            )
        if isinstance(model, nn.DataParallel) and len(model.device_ids) > 1:
            raise TypeError(
                "model is a DataParallel over several devices, whose copies share their hooks; "
                "pass model.module, or use a process for each device (see fit)"
            )
        super().__init__(model, None)
        self._named = Named.of(model, layer, head_layers, context_layers, global_layer)
        if prediction is not None and (global_layer is None or downstream is not None):
            raise ValueError(
                f"prediction={prediction!r} is for a global layer without a downstream function, "
                f"whose classes exclude one another; got global_layer={global_layer!r} and "
                f"downstream={downstream!r}. What y is, output= says"
            )
        if marginal == "uniform" and downstream is None:
            raise ValueError(
                "marginal='uniform' is for the classes of a downstream function; got downstream="
                "None. Without one the marginal is that of the data"
            )
        if downstream is not None and not callable(downstream):
            raise TypeError(
                "downstream must be a function from representations to logits; got "
                f"{type(downstream).__name__}")
        self.downstream = downstream
        self.design = Design(
            noise=noise, inference=inference, critic=critic, output=output,
            prediction=prediction, marginal=marginal,
            head_hidden=widths("head_hidden", head_hidden),
            critic_hidden=widths("critic_hidden", critic_hidden),
            on_repeat=on_repeat,
            map_input=None if map_input is None else whole("map_input", map_input, 0),
            channel_axis=channel_axis,
            input_channel_axis=input_channel_axis,
        )
        self.alpha = None if alpha is None else _alpha_tensor(alpha)
        self._fit: Fit | None = None
        if layer is not None:
            self._set_modules()

    def _set_modules(self) -> None:
        """Captum's own attribute: the modules, as they were given."""
        self.layer = self._named.modules(self.model, self.layers)

    # ------------------------------------------------------------------ state

    @property
    def model(self) -> nn.Module:
        """The model that is explained: the user's, or the copy that a fit has fine-tuned."""
        if self._fit is not None and self._fit.base is not None:
            return self._fit.base
        return self.forward_func

    @property
    def layers(self) -> list[str]:
        """Where noise is injected and information is read; empty until ``fit`` has found it."""
        if self._fit is None:
            return self._named.layers or []
        return layers_of(self._fit.structure.sites)

    @property
    def head_layers(self) -> list[str] | None:
        """What is read without noise; ``None`` until ``fit`` has found it."""
        if self._fit is None:
            return self._named.head_layers
        return layers_of(self._fit.structure.head_sites)

    @property
    def context_layers(self) -> list[str] | None:
        """What the inference network reads; ``None`` until ``fit`` has found it."""
        if self._fit is None:
            return self._named.context_layers
        return layers_of(self._fit.structure.context)

    @property
    def global_layer(self) -> str | None:
        """Whose output is y; ``None`` for the model's output."""
        return self._named.global_layer

    @property
    def history(self) -> History:
        """The course of the last fit."""
        return self._fitted().history

    @property
    def networks(self) -> Networks:
        """The fitted networks."""
        return self._fitted().networks

    def _fitted(self) -> Fit:
        if self._fit is None:
            name = type(self).__name__
            raise RuntimeError(
                f"this {name} is not fitted yet: call .fit(loader) with a loader over your "
                f"data, or {name}.load(path, model) for a saved fit"
            )
        return self._fit

    def __repr__(self) -> str:
        layers = ", ".join(self.layers) or "layers that fit finds"
        state = "not fitted" if self._fit is None else "fitted"
        return f"{type(self).__name__}({type(self.forward_func).__name__}: {layers}; {state})"

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
        task: Task = "prediction",
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
        as its batch, but for the draw of locals in its bank, and every process ends up with it. A
        process that calls it alone waits for the others.

        On CUDA a step on batches of one shape is recorded as a graph, unless the model waits for
        the device in its passes, takes additional arguments, is being tuned, or several processes
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
                ``attr.model`` afterwards. All else is then fitted to it anew, in as many steps.
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
            UserWarning: if kappa is not reached, the heads are no better than the marginal in
                their mean, or positions of a layer that was named follow none of the inputs' or
                are a single one (input-shaped class).
        """
        settings = Settings(
            steps=steps, lr=lr, weight_decay=weight_decay, task=task, beta1=beta1, beta2=beta2,
            kappa=kappa, bank_size=bank_size, locals_per_example=locals_per_example,
            base_lr=base_lr, cache_bytes=cache_bytes, amp=amp, seed=seed, progress=progress,
        )
        args = _format_additional_forward_args(additional_forward_args) or ()
        model: nn.Module = self.forward_func
        self._fit = fit_networks(
            model, copy.deepcopy(model) if finetune_base else None, self._named, self.design,
            self.alpha, self.downstream, Data(loader, prepare_batch, args), settings,
            self._check_structure,
        )
        self._set_modules()
        return self.history

    def _check_structure(self, structure: Structure) -> None:
        """Whether maps can be made of what was found in the model."""

    def _check_mapped(self, structure: Structure) -> None:
        if structure.mapped is None:
            ranks = structure.signature.ranks
            raise unmatched(ranks, structure.position_axes, self.design.map_input)

    def _reading_passes(self) -> Passes:
        return self._fitted().passes(self.model, self.downstream)

    def _reading(self, seed: int | None = None) -> AbstractContextManager[None]:
        return left_as_found(self.model, self.downstream, gradients=False, seed=seed)

    # ------------------------------------------------------------------ maps

    def _question(
        self, index: Tensor | None, information: Information, estimator: Estimator,
        weighting: Weighting | None, refine_steps: int, alpha_steps: int,
    ) -> Question:
        structure = self._fitted().structure
        question = Question.of_class(
            structure, index is not None, information, estimator, weighting, refine_steps,
            alpha_steps, self._joined,
        )
        if question.refine_steps:
            self._check_mapped(structure)
        return question

    def _maps(
        self,
        question: Question,
        inputs: tuple[Tensor, ...],
        args: tuple[Any, ...],
        index: Tensor | None,
        *,
        internal_batch_size: int | None,
        unit: Unit,
        baselines: Any = None,
        finish: Callable[[list[Tensor], list[tuple[Place, ...]]], Result],
    ) -> Result:
        """What ``finish`` makes of maps ``(N, M, *positions)`` of every site, and their places.

        M is 1, or all classes; redundant is a difference of what it makes. Whether all went well
        is looked at last, so that until then the CPU may be ahead of a CUDA device.
        """
        fit = self._fitted()
        self._check_critics(fit, question.estimator)
        passes, scale = self._reading_passes(), per_unit(unit)
        blanks = tensors_of(baselines, inputs, question)
        results: list[list[list[Tensor]]] = [[] for _ in question.reads]
        reader: Reader | None = None
        with self._reading():
            fit.move_to(self.model)
            both = inputs + blanks
            for part, part_args, part_index in chunks(both, args, index, internal_batch_size):
                if reader is not None:
                    reader.check()
                reader = Reader(
                    passes, fit, question, part[: len(inputs)], part_args, part_index,
                    part[len(inputs) :],
                )
                for read, parts in zip(question.reads, results):
                    parts.append(reader.read(read, scale))
            assert reader is not None
            finished = [finish([torch.cat(one) for one in zip(*parts)], reader.evidence.places)
                        for parts in results]
            result = finished[0] if len(finished) == 1 else _difference(*finished)
            unchanged = fit.watch.look()  # while a CUDA device is busy
        self._warn_if_changed(unchanged())
        reader.check()
        return result

    def _check_critics(self, fit: Fit, estimator: Estimator) -> None:
        if estimator == "infomax" and not fit.networks.has_critics:
            raise ValueError(
                "estimator='infomax' needs the critics, which a fit with beta1=0 leaves out; "
                "fit with beta1 > 0"
            )

    def _prepare(
        self, inputs: Any, target: Any, additional_forward_args: object, waits: bool = False
    ) -> tuple[tuple[Tensor, ...], tuple[Any, ...], Tensor | None]:
        """Checked inputs and arguments on the model's device, and what a target selects.

        On CUDA NaN and Inf are looked for only if the call ``waits`` for the device anyway: else
        what is read of the inputs tells them later.
        """
        fit = self._fitted()
        device = device_of(self.model)
        formatted = tuple(x.detach().to(device) for x in _format_tensor_into_tuples(inputs))
        args = move(_format_additional_forward_args(additional_forward_args) or (), device)
        fit.structure.signature.check(formatted)
        check = check_inputs if waits or device.type != "cuda" else check_types
        check(formatted, self.model)
        if target is None:
            return formatted, args, None
        n = len(formatted[0])
        shape = self._target_shape(fit, n, args, device)
        return formatted, args, move(target_index(target, n, shape), device)

    def _target_shape(
        self, fit: Fit, n: int, args: tuple[Any, ...], device: torch.device
    ) -> tuple[int, ...]:
        """What targets index. A downstream function's classes may differ from the fit's."""
        if self.downstream is None or self.design.marginal != "uniform":
            return fit.structure.target_shape
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
        formatted, args, _ = self._prepare(inputs, None, additional_forward_args, waits=True)
        masked = formatted
        if alpha_inputs is not None:
            masked, _, _ = self._prepare(alpha_inputs, None, additional_forward_args, waits=True)
            if [x.shape for x in masked] != [x.shape for x in formatted]:
                raise ValueError(
                    "alpha_inputs must have the inputs' shapes, "
                    f"{[tuple(x.shape) for x in formatted]}; got "
                    f"{[tuple(x.shape) for x in masked]}"
                )
        self._warn_if_changed(fit.watch.look()())
        passes, networks = self._reading_passes(), fit.networks
        with self._reading():
            fit.move_to(self.model)
            z = networks.standardise(passes.features(masked, args))
            noise = networks.shared_noise(z, seed)
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

        This draws the noise for each example, seeded; ``attribute`` averages over the same few
        draws for all of them.

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

        Raises:
            RuntimeError: before ``fit``.
            ValueError: for inputs unlike those of the fit, an empty loader, or NaN or Inf.
            TypeError: for inputs of another dtype.
        """
        fit, question = self._fitted(), Question("redundant", estimator)
        self._check_critics(fit, estimator)
        self._warn_if_changed(fit.watch.look()())
        args = _format_additional_forward_args(additional_forward_args) or ()
        data = Data(loader, prepare_batch, args)
        passes, scale = self._reading_passes(), per_unit(unit)
        rows: list[Tensor] = []
        with self._reading(seed + ranks.rank()):  # each process draws noise of its own
            fit.move_to(self.model)
            walk = data.batches(device_of(self.model))
            for batch in bar(walk, "information", "batch", progress, data.n_batches):
                fit.structure.signature.check(batch.inputs)
                check_inputs(batch.inputs, self.model)
                reader = Reader(
                    passes, fit, question, batch.inputs, batch.additional_forward_args, None)
                rows.append(dataset_rows(reader.evidence).cpu() * scale)
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
        state = {
            "named": dataclasses.asdict(self._named) | {"layers": self.layers},
            "downstream": self.downstream is not None,
            "design": self.design.to_dict(),
            "alpha": None if self.alpha is None else self.alpha.tolist(),
            "shapes": shapes(self.forward_func),
            "fingerprint": fit.watch.expected if fit.base is None
            else fingerprint(self.forward_func),
            "fit": fit.state(),
        }
        checkpoint.write(path, fit.tensors(), state)

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
        design, named = Design.from_dict(state["design"]), state["named"]
        alpha = None if state["alpha"] is None else torch.tensor(state["alpha"])
        attribution = cls(
            model, named["layers"] if named["several"] else named["layers"][0],
            named["global_layer"], named["context_layers"], downstream,
            head_layers=named["head_layers"], alpha=alpha, **design.to_dict(),
        )
        with torch.inference_mode(False), isolated_randomness():
            fit = Fit.restored(tensors, state["fit"], model, design, alpha)
        attribution._check_structure(fit.structure)
        attribution._fit = fit
        attribution._set_modules()
        return attribution

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
            downstream = counterpart(self.downstream, self.forward_func, model)
        bound.downstream = downstream
        bound._fit = dataclasses.replace(fit, base=None, watch=WeightWatch(model))
        bound._set_modules()
        return bound


def _difference(one: Any, other: Any) -> Any:
    """Of tensors, in tuples or lists of the same form."""
    if isinstance(one, Tensor):
        return one - other
    return rebuilt(one, [_difference(*pair) for pair in zip(one, other)])


def _alpha_tensor(alpha: float | Tensor) -> Tensor:
    tensor = torch.as_tensor(alpha, dtype=torch.get_default_dtype()).detach()
    logit_of(tensor)  # raises outside of [0, 1]
    return tensor
