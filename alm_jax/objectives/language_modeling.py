"""Language modelling after audio: the next token of an answer, given the audio, the prompt and the tokens before it.

Captioning (ClapCap, arXiv 2309.05767), and audio questions and instructions in general (Pengi, arXiv 2305.11834; LTU,
2305.10790; Qwen-Audio and Qwen2-Audio, 2311.07919 and 2407.10759): the survey's L_lm (2501.15177). `data.prompt` is the
prompt of a batch.
"""

import dataclasses
import functools
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from alm_jax import batch as contract
from alm_jax.encoders import tower
from alm_jax.encoders.text.bart import BartConfig
from alm_jax.encoders.text.gpt2 import Gpt2Config
from alm_jax.errors import UserError
from alm_jax.figures import Figure
from alm_jax.losses.language_modeling import token_loss
from alm_jax.models import two_heads
from alm_jax.models.capabilities import TextTokens
from alm_jax.models.generated import Generated, without_end
from alm_jax.models.generation import GREEDY, Strategy, generate
from alm_jax.models.two_heads import Prompts, TwoHeadsConfig, encode_audio, open_answers, predict
from alm_jax.nn.language_model import head_kernel, project
from alm_jax.objectives.microbatches import check_microbatches
from alm_jax.objectives.objective import LOSS, DataFacts, Inputs, Loss, Objective, ObjectiveConfig
from alm_jax.objectives.recordings import Clips, WaveformAugmentConfig, one_clip
from alm_jax.types import Metrics, Params


@dataclasses.dataclass(frozen=True, kw_only=True)
class LanguageModelingConfig(ObjectiveConfig):
    """Two heads, trained to write the answers."""

    model: TwoHeadsConfig
    """Front-end, audio tower, connector and language model."""
    loss_on: Literal["answer", "all"] = "answer"
    """Tokens that are predicted: those of the answer, or also those of the prompt (LTU); audio is never predicted."""
    label_smoothing: float = 0.0
    """Label smoothing: fraction of the target that is spread evenly over the vocabulary."""
    z_loss: float = 0.0
    """Weight of the z-loss, the squared log-sum-exp of the logits."""
    augment: WaveformAugmentConfig = WaveformAugmentConfig()
    """Waveform augmentation; SpecAugment belongs to the audio tower."""

    def __post_init__(self) -> None:
        if self.loss_on == "all" and self.model.has_encoder:
            raise UserError(
                f"loss_on is 'all', and {type(self.model.language_model).__name__} reads the prompt with its encoder, "
                "which predicts nothing: use 'answer'"
            )
        if not 0 <= self.label_smoothing < 1 or self.z_loss < 0:
            raise UserError(
                f"label_smoothing is {self.label_smoothing} and z_loss {self.z_loss}: expected a share from 0 to below "
                "1, and a weight that is not negative"
            )

    @property
    def num_words(self) -> int:
        """Tokens of texts that the model has entries for."""
        return self.model.language_model.vocab_size

    @property
    def follows_batch(self) -> bool:
        """Whether a step of shorter recordings computes less."""
        return tower.follows_batch(self.model.audio, self.model.frontend, self.model.padding)

    def build(self) -> Objective:
        """The objective as pure functions."""
        return build_language_modeling(self)


class States(NamedTuple):
    """What predicts tokens."""

    states: Float[Array, "B K D"]
    counts: Bool[Array, "B K"]
    """True where a prediction counts."""


class Rows(NamedTuple):
    """Rows of the objective's inputs."""

    clips: Clips
    prompts: Prompts
    answer_ids: Int[Array, "B L"]
    answer_mask: Bool[Array, "B L"]


def read_prompts(batch: dict[str, Any]) -> Prompts:
    """A batch's prompts. Raises UserError where it has none."""
    if contract.PROMPT_IDS not in batch:
        raise UserError(
            "the batches have no prompts, which language modelling puts before its answers: set data.prompt "
            "(PromptConfig(template='plain') for none but the audio)"
        )
    return Prompts(batch[contract.PROMPT_IDS], batch[contract.PROMPT_MASK], batch[contract.AUDIO_POSITION])


FIGURES = (
    LOSS,
    Figure(
        name="token_accuracy",
        label="right tokens, the ones before given",
        panel="What is written of held-out clips",
        is_share=True,
        is_higher_better=True,
        is_shown=True,
    ),
)
"""What training records, and what `measure_tokens` measures."""


@functools.partial(
    jax.jit, static_argnums=0, static_argnames=("num_new_tokens", "end_id", "pad_id", "strategy")
)
def write_answers(
    config: TwoHeadsConfig,
    variables: dict[str, Any],
    batch: dict[str, Array],
    *,
    num_new_tokens: int,
    end_id: int,
    pad_id: int,
    strategy: Strategy = GREEDY,
    key: Array | None = None,
) -> Generated:
    """What the model answers each row of a batch; the batch's own answers are not read.

    The likeliest word, one after the other, or as ``strategy`` says, which may draw by ``key``.
    """
    clips = one_clip(config.frontend, batch, padding=config.padding)
    encoded, _ = encode_audio(config, variables, clips.features, clips.frame_mask)
    opening = open_answers(config, variables, encoded, read_prompts(batch))
    return generate(
        *opening[:5],
        num_new_tokens=num_new_tokens,
        end_id=end_id,
        pad_id=pad_id,
        strategy=strategy,
        key=key,
        dtype=config.compute_dtype,
        **opening.options,
    )


@functools.partial(jax.jit, static_argnums=0)
def measure_tokens(
    config: TwoHeadsConfig, variables: dict[str, Any], batch: dict[str, Array]
) -> dict[str, Loss]:
    """Share of the answers' tokens that are the likeliest after those before them, which are given."""
    clips = one_clip(config.frontend, batch, padding=config.padding)
    encoded, _ = encode_audio(config, variables, clips.features, clips.frame_mask)
    predicted = predict(
        config, variables, encoded, read_prompts(batch), batch[contract.TEXT_IDS], batch[contract.TEXT_MASK]
    )
    kernel, tied = head_kernel(config.language_model, variables["params"]["language_model"])
    # Row by row, so that the logits of a batch are never there at once.
    likeliest = jax.lax.map(
        lambda states: jnp.argmax(project(states, kernel, tied=tied), axis=-1), predicted.states
    )
    counts = predicted.mask & batch[contract.MASK][:, None]
    right = counts & (likeliest == predicted.labels)
    return {"token_accuracy": Loss(jnp.sum(right, dtype=jnp.float32), jnp.sum(counts, dtype=jnp.float32))}


@dataclasses.dataclass(frozen=True)
class TwoHeads:
    """What two heads can do: answer the batch's prompts."""

    config: TwoHeadsConfig

    @functools.partial(jax.jit, static_argnums=(0, 3), static_argnames=("tokens", "num_new_tokens"))
    def generate_text(
        self, variables: dict[str, Any], batch: dict[str, Array], tokens: TextTokens, *, num_new_tokens: int
    ) -> Generated:
        """The answer to each row's prompt; the batch's own answers are not read."""
        end_id = tokens.end[0]
        written = write_answers(
            self.config,
            variables,
            batch,
            num_new_tokens=num_new_tokens,
            end_id=end_id,
            pad_id=tokens.pad_id,
        )
        return without_end(written, end_id)


def build_language_modeling(config: LanguageModelingConfig) -> Objective:
    """The objective as pure functions."""
    model = config.model

    def prepare(batch: dict[str, Any], key: Any, *, train: bool) -> Inputs:
        prompts = read_prompts(batch)
        clips = one_clip(
            model.frontend,
            batch,
            padding=model.padding,
            train=train,
            key=key,
            augment=config.augment,
            follows_batch=config.follows_batch,
        )
        moments = None
        if train:
            moments = tower.batch_moments(model.audio, clips.features, batch[contract.MASK])
        rows = Rows(clips, prompts, batch[contract.TEXT_IDS], batch[contract.TEXT_MASK])
        return Inputs(rows, moments)

    def encode(variables: dict[str, Any], inputs: Inputs, key: Any, *, train: bool) -> tuple[States, Params]:
        """States of the tokens that count, each row by itself: no logits yet, which would be the most of all."""
        rows: Rows = inputs.rows
        key = key if train else None
        encoded, batch_stats = two_heads.encode_audio(
            model,
            variables,
            rows.clips.features,
            rows.clips.frame_mask,
            train=train,
            key=key,
            moments=inputs.shared,
        )
        predicted = two_heads.predict(
            model,
            variables,
            encoded,
            rows.prompts,
            rows.answer_ids,
            rows.answer_mask,
            loss_on=config.loss_on,
            train=train,
            key=key,
        )
        return States(predicted.states, predicted.mask), batch_stats

    def combine(params: Params, outputs: States, batch: dict[str, Any], key: Any) -> tuple[Loss, Metrics]:
        """The loss over the vocabulary, which is projected onto here, in blocks and cut over the mesh."""
        kernel, tied = head_kernel(model.language_model, params["language_model"])
        labels = two_heads.labels_of(read_prompts(batch), batch[contract.TEXT_IDS], config.loss_on)
        loss = token_loss(
            outputs.states,
            kernel,
            labels,
            mask=outputs.counts & batch[contract.MASK][:, None],
            tied=tied,
            label_smoothing=config.label_smoothing,
            z_loss=config.z_loss,
        )
        return Loss(*loss), {}

    def check(facts: DataFacts) -> None:
        check_microbatches(model.audio, facts.num_microbatches)
        language_model, num_prompt = model.language_model, facts.prompt_length
        if num_prompt is None:
            raise UserError(
                "data.prompt is not set, and language modelling puts a prompt before its answers: say what is asked, "
                "PromptConfig(template='plain') for nothing but the audio"
            )
        if facts.vocab_size > language_model.vocab_size:
            raise UserError(
                f"the tokenizer has {facts.vocab_size} tokens, the language model "
                f"{language_model.vocab_size}: raise objective.model.language_model.vocab_size or lower "
                "data.tokenizer.vocab_size"
            )
        # Other families compute positions, and longer texts with them.
        if isinstance(language_model, Gpt2Config | BartConfig):
            num_vectors = two_heads.count_vectors(model)
            total = num_vectors + num_prompt + (0 if model.has_encoder else facts.max_length)
            if total > language_model.max_positions:
                raise UserError(
                    f"audio ({num_vectors} vectors), prompt (up to {num_prompt} tokens) and answer (up to "
                    f"{facts.max_length}) are more than objective.model.language_model.max_positions "
                    f"{language_model.max_positions}: raise it, or lower data.prompt.max_length, "
                    "data.tokenizer.max_length or what the connector makes of a clip"
                )

    return Objective(
        init=lambda key: two_heads.TWO_HEADS.init(model, key),
        axes=lambda: two_heads.TWO_HEADS.axes(model),
        prepare=prepare,
        encode=encode,
        combine=combine,
        project=lambda params: params,
        check=check,
        figures=FIGURES,
        # The statistics of a batch couple its rows.
        pmap="none" if tower.takes(model.audio, "moments") else "rows",
        capabilities=lambda tokens: TwoHeads(model),
        measure=functools.partial(measure_tokens, model),
    )
