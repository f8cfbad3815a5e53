"""What a model can do, as protocols: evaluators and commands ask for these and never for a model's type.

Every method is a deterministic pure function of the model's variables and a batch (`alm_jax.batch`).
The objects that implement them are small frozen dataclasses, so that they are static arguments of `jax.jit`.
"""

from typing import Any, NamedTuple, Protocol, runtime_checkable

from jaxtyping import Array, Bool, Float, Int

from alm_jax.models.generated import Generated


class TextTokens(NamedTuple):
    """The ids of a tokenizer that frame a text."""

    begin: tuple[int, ...]
    """Ids before every text; empty where the tokenizer adds none."""
    end: tuple[int, ...]
    """Ids after every text; empty where the tokenizer adds none."""
    pad_id: int
    """Id that fills rows after their text; any, since it is masked."""


class Reconstruction(NamedTuple):
    """What a model draws of some clips, as maps of the front-end's features."""

    features: Any
    """[B T F] float32, the input."""
    hidden: Any
    """[B T F] bool, True where the encoder saw nothing."""
    drawn: Any
    """[B T F] float32, the decoder's output in the units of the input, visible places too."""


class LabelMaps(NamedTuple):
    """The labels of the patches of some clips, on the grid of patches."""

    features: Any
    """[B T F] float32, the input; frames after the last whole patch are left out."""
    labels: Any
    """[B rows columns] int32, the label of each patch."""
    hidden: Any
    """[B rows columns] bool, True where the encoder sees nothing; None of a tokenizer alone."""
    predicted: Any
    """[B rows columns] int32, the likeliest label of each patch; None of a tokenizer alone."""


@runtime_checkable
class EmbedsAudio(Protocol):
    """Makes one vector of each recording, or several."""

    def embed_audio(
        self, variables: dict[str, Any], batch: dict[str, Array]
    ) -> Float[Array, "B E"] | Float[Array, "B K E"]:
        """The vectors of each recording, float32; ``batch`` needs ``audio`` and ``audio_num_samples``.

        Of a model that embeds texts too they are L2-normalised, and the similarity of a recording and a text is the
        largest product of one of the recording's K vectors with the text's.
        """


@runtime_checkable
class EmbedsText(Protocol):
    """Makes one vector of each text, in the space of the recordings' vectors."""

    def embed_text(
        self, variables: dict[str, Any], ids: Int[Array, "B L"], mask: Bool[Array, "B L"]
    ) -> Float[Array, "B E"]:
        """The L2-normalised vector of each text, float32."""


@runtime_checkable
class EmbedsFrames(Protocol):
    """Makes a vector of each stretch of time of a recording."""

    def embed_frames(
        self, variables: dict[str, Any], batch: dict[str, Array]
    ) -> tuple[Float[Array, "B T D"], Bool[Array, "B T"]]:
        """Vectors in the order of time, float32, and which of them are of real audio and not the one before
        them again."""


@runtime_checkable
class GeneratesText(Protocol):
    """Writes a text about each recording of a batch, after the batch's prompt where it has one."""

    def generate_text(
        self, variables: dict[str, Any], batch: dict[str, Array], tokens: TextTokens, *, num_new_tokens: int
    ) -> Generated:
        """The likeliest text by greedy choice, at most ``num_new_tokens`` long; the mask leaves ``tokens.end`` out.

        Ids that the tokenizer does not have are those of what else the model writes, such as units of audio.
        """


@runtime_checkable
class Reconstructs(Protocol):
    """Draws the parts of a recording that were hidden from it."""

    def reconstruct(self, variables: dict[str, Any], batch: dict[str, Array]) -> Reconstruction:
        """Input, mask and output of each recording, with the masks of the validation loss."""


@runtime_checkable
class Classifies(Protocol):
    """Scores each recording for each of its own classes."""

    def classify(self, variables: dict[str, Any], batch: dict[str, Array]) -> Float[Array, "B C"]:
        """The probability of each class of each recording."""


@runtime_checkable
class LabelsPatches(Protocol):
    """Gives each patch of a recording one of V labels."""

    def label_patches(self, variables: dict[str, Any], batch: dict[str, Array]) -> LabelMaps:
        """Input, labels and, where the model predicts them, masks and predictions of each recording."""

    def count_labels(self, variables: dict[str, Any], batch: dict[str, Array]) -> Int[Array, " V"]:
        """How often each label occurs among the patches of the real rows of a batch."""


class AudioStates(NamedTuple):
    """What a matching head reads of a recording."""

    states: Float[Array, "B N D"]
    mask: Bool[Array, "B N"]


@runtime_checkable
class MatchesPairs(Protocol):
    """Judges whether a text belongs to a recording by reading both together."""

    def encode_states(self, variables: dict[str, Any], batch: dict[str, Array]) -> AudioStates:
        """What `match` reads of each recording."""

    def match(
        self, variables: dict[str, Any], audio: AudioStates, ids: Int[Array, "B L"], mask: Bool[Array, "B L"]
    ) -> Float[Array, " B"]:
        """The logit that each text belongs to the recording in its row."""


@runtime_checkable
class EncodesUnits(Protocol):
    """Turns a recording into a sequence of discrete units."""

    @property
    def num_units(self) -> int:
        """How many different units there are."""

    def encode_units(
        self, variables: dict[str, Any], batch: dict[str, Array]
    ) -> tuple[Int[Array, "B N"], Bool[Array, "B N"]]:
        """The units of each recording in the order of time, and which of them are of real audio and not the one before
        them again."""
