"""Routing metrics: pure functions of arrays, one question per file. No files, no figures, no jax.

Axis letters: `L` MoE layers, `T` tokens, `K` slots of a token, `E` experts, `G` groups or labels,
`R` rows of a table, `Q` quantiles. What a routing table is, and the rules below, are in `tables`:

* `expert_LTK` (integers) are the experts that tokens chose, best first. An id outside `[0, E)`, or
  of an expert that its layer lacks (`mask_LE` False), is an empty slot. A token names an expert at
  most once. For first choices only, pass `expert_LTK[:, :, :1]`.
* What is undefined (no token, no expert, one label) is NaN, never an exception and never a 0.
* Tokens of one text are not independent draws: intervals and permutations take sequences for the
  unit wherever the caller says which token belongs to which (`sequence_T`).
* A metric that is not 0 for a router that ignores its input comes with its chance level.

load            how even the experts' work is            (counts)
compute         experts, width, parameters, FLOPs        (per token)
confidence      what the router's distribution says      (per token)
grouped         any per-token quantity by any label: mean, interval, quantiles
stability       the same tokens at two checkpoints: saturation, churn
reuse           the same text one token later
coactivation    which experts serve the same token
specialisation  which labels (domains, languages, classes) use which experts
vocabulary      how far a token id fixes the expert
information     mutual information of a label and an expert, bias-corrected
frequency       how often languages use experts: shared and specific ones, families
divergence      Jensen-Shannon divergence of languages (or any labels) from a reference
paths           from layer to layer
pairs           experts of two tables that meet in a token (shared by the next ones)
matching        which expert of one run is which of another
similarity      cosines of gates and of expert weights
correlation     Spearman: width against frequency or difficulty
"""
