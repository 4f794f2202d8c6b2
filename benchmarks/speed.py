"""Time and memory of attribution, of fitting and of other methods, as ratios to a forward pass.

    python benchmarks/speed.py --models resnet18 resnet50 --batches 1 32 --sizes 96 \
        --out benchmarks/results/speed

Networks have random weights: time does not depend on them. Every call is timed after a warm-up, on
CUDA synchronised, each time next to a forward pass; medians and quartiles of ``--repeats``, in
float32, without TF32 unless ``--tf32`` is given. Writes ``OUT_attribution``, ``OUT_fit``,
``OUT_whole_fit``, ``OUT_growth`` and ``OUT_memory``, ``.csv`` and ``.md``.
"""

from __future__ import annotations

import argparse
import gc
import resource
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import torch
import torchvision
from evaluation import DEVICE, now
from peers.captum_methods import grad_cam, integrated_gradients, occlusion, smoothgrad
from peers.method import NotApplicable
from report import provenance, write_table
from torch import Tensor, nn
from tqdm import tqdm

from captum_mi import InfoBottleneckAttribution
from captum_mi.probing.stages import stage_layers

Call = Callable[[], object]

_WARM_UP = 3 if torch.cuda.is_available() else 1  # calls; what comes again is recorded there
_REFINED = 100  # images at most


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+",
                        default=["resnet18", "resnet50", "mobilenet_v3_large", "convnext_tiny",
                                 "vit_b_16"])
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 32, 128])
    parser.add_argument("--sizes", type=int, nargs="+", default=[96, 224])
    parser.add_argument("--classes", type=int, nargs="+", default=[50, 1000])
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--peers", action="store_true", help="also IG, SmoothGrad, Occlusion")
    parser.add_argument("--no-fit", action="store_true", help="no steps of fits")
    parser.add_argument("--no-attribution", action="store_true")
    parser.add_argument("--growth", action="store_true",
                        help="also how cost grows with images, pixels, classes and layers")
    parser.add_argument("--fit-steps", type=int, default=0, help="also whole fits of so many")
    parser.add_argument("--calls", type=int, default=0, help="repeated calls for flat memory")
    parser.add_argument("--tf32", action="store_true", help="of convolutions, as by default")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/speed"))
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = options.tf32
    origin = provenance(
        repeats=options.repeats, memory_format="channels_last", attribution="in float32",
        tf32="convolutions" if options.tf32 else "off",
    )
    if not options.no_attribution:
        attribution(options, origin)
    if not options.no_fit:
        fitting(options, origin)
    if options.fit_steps:
        whole_fits(options, origin)
    if options.growth:
        growth(options, origin)
    if options.calls:
        memory(options, origin)


def attribution(options: argparse.Namespace, origin: str) -> None:
    """Attribution, evidence of all classes and peers, for each network, size and batch."""
    header = ["model", "pixels", "classes", "batch", "call", "median, forward passes",
              "quartiles", "ms/image", "peak MiB"]
    note = ("Ratios to a plain forward pass of the same batch, right before each call.\n\n"
            f"{origin}")
    stem = options.out.with_name(options.out.name + "_attribution")
    rows: list[list[str]] = []
    for name in options.models:
        for size in options.sizes:
            for classes in options.classes:
                model = network(name, classes, size)
                attr = fitted(model, size)
                for batch in options.batches:
                    images = pictures(batch, size)
                    rows += timed_rows([name, size, classes, batch], model, attr, images, options)
                    print(*rows[-1], sep="  ", flush=True)
        table = write_table(stem, "Cost of attribution", header, rows, note)
    print(table)


def timed_rows(
    case: list[object], model: nn.Module, attr: InfoBottleneckAttribution, images: Tensor,
    options: argparse.Namespace,
) -> list[list[str]]:
    """One row for each call, forward first."""
    n = len(images)
    target = torch.zeros(n, dtype=torch.long, device=DEVICE)
    calls: dict[str, Call] = {
        "forward": partial(no_grad, model, images),
        "captum_mi, a class": lambda: attr.attribute(images, target),
        "captum_mi, no target": lambda: attr.attribute(images),
        "captum_mi, all classes": lambda: attr.evidence(images),
    }
    if n <= _REFINED:
        calls["captum_mi, refined, 9 blocks"] = lambda: attr.attribute(
            images, target, refine_steps=9)
    if options.peers:
        read = [site.layer for site in attr.networks.sites + attr.networks.head_sites]
        shallow = fitted(model, images.shape[-1], read[:-1], stops=True)
        calls["captum_mi, a class, deepest stage not read"] = lambda: shallow.attribute(
            images, target)
        calls |= peers(model, images, target, [read[-1], read[0]])
    rows = []
    for name, call in tqdm(calls.items(), desc=" ".join(map(str, case))):
        try:
            with torch.set_grad_enabled(not name.startswith(("forward", "captum_mi"))):
                ratios, times = beside(calls["forward"], call, options.repeats)
                peak = peak_memory(call)
        except NotApplicable as error:
            print(f"{name}: {error}", flush=True)
            continue
        quarter = len(ratios) // 4
        rows.append([*map(str, case), name, f"{median(ratios):.2f}",
                     f"{ratios[quarter]:.2f} - {ratios[-1 - quarter]:.2f}",
                     f"{1000 * median(times) / n:.2f}", peak])
    return rows


def peers(
    model: nn.Module, images: Tensor, target: Tensor, layers: Sequence[str]
) -> dict[str, Call]:
    """Captum's methods at the settings of the comparison, Grad-CAM at each of some layers."""
    cams = {f"Grad-CAM, {layer}": partial(grad_cam, model, layer, images, target)
            for layer in layers}
    return cams | {
        "Integrated Gradients 50": partial(integrated_gradients, model, images, target),
        "SmoothGrad 50": partial(smoothgrad, model, images, target),
        "Occlusion 16/8": partial(occlusion, model, images, target),
    }


def fitting(options: argparse.Namespace, origin: str) -> None:
    """A step of the fit as a ratio to two forward passes and one backward pass."""
    precisions = {"float32": False, "bfloat16": True}
    if DEVICE.type == "cpu":
        del precisions["bfloat16"]
    rows = []
    for name in options.models:
        for size in options.sizes:
            model, images = network(name, 50, size), pictures(64, size)
            for precision, amp in precisions.items():
                arithmetic, step = fit_step(model, images, 0, amp, options.repeats)
                remembered = ["", ""]
                if DEVICE.type == "cpu":  # on CUDA nothing is remembered
                    beside, spent = fit_step(model, images, 2**31, amp, options.repeats)
                    remembered = [f"{1000 * spent:.1f}", f"{spent / beside:.2f}"]
                rows.append([name, str(size), precision, f"{1000 * arithmetic:.1f}",
                             f"{1000 * step:.1f}", f"{step / arithmetic:.2f}", *remembered])
                print(*rows[-1], sep="  ", flush=True)
    header = ["model", "pixels", "precision", "2 forward + 1 backward, ms", "ms/step of 64",
              "ratio", "first passes remembered, ms/step", "their ratio"]
    note = ("A step of the fit at the default layers, 64 images, without the walks over the data "
            "before and after, next to two forward passes and one backward pass; then with the "
            "first passes of the first walk remembered, as where ``cache_bytes`` suffices for "
            "them. On CUDA steps are recorded as graphs, and nothing need be remembered.\n\n"
            f"{origin}")
    stem = options.out.with_name(options.out.name + "_fit")
    print(write_table(stem, "Cost of fitting", header, rows, note))


def fit_step(
    model: nn.Module, images: Tensor, cache_bytes: int, amp: bool, repeats: int
) -> tuple[float, float]:
    """Seconds of two forward passes and one backward pass, before and after, and of a step.

    A step is the difference of a long and a short fit; short steps, as on CUDA, need be many.
    """
    few = 2
    many = few + (repeats if DEVICE.type == "cpu" else 126)
    spans = []
    arithmetic = [arithmetic_seconds(model, images, amp, repeats)]
    for steps in (few, few, many):  # the first warms up
        attr = InfoBottleneckAttribution(model)
        history = attr.fit([images], steps, progress=False, bank_size=256, amp=amp,
                           cache_bytes=cache_bytes)
        spans.append(history.seconds)
    arithmetic.append(arithmetic_seconds(model, images, amp, repeats))
    return sum(arithmetic) / 2, (spans[2] - spans[1]) / (many - few)


def arithmetic_seconds(model: nn.Module, images: Tensor, amp: bool, repeats: int) -> float:
    """What a step of the fit has to compute, in the precision of the fit."""

    def arithmetic() -> None:
        no_grad(model, images)
        forward_backward(model, images)

    with torch.autocast(DEVICE.type, torch.bfloat16, enabled=amp):
        warm_up(arithmetic)
        return median([seconds(arithmetic) for _ in range(repeats)])


def whole_fits(options: argparse.Namespace, origin: str) -> None:
    """Fits by default, with all their walks."""
    rows = []
    for name in options.models:
        for size in options.sizes:
            model, data = network(name, 50, size), list(pictures(6400, size).split(64))
            start = now()
            history = InfoBottleneckAttribution(model).fit(data, options.fit_steps)
            rows.append([name, str(size), f"{history.seconds:.1f}", f"{now() - start:.1f}"])
            print(*rows[-1], sep="  ", flush=True)
    note = (f"{options.fit_steps} steps of 64 of 6,400 images that are on the device, in the "
            "fit's default precision (bfloat16 on CUDA devices that have it); in all, "
            f"with survey and bank.\n\n{origin}")
    stem = options.out.with_name(options.out.name + "_whole_fit")
    print(write_table(stem, "Time of a fit", ["model", "pixels", "steps, s", "in all, s"], rows,
                      note))


def no_grad(model: nn.Module, images: Tensor) -> None:
    with torch.no_grad():
        model(images)


def forward_backward(model: nn.Module, images: Tensor) -> None:
    """A pass with gradients down to the input, none of the parameters'."""
    x = images.detach().requires_grad_()
    torch.autograd.grad(model(x).square().sum(), x)


def growth(options: argparse.Namespace, origin: str) -> None:
    """How the cost of attribution grows, one thing at a time, for the first of the networks."""
    name, size, batch = options.models[0], options.sizes[0], max(options.batches)
    stages = stage_layers(network(name, 50, size), (pictures(1, size),), (), 2)
    cases: list[tuple[str, object, int, int, int, Sequence[str] | None]] = []
    counts = sorted({1, batch // 4, batch // 2, batch} - {0})
    cases += [("images", n, n, size, 50, None) for n in counts]
    cases += [("pixels", n, batch, n, 50, None) for n in (size // 2, size, 3 * size // 2)]
    cases += [("classes", n, batch, size, n, None) for n in (10, 100, 1000)]
    cases += [("layers", n, batch, size, 50, stages[-n:]) for n in (1, 2, 3, 4)]
    rows = []
    for what, value, n, pixels, classes, layers in tqdm(cases, desc="growth"):
        model, images = network(name, classes, pixels), pictures(n, pixels)
        attr = fitted(model, pixels, layers)
        with torch.no_grad():
            forward = partial(no_grad, model, images)
            one, times = beside(forward, partial(attr.attribute, images, 0), options.repeats)
            every, _ = beside(forward, partial(attr.evidence, images), options.repeats)
        rows.append([what, str(value), f"{1000 * median(times):.1f}", f"{median(one):.2f}",
                     f"{median(every):.2f}"])
        print(*rows[-1], sep="  ", flush=True)
    header = ["what grows", "to", "a class, ms", "a class, forward passes",
              "all classes, forward passes"]
    note = (f"{name}, otherwise {batch} images of {size} pixels, 50 classes and the default "
            f"layers; layers from the deepest.\n\n{origin}")
    stem = options.out.with_name(options.out.name + "_growth")
    print(write_table(stem, "Growth of the cost of attribution", header, rows, note))


def memory(options: argparse.Namespace, origin: str) -> None:
    """Memory of the process over many calls."""
    model = network(options.models[0], 50, 64)
    attr, images = fitted(model, 64), pictures(2, 64)
    rows = []
    for call in tqdm(range(options.calls + 1), desc="repeated calls"):
        attr.attribute(images, 0)
        if call % max(1, options.calls // 5) == 0:
            gc.collect()
            rows.append([str(call), f"{megabytes():.0f}"])
    note = f"Repeated attribution of 2 images by {options.models[0]}.\n\n{origin}"
    stem = options.out.with_name(options.out.name + "_memory")
    print(write_table(stem, "Memory over repeated calls", ["calls", "MiB"], rows, note))


def megabytes() -> float:
    """Memory in use: allocated on CUDA, or the largest that the process has resided in."""
    if DEVICE.type == "cuda":
        return torch.cuda.memory_allocated() / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10


def network(name: str, classes: int, size: int) -> nn.Module:
    """Random weights, in the memory format that convolutions are fastest in."""
    torch.manual_seed(0)
    sized = {"image_size": size} if name.startswith("vit") else {}
    model = torchvision.models.get_model(name, num_classes=classes, **sized)
    model = model.eval().requires_grad_(False)
    return model.to(DEVICE, memory_format=torch.channels_last)


def pictures(n: int, size: int) -> Tensor:
    """Random images."""
    return torch.randn(n, 3, size, size, device=DEVICE).contiguous(
        memory_format=torch.channels_last)


def fitted(
    model: nn.Module, size: int, layers: Sequence[str] | None = None, stops: bool = False
) -> InfoBottleneckAttribution:
    """A fit of one step: its maps mean nothing and cost the same.

    If it ``stops``, nothing but the layers is read, and the pass ends with the deepest of them.
    """
    others = {"context_layers": layers, "head_layers": []} if stops else {}
    attr = InfoBottleneckAttribution(model, layers, **others)  # type: ignore[arg-type]
    attr.fit([pictures(8, size)], 1, progress=False, bank_size=256)
    return attr


def beside(base: Call, call: Call, repeats: int) -> tuple[list[float], list[float]]:
    """Sorted ratios of a call's times to those of what is called right before it, and its times.

    A machine may be faster in one minute than in the next.
    """
    warm_up(base)
    warm_up(call)
    pairs = [(seconds(base), seconds(call)) for _ in range(repeats)]
    return sorted(after / before for before, after in pairs), [after for _, after in pairs]


def peak_memory(call: Call) -> str:
    """MiB of CUDA memory, at most, while a call runs that has run before."""
    if DEVICE.type == "cpu":
        return ""
    torch.cuda.reset_peak_memory_stats()
    call()
    return f"{torch.cuda.max_memory_allocated() / 2**20:.0f}"


def warm_up(call: Call) -> None:
    for _ in range(_WARM_UP):
        call()


def seconds(call: Call) -> float:
    start = now()
    call()
    return now() - start


def median(values: Sequence[float]) -> float:
    return sorted(values)[len(values) // 2]


if __name__ == "__main__":
    main()
