"""The experiments in the order of the report. A new one is a module with a subclass of `Experiment`, listed here."""

from feathervlm.study.experiments.base import Experiment
from feathervlm.study.experiments.budgets import Budgets
from feathervlm.study.experiments.criteria import Criteria
from feathervlm.study.experiments.damage import Damage
from feathervlm.study.experiments.pictures import ExamplePictures
from feathervlm.study.experiments.places import Places
from feathervlm.study.experiments.survival import Survival

EXPERIMENTS: tuple[Experiment, ...] = (Damage(), Places(), Survival(), Criteria(), Budgets(), ExamplePictures())

__all__ = ["EXPERIMENTS", "Experiment"]
