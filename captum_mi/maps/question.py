"""What maps are asked for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from captum_mi.choices import check_choice, whole
from captum_mi.networks import Locals
from captum_mi.probing.structure import Structure

__all__ = ["Estimator", "Information", "Question", "Weighting"]

Information = Literal["sufficient", "general", "redundant"]
Estimator = Literal["variational", "infomax"]
Weighting = Literal["posterior", "none"]


@dataclass(frozen=True)
class Question:
    """What is asked of a batch.

    Attributes:
        information: what its positions tell.
        estimator: heads or critics.
        weighting: what evidence for a class is weighted with.
        refine_steps: blocks and halves to remove, for what the decision loses at positions.
        alpha_steps: steps of alpha's refinement.
        classes: whether evidence for all classes is asked for.
        joined: whether the layers are combined before evidence is weighted.
    """

    information: Information
    estimator: Estimator
    weighting: Weighting = "none"
    refine_steps: int = 0
    alpha_steps: int = 0
    classes: bool = False
    joined: bool = False

    def __post_init__(self) -> None:
        check_choice("information", self.information, Information)
        check_choice("estimator", self.estimator, Estimator)
        check_choice("weighting", self.weighting, Weighting)
        for name in ("refine_steps", "alpha_steps"):
            whole(name, getattr(self, name), 0)

    @classmethod
    def of_class(
        cls, structure: Structure, target: bool, information: Information, estimator: Estimator,
        weighting: Weighting | None, refine_steps: int, alpha_steps: int, joined: bool,
    ) -> Question:
        """Ask for maps of a class, or for the expectation over classes without a target.

        Args:
            structure: what was found in the model.
            target: whether there is a target.
            information: see :class:`Question`.
            estimator: see :class:`Question`.
            weighting: ``None``: of evidence for a class the posterior, of anything else none.
            refine_steps: see :class:`Question`.
            alpha_steps: see :class:`Question`.
            joined: see :class:`Question`.

        Raises:
            ValueError: for an unknown choice, or one that needs something else.
        """
        weighable = target and estimator == "variational" and structure.position_axes > 0
        if weighting is None:
            weighting = "posterior" if weighable else "none"
        question = cls(information, estimator, weighting, refine_steps, alpha_steps, joined=joined)
        got = (f"got estimator={estimator!r}, {'a' if target else 'no'} target and "
               f"{structure.position_axes} position axes")
        if weighting != "none" and not weighable:
            raise ValueError(
                f"weighting={weighting!r} needs the variational evidence for a class, at a layer "
                f"with positions; {got}"
            )
        if refine_steps and not (weighting == "posterior" and structure.has_shares):
            raise ValueError(
                "refine_steps measures what the prediction of a class loses at positions, for "
                "the variational evidence and weighting='posterior'; "
                f"{got}, weighting={weighting!r}"
                f"{'' if structure.has_shares else ' and a prediction without classes'}. "
                "alpha_steps refines an inferred alpha, for any map of x'"
            )
        return question

    @property
    def reads(self) -> tuple[Locals, ...]:
        """Whose features are read: redundant information is the difference of the two."""
        kinds: dict[Information, tuple[Locals, ...]] = {
            "general": ("clean",), "sufficient": ("noised",), "redundant": ("clean", "noised")}
        return kinds[self.information]
