"""A stranger's config.json, read strictly: a key is understood, known to be harmless, or refused.

A key that is silently ignored is a model that is silently another one (`logit_scale`,
`partial_rotary_factor`, ...). So a family reads what it understands through `HfConfig`, and what is
left over at the end must be on the list of keys that change no number of a forward pass.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from typing import Any

from moejax.config import ConfigError
from moejax.interop.safetensors import shown
from moejax.models.config import ModelConfig
from moejax.models.rope import Llama3Rope, Yarn

HARMLESS = frozenset({
    # identity, files and software
    "model_type", "architectures", "_name_or_path", "transformers_version", "auto_map",
    "torch_dtype", "dtype", "_attn_implementation_autoset", "transformers.js_config",
    "is_llama_config",
    # tokens
    "bos_token_id", "eos_token_id", "pad_token_id", "unk_token_id", "sep_token_id",
    "decoder_start_token_id",
    # training only
    "initializer_range", "attention_dropout", "router_aux_loss_coef", "aux_loss_alpha", "seq_aux",
    "router_jitter_noise", "output_router_logits",
    # serving and parallel training
    "use_cache", "pretraining_tp", "ep_size", "output_attentions", "output_hidden_states",
    "return_dict", "chunk_size_feed_forward", "problem_type", "id2label", "label2id",
    "is_encoder_decoder", "qk_head_dim",
    # multi-token prediction: further layers, whose tensors are accounted for by name
    "num_nextn_predict_layers", "num_mtp_layers",
})  # fmt: skip
"""Keys that change no number of a forward pass."""

ACTIVATION = {
    "silu": "swiglu",
    "swish": "swiglu",
    "gelu_pytorch_tanh": "geglu",
    "gelu_new": "geglu",
}
"""`hidden_act` to our activation. Plain `gelu` is the error function's, which ours is not."""

MAX_SIZE = 1 << 31
MAX_LAYERS, MAX_EXPERTS = 1000, 10_000
"""Far above any model, and no more work than a moment."""


class HfConfig:
    """Typed access to a config that remembers what was asked for.

    Args:
      record: the parsed config.json.
      where: for messages.
      ignore: keys that the caller says are harmless, beside `HARMLESS`.
    """

    def __init__(
        self, record: Mapping[str, Any], where: str = "config.json", ignore: Collection[str] = ()
    ) -> None:
        self.record, self.where, self.ignore = record, where, frozenset(ignore)
        self._read: set[str] = set()
        unknown = sorted(self.ignore - set(record))
        if unknown:
            raise ConfigError(f"{where}: has no key {shown(unknown[0])} to ignore")

    def _value(self, key: str, default: Any) -> Any:
        self._read.add(key)
        value = self.record.get(key)
        return default if value is None else value

    def size(
        self, key: str, default: int | None = None, *, least: int = 1, most: int = MAX_SIZE
    ) -> int:
        """A whole number from `least` to `most`; null is the default.

        Raises:
          ConfigError: it is something else, or missing without a default.
        """
        value = self._value(key, default)
        if value is None:
            raise ConfigError(f"{self.where}: lacks {key}")
        if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
            raise ConfigError(
                f"{self.where}: {key}={shown(value)} is no whole number from {least} to {most}"
            )
        return value

    def number(self, key: str, default: float) -> float:
        """A finite number; null is the default."""
        return _number(self.where, key, self._value(key, default))

    def flag(self, key: str, default: bool) -> bool:
        """True or false; null is the default."""
        value = self._value(key, default)
        if not isinstance(value, bool):
            raise ConfigError(f"{self.where}: {key}={shown(value)} is neither true nor false")
        return value

    def sizes(self, key: str) -> tuple[int, ...]:
        """A list of whole numbers; missing or null: empty."""
        value = self._value(key, [])
        if not isinstance(value, list) or not all(
            isinstance(v, int) and not isinstance(v, bool) and 0 <= v < MAX_SIZE for v in value
        ):
            raise ConfigError(f"{self.where}: {key}={shown(value)} is no list of whole numbers")
        return tuple(value)

    def must_be(self, key: str, *allowed: Any, why: str) -> None:
        """Refuses a value that our models do not have; missing or null is fine.

        Raises:
          ConfigError: another value than one of `allowed`.
        """
        value = self._value(key, None)
        if value is not None and value not in allowed:
            nearest = f"; nearest valid value {allowed[0]!r}" if allowed else ""
            raise ConfigError(f"{self.where}: {key}={shown(value)}: {why}{nearest}")

    def activation(self) -> str:
        """Our name of `hidden_act`."""
        value = self._value("hidden_act", "silu")
        if not isinstance(value, str) or value not in ACTIVATION:
            raise ConfigError(
                f"{self.where}: hidden_act={shown(value)}: known: {', '.join(ACTIVATION)}"
            )
        return ACTIVATION[value]

    def max_seq_len(self, wanted: int | None, window: int | None = None) -> int:
        """The longest sequence: `wanted`, else `max_position_embeddings`.

        Args:
          window: sliding window of the attention, or None. Attention here has none, which is the
            same thing for sequences that fit into it.

        Raises:
          ConfigError: `wanted` is more than the model has; or the window is shorter.
        """
        own = self.size("max_position_embeddings", 4096)
        length = own if wanted is None else wanted
        if not 1 <= length <= own:
            raise ConfigError(
                f"max_seq_len={length}: the model has max_position_embeddings={own}; nearest valid "
                f"value {own}"
            )
        if window is not None and window < length:
            raise ConfigError(
                f"{self.where}: sliding_window={window} is shorter than the longest sequence "
                f"{length}: attention here has no window, which is the same model up to {window} "
                f"tokens; import it with --max_seq_len={window}"
            )
        return length

    def rope(
        self, *, latent: bool = False, theta: float = 10_000.0
    ) -> tuple[float, Yarn, Llama3Rope]:
        """Base and scaling of the rotary embedding, in transformers' newer style
        (`rope_parameters`) or the older one (`rope_theta`, `rope_scaling`).

        Args:
          latent: for MLA, whose scores grow by m(mscale_all_dim)^2; elsewhere they do not.
          theta: the base where the config has none.

        Raises:
          ConfigError: a kind of scaling, or a value, that our models do not have.
        """
        new, old = self._value("rope_parameters", {}), self._value("rope_scaling", {})
        base = self._value("rope_theta", theta)
        for key, value in (("rope_parameters", new), ("rope_scaling", old)):
            if not isinstance(value, dict):
                raise ConfigError(f"{self.where}: {key}={shown(value)} is no object")
        given = dict(new or old)
        theta = _number(self.where, "rope_theta", given.pop("rope_theta", base))
        if theta < 1:
            raise ConfigError(f"{self.where}: rope_theta={theta}: must be at least 1")
        self.must_be("partial_rotary_factor", 1, why="only whole heads are rotated here")
        if (partial := given.pop("partial_rotary_factor", 1)) != 1:
            raise ConfigError(
                f"{self.where}: partial_rotary_factor={shown(partial)}: only whole heads are "
                "rotated here"
            )
        named = {given.pop(key) for key in ("rope_type", "type") if isinstance(given.get(key), str)}
        kind = named.pop() if len(named) == 1 else "default"
        if named:
            raise ConfigError(f"{self.where}: rope_type and type contradict each other")
        if kind == "default":
            return theta, Yarn(), Llama3Rope()
        numbers = {
            key: _number(self.where, f"rope_scaling.{key}", value)
            for key, value in given.items()
            if value is not None and not isinstance(value, bool)
        }
        for key, value in given.items():
            if isinstance(value, bool) and (key, value) != ("truncate", True):
                raise ConfigError(
                    f"{self.where}: rope_scaling.{shown(key)[1:-1]}={value}: is not known"
                )
        if kind == "yarn":
            return theta, self._yarn(numbers, latent), Llama3Rope()
        if kind == "llama3" and not latent:
            return theta, Yarn(), self._llama3(numbers)
        raise ConfigError(
            f"{self.where}: rope_type={shown(kind)}: known: default, yarn"
            + ("" if latent else ", llama3")
        )

    def _yarn(self, numbers: dict[str, float], latent: bool) -> Yarn:
        original = numbers.pop("original_max_position_embeddings", 0.0)
        own = self.size("max_position_embeddings", 4096)
        original = original or float(own)
        factor = numbers.pop("factor", 0.0) or own / original
        mscale, all_dim = numbers.pop("mscale", 0.0), numbers.pop("mscale_all_dim", 0.0)
        if all_dim and not mscale:
            raise ConfigError(
                f"{self.where}: rope_scaling.mscale_all_dim={all_dim} without mscale is read in "
                "two ways by others; add mscale"
            )
        if all_dim and not latent:
            raise ConfigError(
                f"{self.where}: rope_scaling.mscale_all_dim={all_dim}: only the scores of latent "
                "attention grow by it; nearest valid value 0"
            )
        yarn = Yarn(
            factor=factor,
            original_max_position=int(original),
            beta_fast=numbers.pop("beta_fast", 0.0) or 32.0,
            beta_slow=numbers.pop("beta_slow", 0.0) or 1.0,
            # transformers looks at mscale only where both are given.
            mscale=mscale if all_dim else 1.0,
            mscale_all_dim=all_dim,
        )
        grown = numbers.pop("attention_factor", yarn.amplitude)
        if not math.isclose(grown, yarn.amplitude, rel_tol=1e-6):
            raise ConfigError(
                f"{self.where}: rope_scaling.attention_factor={grown}: must follow from the "
                f"factor; nearest valid value {yarn.amplitude}"
            )
        self._nothing_left("rope_scaling", numbers)
        return yarn

    def _llama3(self, numbers: dict[str, float]) -> Llama3Rope:
        own = Llama3Rope()
        rope = Llama3Rope(
            factor=numbers.pop("factor", 1.0),
            low_freq_factor=numbers.pop("low_freq_factor", own.low_freq_factor),
            high_freq_factor=numbers.pop("high_freq_factor", own.high_freq_factor),
            original_max_position=int(
                numbers.pop("original_max_position_embeddings", own.original_max_position)
            ),
        )
        self._nothing_left("rope_scaling", numbers)
        return rope

    def _nothing_left(self, key: str, numbers: dict[str, float]) -> None:
        if numbers:
            raise ConfigError(f"{self.where}: {key}.{shown(min(numbers))[1:-1]}: is not known here")

    def finish(self) -> None:
        """Refuses what was neither asked for nor is known to be harmless.

        Raises:
          ConfigError: names up to five such keys.
        """
        self.must_be("quantization_config", why="quantised weights are not read")
        left = sorted(set(self.record) - self._read - HARMLESS - self.ignore)
        if left:
            names = ", ".join(shown(name)[1:-1] for name in left[:5])
            more = f" and {len(left) - 5} more" if len(left) > 5 else ""
            raise ConfigError(
                f"{self.where}: {names}{more}: not understood, and could change the model; if not, "
                f"say so with --ignore={','.join(shown(name)[1:-1] for name in left[:5])}"
            )


def rope_record(theta: float, yarn: Yarn, llama3: Llama3Rope) -> dict[str, Any]:
    """`rope_parameters` of a config.json; the inverse of `HfConfig.rope`."""
    record: dict[str, Any] = {"rope_theta": theta, "rope_type": "default"}
    if yarn.factor > 1:
        record |= {
            "rope_type": "yarn",
            "factor": yarn.factor,
            "original_max_position_embeddings": yarn.original_max_position,
            "beta_fast": yarn.beta_fast,
            "beta_slow": yarn.beta_slow,
        }
        if yarn.mscale_all_dim:
            record |= {"mscale": yarn.mscale, "mscale_all_dim": yarn.mscale_all_dim}
    if llama3.factor > 1:
        record |= {
            "rope_type": "llama3",
            "factor": llama3.factor,
            "low_freq_factor": llama3.low_freq_factor,
            "high_freq_factor": llama3.high_freq_factor,
            "original_max_position_embeddings": llama3.original_max_position,
        }
    return record


def common_record(model: ModelConfig) -> dict[str, Any]:
    """Keys that all families write alike."""
    activations = {"swiglu": "silu", "geglu": "gelu_pytorch_tanh"}
    return {
        "hidden_act": activations.get(model.activation, model.activation),
        "hidden_size": model.d_model,
        "max_position_embeddings": model.max_seq_len,
        "num_hidden_layers": model.num_layers,
        "rms_norm_eps": model.norm_eps,
        "tie_word_embeddings": model.tied_embeddings,
        "vocab_size": model.vocab_size,
    }


def _number(where: str, key: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ConfigError(f"{where}: {key}={shown(value)} is no finite number")
    return float(value)
