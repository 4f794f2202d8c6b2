"""What maps are asked for."""

from __future__ import annotations

from dataclasses import dataclass
from numbers import Integral
from typing import Literal

from captum_mi.choices import check_choice
from captum_mi.probing.structure import Structure

__all__ = ["Estimator", "Information", "Question", "Read", "Weighting"]

Information = Literal["sufficient", "general", "redundant"]
Estimator = Literal["variational", "infomax"]
Weighting = Literal["shares", "posterior", "none"]

#: What is read off one kind of features: noised or clean ones.
Read = Literal["sufficient", "general"]


@dataclass(frozen=True)
class Question:
    """What is asked of a batch.

    Attributes:
        information: what its positions tell.
        estimator: heads or critics.
        weighting: what evidence for a class is weighted with.
        refine_steps: blocks and halves to remove for shares; else steps of alpha's refinement.
        classes: whether evidence for all classes is asked for.
        joined: whether the layers are combined before evidence is weighted.
    """

    information: Information
    estimator: Estimator
    weighting: Weighting = "none"
    refine_steps: int = 0
    classes: bool = False
    joined: bool = False

    def __post_init__(self) -> None:
        check_choice("information", self.information, Information)
        check_choice("estimator", self.estimator, Estimator)
        if not isinstance(self.refine_steps, Integral) or self.refine_steps < 0:
            raise ValueError(f"refine_steps must be an integer >= 0; got {self.refine_steps!r}")

    @classmethod
    def of_class(
        cls, structure: Structure, target: bool, information: Information, estimator: Estimator,
        weighting: Weighting | None, refine_steps: int, joined: bool,
    ) -> Question:
        """Ask for maps of a class, or for the expectation over classes without a target.

        Args:
            structure: what was found in the model.
            target: whether there is a target.
            information: see :class:`Question`.
            estimator: see :class:`Question`.
            weighting: ``None``: of evidence for a class shares where they are measured, else the
                posterior; of anything else none.
            refine_steps: see :class:`Question`.
            joined: see :class:`Question`.

        Raises:
            ValueError: for an unknown choice, or a weighting that needs something else.
        """
        plain = cls(information, estimator, refine_steps=refine_steps)
        weights = target and estimator == "variational" and structure.position_axes > 0
        shares = bool(refine_steps) and structure.has_shares
        if weighting is None:
            weighting = "none" if not weights else "shares" if shares else "posterior"
        check_choice("weighting", weighting, Weighting)
        if weighting == "none":
            return plain
        if not weights:
            raise ValueError(
                f"weighting={weighting!r} needs the variational evidence for a class, at a layer "
                f"with positions; got estimator={estimator!r}, {'a' if target else 'no'} target "
                f"and {structure.position_axes} position axes"
            )
        if weighting == "shares" and not shares:
            raise ValueError(
                "weighting='shares' needs a prediction of classes and forward passes to measure "
                f"with, such as refine_steps=9; got refine_steps={refine_steps}"
                f"{'' if structure.has_shares else ' and a prediction without classes'}"
            )
        return cls(information, estimator, weighting, refine_steps, joined=joined)

    @property
    def reads(self) -> tuple[Read, ...]:
        """What is read: redundant information is the difference of the other two."""
        if self.information == "redundant":
            return "general", "sufficient"
        return (self.information,)

    @property
    def refines_alpha(self) -> bool:
        """Whether alpha is refined for each example."""
        return self.refine_steps > 0 and self.weighting != "shares"
