"""The options of training a new task."""

from dataclasses import dataclass

from polyvec.train.row_formats import CONTRAST, RowFormat

NONE, BEST = "none", "best"
"""Reserved names: the encoder without an adapter, and the task that scores best."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """Options of a new task."""

    task: str
    """Name of the new task, for `encode(task=...)`. Retrieval makes NAME.query and NAME.passage."""

    kind: str
    """Format of the rows: one of `ROW_FORMATS` (`polyvec.train.row_formats`)."""

    prompt: str | None = None
    """An instruction that comes before every text of the task, in training and in use; None for
    none, and for retrieval for that of the model's own passages."""

    query_prompt: str | None = None
    """The instruction of queries, for retrieval; None for that of the model's own queries."""

    update: bool = False
    """Whether the model has the task already, whose adapter is trained further."""

    start: str = BEST
    """Task whose adapter the new adapter starts as a copy of. "none" starts from zero, and "best"
    starts from whichever of these scores best on a sample of the rows."""

    rank: int | None = None
    """Rank of the new adapter, by default that of the model's adapters."""

    loss: str = CONTRAST
    """Loss of pairs: one of `LOSSES`. All but the first need a teacher's scores."""

    teacher_scale: float = 1.0
    """Factor of a teacher's scores: 1 for the logits of a cross-encoder, 20 for cosines."""

    epochs: int = 6
    """Number of times that training uses every row."""

    patience: int = 3
    """Training ends after this many epochs in a row without a better score. With 0, it never ends
    early."""

    batch_size: int = 32
    """Rows per step."""

    learning_rate: float = 5e-3
    """Peak learning rate of AdamW, and of Adagrad for the token table's part of the adapter."""

    max_tokens: int = 256
    """Maximum tokens of a text in training. Longer texts are cut."""

    held: float = 0.2
    """Fraction of the rows in a fold. With 0, nothing is scored and the last checkpoint is used."""

    folds: int = 5
    """Number of folds that are held out at most, one after another."""

    seed: int = 0
    """Seed for the folds, the order of rows, and the adapter's initial weights."""

    device: str = "auto"
    """Device that trains: cpu, cuda or cuda:1; auto is cuda if there is a GPU."""

    text_column: str | None = None
    """Name of the column with the texts, or with the positives of pairs, if it is another one."""

    label_column: str | None = None
    """Name of the column with the labels or scores, if it is another one."""

    query_column: str | None = None
    """Name of the column with the queries of pairs, if it is another one."""

    tensorboard: bool = False
    """Whether to write the metrics for TensorBoard, too."""

    wandb: bool = False
    """Whether to send the metrics to Weights & Biases, too."""

    full: bool = False
    """Whether all weights are trained. The new model then has only the new task, and no heads."""

    def aliases(self, row_format: RowFormat) -> dict[str, str]:
        """The names that columns of a row format have in the data, where they differ.

        Raises ValueError for the name of a column that the format does not have.
        """
        aliases = {}
        for role in ("text", "label", "query"):
            name = getattr(self, f"{role}_column")
            if name is not None and role not in row_format.roles:
                raise ValueError(f"rows of the kind {self.kind} have no --{role}-column")
            if name is not None:
                aliases[row_format.roles[role]] = name
        return aliases
