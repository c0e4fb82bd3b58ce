"""The figures of the report, in reading order.

A figure is one small file here with `build(evidence: Evidence) -> Figure`, and one line below.
Those in `traced` are measured on traces, those in `tuned` are of fine-tuned runs.
"""

from __future__ import annotations

from collections.abc import Callable

from moejax.analysis.evidence import Evidence
from moejax.analysis.figures import (
    contours,
    domains,
    forest,
    frequency,
    imbalance,
    interventions,
    isoflop_valleys,
    layers,
    load,
    loss,
    masks,
    parallel,
    pareto,
    pruning,
    scaling_law,
    seed_bands,
    token_class,
)
from moejax.analysis.figures.base import Figure
from moejax.analysis.figures.traced import (
    activation,
    coactivation,
    confidence,
    difficulty,
    distribution,
    families,
    language,
    languages,
    lineage,
    paths,
    position,
    probability,
    relations,
    specialisation,
    speech,
    stability,
    token_loss,
    vocabulary,
    words,
)
from moejax.analysis.figures.tuned import curves, experts, outcomes, spectrum

FIGURES: tuple[Callable[[Evidence], Figure], ...] = (
    loss.build,
    seed_bands.build,
    forest.build,
    pareto.build,
    parallel.build,
    scaling_law.build,
    isoflop_valleys.build,
    contours.build,
    layers.build,
    load.build,
    imbalance.build,
    distribution.build,
    token_class.build,
    frequency.build,
    domains.build,
    position.build,
    token_loss.build,
    speech.build,
    difficulty.build,
    language.build,
    confidence.build,
    probability.build,
    stability.build,
    coactivation.build,
    specialisation.build,
    vocabulary.build,
    relations.build,
    languages.build,
    activation.build,
    families.build,
    lineage.build,
    paths.build,
    interventions.build,
    pruning.build,
    masks.build,
    outcomes.build,
    curves.by_share,
    curves.by_granularity,
    experts.build,
    spectrum.build,
    words.build,
)
