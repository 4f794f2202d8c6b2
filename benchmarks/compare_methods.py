"""Compare attribution methods on the same images: figures of merit, cost, paired differences.

    python benchmarks/compare_methods.py --data photographs.npz --weights resnet18.pt \
        --model resnet18 --out benchmarks/results/resnet18

Fits captum_mi on training images (or loads the fits in ``--fits``), explains validation images
with every method, and writes ``OUT``, ``OUT_paired`` and, of refined maps, ``OUT_paired_refined``,
``.csv`` and ``.md``, ``OUT_curves.png``, ``OUT_cost.png`` and ``OUT_history.png``; with
``--pictures DIR`` also a grid of maps on photographs. What is finished is kept, method by method,
in ``--parts``.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import torch
from evaluation import (
    DEVICE,
    METRICS,
    Evaluation,
    Heat,
    evaluation_set,
    mosaics,
    seconds_per_image,
    without_tf32,
)
from matplotlib import colormaps
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter
from peers import cam, captum_methods, fastshap, iba, priors, rise
from peers.method import Method, NotApplicable, explained, reduced
from photographs import PLAIN, Photographs, load, load_model
from report import made_by, mean_and_error, write_table
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset
from tqdm import tqdm

from captum_mi import InfoBottleneckAttribution
from captum_mi.probing.stages import stage_layers
from captum_mi.visualize import panel

sys.path.append(str(Path(__file__).parents[1] / "examples"))
from fits import read_or_made

OURS = "captum_mi"
Registry = dict[str, Method | list[Method]]
Result = dict[str, Any]
Fits = Callable[[], list[InfoBottleneckAttribution]]  # made when they are first asked for

_COLOURED = 7  # rows of others in the figure of curves
_FREE = 0.5  # forward passes, of which the figure of cost shows no less

#: Options that leave all results as they are, or that their name or origin tells.
_ASIDE = ("methods", "pictures", "out", "parts", "metrics", "retime", "refine_steps", "amp")

#: Options that leave peers as they are.
_OF_OURS = ("layers", "steps", "refits", "fits")

#: Files and folders, which may have moved.
_PATHS = ("data", "weights", "fits")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", required=True,
                        help="npz index with boxes, folder of STL-10, or folder with train/, val/")
    parser.add_argument("--model", default="resnet18", help="torchvision name or module:factory")
    parser.add_argument("--weights", help="state_dict, or the name of a torchvision weights enum")
    for name in ("mean", "std"):
        parser.add_argument(f"--{name}", nargs=3, type=float, default=getattr(PLAIN, name),
                            help="of pixels, if the weights have no preset: 0 is removed input")
    parser.add_argument("--size", type=int, default=PLAIN.size,
                        help="side of images, if the weights have no preset")
    parser.add_argument("--layers", nargs="+", help="where noise is injected; default: ours")
    parser.add_argument("--methods", nargs="+", help="names of methods, by their beginnings")
    parser.add_argument("--metrics", nargs="+", choices=METRICS, help="default: all possible")
    parser.add_argument("--n", type=int, default=200, help="evaluation images")
    parser.add_argument("--skip", type=int, default=0,
                        help="first validation images to leave out: settings were chosen there")
    parser.add_argument("--validation", type=int,
                        help="images to read and choose from; default: all of that split")
    parser.add_argument("--mosaics", type=int, default=40)
    parser.add_argument("--confidence", type=float, default=0.9, help="of images in mosaics")
    parser.add_argument("--tiles-per-step", type=int, default=1, help="of degradation curves")
    parser.add_argument("--train", type=int, default=6400, help="images to fit on")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--steps", type=int, default=700)
    parser.add_argument("--amp", action="store_true",
                        help="bfloat16 while fitting and for perturbed images, not for maps")
    parser.add_argument("--refits", type=int, default=1, help="fits that are averaged")
    parser.add_argument("--fits", type=Path, help="folder of fits: loaded, or saved if missing")
    parser.add_argument("--refine-steps", type=int, nargs="+", default=[],
                        help="also maps refined by removing so many blocks and halves; the first "
                             "of these numbers is paired with every other row")
    parser.add_argument("--fastshap-steps", type=int, default=700)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--parts", type=Path, help="folder of finished methods; default OUT_parts")
    parser.add_argument("--retime", action="store_true",
                        help="measure the costs of what is finished anew, alone")
    parser.add_argument("--pictures", type=Path, help="folder for a grid that shows photographs")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/photographs"))
    return parser.parse_args()


def main() -> None:
    options = parse()
    without_tf32()
    plain = replace(PLAIN, size=options.size, mean=tuple(options.mean), std=tuple(options.std))
    model, view = load_model(options.model, options.weights, plain)
    model = model.to(DEVICE, memory_format=torch.channels_last)
    train = load(options.data, "train", options.train, options.seed, view).to(DEVICE)
    photos = load(options.data, "validation", options.validation, options.seed, view)
    photos = photos[options.skip :].to(DEVICE)
    stages = stage_layers(model, (train.images[:2],), (), 2)
    fits = cache(lambda: [fitted(model, train, options, options.seed + i)
                          for i in range(options.refits)])
    chosen = evaluation_set(model, photos, options.n)
    grids = mosaics(model, photos, options.mosaics, options.confidence, options.seed)
    evaluation = Evaluation(
        model, chosen, grids, options.tiles_per_step, options.seed, options.amp)
    metrics = options.metrics or evaluation.possible()
    if impossible := set(metrics) - set(evaluation.possible()):
        raise ValueError(f"--metrics {' '.join(impossible)}: these images have no boxes, or there "
                         "are no mosaics")
    registry = {**ours(fits, options), **others(model, stages, train.images, options)}

    results: dict[str, Result] = {}
    origins: dict[str, list[str]] = {}
    for name, method in selected(registry, options.methods).items():
        new, origin = finished(name, method, evaluation, metrics, fits, options)
        results |= new
        origins.setdefault(origin, []).append(name)
        for row in [row for row in results if row.startswith(name)][-1:]:
            print(*cells(row, results[row], metrics), sep="  ", flush=True)
    used = fits() if fits.cache_info().currsize else []
    write(results, origins, metrics, used, evaluation, options)
    if options.pictures:
        options.pictures.mkdir(parents=True, exist_ok=True)
        shown = {name: result["heat"][:6] for name, result in results.items()}
        units = {name: "nats / pixel" for name in shown if name.startswith(OURS)}
        panel(chosen.images[:6], shown, units=units).savefig(
            options.pictures / "panel.png", dpi=90)


def fitted(
    model: nn.Module, train: Photographs, options: argparse.Namespace, seed: int
) -> InfoBottleneckAttribution:
    """A fit: loaded if one of these settings was saved, else made on training images."""
    settings = [*(options.layers or ["default"]), f"{options.steps}x{options.batch}",
                f"of-{options.train}", f"seed-{seed}"]
    path = options.fits and options.fits / f"{'-'.join(settings)}.safetensors"

    def made() -> InfoBottleneckAttribution:
        loader = DataLoader(
            TensorDataset(train.images, train.labels), options.batch, shuffle=True, drop_last=True
        )
        attr = InfoBottleneckAttribution(model, options.layers)
        attr.fit(loader, steps=options.steps, seed=seed, amp=options.amp or None)
        return attr

    return read_or_made(path, model, made)


def ours(fits: Fits, options: argparse.Namespace) -> Registry:
    """The default and its variants, each by every fit; fits are made at the first explanation."""

    def variant(**keywords: Any) -> list[Method]:
        return [
            Method(lambda x, t, i=i: fits()[i].attribute(x, t, **keywords), batch=50)  # type: ignore[misc]
            for i in range(options.refits)
        ]

    found: Registry = {OURS: variant()}
    found[f"{OURS}, weighting='none'"] = variant(weighting="none")
    for steps in options.refine_steps:
        found[f"{OURS}, refine_steps={steps}"] = variant(refine_steps=steps)
    return found


def others(
    model: nn.Module, stages: list[str], images: Tensor, options: argparse.Namespace
) -> Registry:
    """Every peer."""
    return {
        **captum_methods.methods(model, stages[-1], options.seed),
        **cam.methods(model, stages[-1]),
        **rise.methods(model, options.seed),
        **iba.methods(model, stages[:2], images[:1000], options.seed),
        **fastshap.methods(model, stages[1:], images, options.fastshap_steps, options.seed),
        **priors.methods(options.seed),
    }


def selected(registry: Registry, wanted: list[str] | None) -> Registry:
    """Methods whose name begins with one of those wanted; all of them by default.

    A name alone means that method and not its variants.
    """
    if wanted is None:
        return registry
    kept = {
        name: method for name, method in registry.items()
        if any(name == start or (start not in registry and name.startswith(start))
               for start in wanted)
    }
    if not kept:
        raise ValueError(f"no method begins with {wanted}; there are {list(registry)}")
    return kept


def finished(
    name: str, method: Method | list[Method], evaluation: Evaluation, metrics: list[str],
    fits: Fits, options: argparse.Namespace,
) -> tuple[dict[str, Result], str]:
    """A method's results, one for each reduction, and how they were made; kept ones are loaded."""
    folder = options.parts or Path(f"{options.out}_parts")
    path = folder / f"{re.sub('[^a-z0-9]+', '-', name.lower())}.pt"
    aside = _ASIDE if name.startswith(OURS) else _ASIDE + _OF_OURS
    settings = {
        key: Path(value).name if key in _PATHS and value is not None else str(value)
        for key, value in vars(options).items() if key not in aside
    }
    settings["metrics"] = " ".join(metrics)
    if path.exists():
        kept = torch.load(path, weights_only=True)
        if _without_none(kept["settings"]) == _without_none(settings):
            if options.retime:
                spent = cost(method, evaluation)
                for result in kept["results"].values():
                    result.update(spent)
                torch.save(kept, path)
            return kept["results"], kept.get("origin", "unknown, of an earlier version")
    try:
        results = run(name, method, evaluation, metrics)
        origin = made_by() + (", bfloat16 for perturbed images" if options.amp else "")
        origin += about(fits(), options) if name.startswith(OURS) else ""
    except NotApplicable as error:
        results, origin = {}, f"not applicable to {options.model}: {error}"
        print(f"{name}: {origin}", flush=True)
    folder.mkdir(parents=True, exist_ok=True)
    torch.save({"settings": settings, "results": results, "origin": origin}, path)
    return results, origin


def _without_none(settings: dict[str, str]) -> dict[str, str]:
    """Settings without options that are not given, which may be newer than a part."""
    return {name: value for name, value in settings.items() if value != "None"}


def run(
    name: str, method: Method | list[Method], evaluation: Evaluation, metrics: list[str]
) -> dict[str, Result]:
    """Explain all images, and measure each reduction; several fits are averaged per image."""
    fits = method if isinstance(method, list) else [method]
    photos, grids = evaluation.photos, evaluation.grids
    raw = [
        Heat(explained(one, photos.images, photos.labels, name),
             explained(one, grids.images, grids.targets, f"{name}, mosaics"))
        for one in fits
    ]
    spent = cost(method, evaluation)
    results = {}
    for reduction in fits[0].reductions:
        heats = [Heat(*(reduced(a, reduction) for a in (one.images, one.mosaics))) for one in raw]
        values = {
            metric: torch.stack([evaluation.measure(metric, heat) for heat in heats])
            for metric in tqdm(metrics, desc=f"{name}, {reduction}", unit="metric")
        }
        curves = [one.curves for one in heats if one.curves]
        results[f"{name} ({reduction})"] = {
            "values": {metric: one.mean(0) for metric, one in values.items()},
            "per_fit": {metric: one.mean(1) for metric, one in values.items()},
            **spent,
            "heat": heats[0].images[:6].sum(1).cpu(),
            "curves": curves and [
                torch.cat([one.morf for one in curves]).float().mean(0).cpu(),
                torch.cat([one.lerf for one in curves]).float().mean(0).cpu(),
                curves[0].removed.cpu(),
            ],
        }
    return results


def cost(method: Method | list[Method], evaluation: Evaluation) -> dict[str, float]:
    """Time of an explanation, in seconds and in forward passes, per image."""
    one, photos = method[0] if isinstance(method, list) else method, evaluation.photos
    timed = min(len(photos.images), one.batch)
    seconds = seconds_per_image(one.explain, photos.images[:timed], photos.labels[:timed])
    with torch.no_grad():
        forward = seconds_per_image(evaluation.model, photos.images[:timed])
    return {"seconds": seconds, "passes": seconds / forward}


def cells(name: str, result: Result, metrics: list[str]) -> list[str]:
    """A row of the table."""
    return [name, *(mean_and_error(result["values"][metric]) for metric in metrics),
            f"{1000 * result['seconds']:.2f}", f"{result['passes']:.2f}"]


def write(
    results: dict[str, Result], origins: dict[str, list[str]], metrics: list[str],
    fits: list[InfoBottleneckAttribution], evaluation: Evaluation, options: argparse.Namespace,
) -> None:
    """Tables and figures."""
    out: Path = options.out
    n, grids = len(evaluation.photos.images), len(evaluation.grids.images)
    small = "" if evaluation.photos.boxes is None else " with a box under half of the image"
    note = (
        f"{n} correctly classified validation images{small}, {grids} mosaics; mean ± standard "
        "error over images. Lower is better for deletion and infidelity, higher elsewhere."
        f"\n\n{conditions(origins, options)}"
    )
    header = ["method (reduction)", *metrics, "ms/image", "forward passes"]
    rows = [cells(name, result, metrics) for name, result in results.items()]
    print(write_table(out, f"Methods compared, {options.model}", header, rows, note))
    leading = {f"{OURS} (signed)": "paired"}
    for steps in options.refine_steps[:1]:
        leading[f"{OURS}, refine_steps={steps} (signed)"] = "paired_refined"
    for row, suffix in leading.items():
        if row in results:
            paired(results, row, suffix, metrics, note, options)
    if fits:
        fits[0].history.plot().savefig(f"{out}_history.png", dpi=110)
    if "degradation" in metrics:
        figure_of_curves(results).savefig(f"{out}_curves.png", dpi=110)
        figure_of_cost(results).savefig(f"{out}_cost.png", dpi=110)


def about(fits: list[InfoBottleneckAttribution], options: argparse.Namespace) -> str:
    """What the fits took."""
    seconds = sum(attr.history.seconds for attr in fits) / len(fits)
    precision = " in bfloat16" if options.amp else ""
    return (f", {len(fits)} fit(s) of {'+'.join(fits[0].layers)} on {options.train} images, each "
            f"{len(fits[0].history)} steps of {options.batch}{precision} in {seconds:.0f} s")


def conditions(origins: dict[str, list[str]], options: argparse.Namespace) -> str:
    """Under what conditions the numbers were measured."""
    shared = {"model": options.model, "seed": options.seed, "skipped": options.skip}
    if options.tiles_per_step > 1:
        shared["tiles per step of curves"] = options.tiles_per_step
    first = ", ".join(f"{name} {value}" for name, value in shared.items())
    return "\n\n".join([first, *(f"{', '.join(names)}: {origin}"
                                 for origin, names in origins.items())])


def paired(
    results: dict[str, Result], ours: str, suffix: str, metrics: list[str], note: str,
    options: argparse.Namespace,
) -> None:
    """Differences of a row of ours from every other row, image by image."""
    rows = [
        [name, *(mean_and_error(results[ours]["values"][metric] - result["values"][metric])
                 for metric in metrics)]
        for name, result in results.items() if name != ours
    ]
    spread = results[ours]["per_fit"]
    if options.refits > 1:
        rows.append(["standard deviation over fits",
                     *(f"{spread[metric].std():.3f}" for metric in metrics)])
    stem = options.out.with_name(f"{options.out.name}_{suffix}")
    title = f"{ours} minus each other row, {options.model}"
    print(write_table(stem, title, ["against", *metrics], rows, note))


def ranked(results: dict[str, Result]) -> list[str]:
    """Rows by degradation, the most faithful first."""
    areas = {name: float(row["values"]["degradation"].mean()) for name, row in results.items()}
    return sorted(areas, key=lambda name: -areas[name])


def figure_of_curves(results: dict[str, Result]) -> Figure:
    """Mean MoRF and LeRF curves: ours and the best of the others in colour, the rest in grey."""
    figure = Figure(figsize=(11, 4.2), layout="constrained")
    axes = figure.subplots(1, 2, sharey=True)
    titles = ("most relevant tiles first", "least relevant tiles first")
    order = ranked(results)
    mine = [name for name in order if name.startswith(OURS)]
    peers = [name for name in order if name not in mine]
    styles = {name: {"color": "0.85", "lw": 0.8} for name in peers}
    for i, name in enumerate(mine + peers[:_COLOURED]):
        shade = 2 * (i % 10) + i // 10  # the ten strong colours, then the ten pale ones
        styles[name] = {"color": colormaps["tab20"](shade), "label": name,
                        "lw": 2 if name in mine else 1}
    for i, (axis, title) in enumerate(zip(axes, titles)):
        for name in reversed(order):  # the most faithful above the others
            curves = results[name]["curves"]
            axis.plot(100 * curves[2], curves[i], **styles[name])
        axis.set(title=title, xlabel="8x8 tiles removed, %")
    axes[0].set_ylabel("probability of the target")
    named = axes[0].get_legend_handles_labels()
    figure.legend(*(part[::-1] for part in named), fontsize=7, frameon=False, loc="outside right",
                  title="by degradation; other rows grey", title_fontsize=7)
    return figure


def figure_of_cost(results: dict[str, Result]) -> Figure:
    """Faithfulness against cost; names stand beside the axes in the order of faithfulness."""
    order = ranked(results)[::-1]
    figure = Figure(figsize=(9, max(4.0, 1 + 0.2 * len(order))), layout="constrained")
    axis = figure.subplots()
    for i, name in enumerate(order):
        cost, area = max(results[name]["passes"], _FREE), results[name]["values"]["degradation"]
        colour = "C3" if name.startswith(OURS) else "C0"
        error = float(area.std()) / len(area) ** 0.5
        mark = "o" if cost > _FREE else "<"
        axis.errorbar(cost, float(area.mean()), error, fmt=mark, color=colour, ms=4)
        axis.annotate(
            name, (cost, float(area.mean())), (1.08, (i + 0.5) / len(order)),
            textcoords="axes fraction", va="center", fontsize=7, color=colour,
            arrowprops={"arrowstyle": "-", "lw": 0.4, "color": colour, "alpha": 0.6,
                        "relpos": (0, 0.5)},
        )
    axis.set(xscale="log", xlabel=f"plain forward passes per image (triangles: under {_FREE})",
             ylabel="degradation: area(LeRF) - area(MoRF)")
    axis.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.xaxis.set_major_formatter("{x:g}")
    axis.xaxis.set_minor_formatter(NullFormatter())
    return figure


if __name__ == "__main__":
    main()
