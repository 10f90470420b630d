"""The sections of settings: frozen pydantic models with defaults, bounds, descriptions and flags, one for each part.

A field is the only place of a setting: ``docs/generate.py`` writes the commands' flags (``cli/options.py``) and the
pages' tables from it. A part takes its own section, as it would take options of any other kind; the settings of a whole
command stand in ``config/schema.py``. Options of an objective live with the objective; this file never names one.
"""

from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from kdcli.config.names import DATA, EVALUATION, FEDERATION, GRID, HARDWARE, MODELS, OUTPUT, TABLE, TRAINING

Positive = Annotated[int, Field(ge=1)]
Seed = Annotated[int, Field(ge=0, lt=2**63)]
Quantization = Literal["none", "int8", "nf4"]
EVERY = "*"
"""Every command, in :class:`Flag`."""


@dataclass(frozen=True)
class Flag:
    """How a setting is given on the command line; a field may have several, each for other commands.

    Args:
        spelling: ``--batch-size``, with a short form after a space; without dashes it is an argument.
        metavar: what stands for the value in the help.
        help: one line; the default is added to it.
        panel: heading of the help that it stands under.
        default: the default in words, where the field's own says nothing; empty to leave it unsaid.
        on: commands that have it, with spaces between; those whose settings hold the field if not given.
        hidden: commands that have it and leave it out of their help.
        repeat: whether it may be given several times.
    """

    spelling: str
    metavar: str
    help: str
    panel: str
    default: str | None = None
    on: str = EVERY
    hidden: str = ""
    repeat: bool = False

    @property
    def name(self) -> str:
        """The flag as a parameter's name.

        >>> Flag("--output -o", "FOLDER", "Folder.", OUTPUT).name
        'output'
        """
        return self.spelling.split()[0].removeprefix("--").replace("-", "_")

    @property
    def positional(self) -> bool:
        """Whether it is an argument, given without dashes."""
        return not self.spelling.startswith("-")

    def of(self, command: str) -> bool:
        """Whether a command has it."""
        return self.on == EVERY or command in self.on.split()

    def hidden_in(self, command: str) -> bool:
        """Whether a command's help leaves it out."""
        return self.hidden == EVERY or command in self.hidden.split()


@dataclass(frozen=True)
class FromText:
    """How a setting is read from text.

    Args:
        path: ``~`` and ``$NAME`` are replaced.
        spaced: a list is split at spaces and not at commas, which its items may hold.
    """

    path: bool = False
    spaced: bool = False


FilePath = Annotated[str | None, FromText(path=True)]
Spaced = Annotated[tuple[str, ...], FromText(spaced=True)]


def setting(default: Any, description: str, *flags: Flag, **bounds: Any) -> Any:
    """Return the field of a setting that has flags.

    Args:
        default: its default.
        description: what it is, for the table of all settings.
        flags: its flags; of several that a command has, the last one holds.
        bounds: further arguments of ``pydantic.Field``.
    """
    return Field(default=default, description=description, json_schema_extra=dict[str, Any](flags=flags), **bounds)


class Settings(BaseModel):
    """Base of every section: immutable, and a key it does not know is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())


class DataConfig(Settings):
    """Where rows come from and how they become tokens."""

    train: FilePath = setting(
        None,
        "training rows: file, folder or hub id",
        Flag(
            "--data",
            "FILE",
            "Training rows: file, folder, hub id.",
            DATA,
            on="distill supernet compare cache doctor federate",
        ),
        Flag(
            "--data",
            "FILE",
            "Rows: file, folder, hub id.",
            DATA,
            on="data-score data-split data-balance data-rationales",
        ),
        Flag("data", "FILE", "Rows: file, folder, hub id.", DATA, on="data-check"),
        Flag("--data", "FILE", "Rows that scores and zeros are measured on.", DATA, on="student"),
        Flag("--data", "FILE", "Rows that the exported model is measured on.", DATA, on="export"),
        Flag("--data", "FILE", "Rows with prompts; their answers are not read.", DATA, on="generate"),
    )
    eval: FilePath = setting(
        None,
        "held-out rows, evaluated after training",
        Flag(
            "--eval-data", "FILE", "Held-out rows, measured after training.", DATA, on="distill supernet compare cache"
        ),
        Flag("--eval-data", "FILE", "Held-out rows, measured after every round.", DATA, on="federate"),
        Flag("--data", "FILE", "Rows to evaluate on, as for kd distill.", DATA, on="eval"),
        Flag("--eval-data", "FILE", "Held-out rows, for scores that read them.", DATA, on="data-score"),
    )
    columns: dict[str, str] = setting(
        {},
        "field=column pairs where names differ",
        Flag("--columns", "NAME=COL,..", "Names of your columns: prompt=question.", DATA),
        Flag("--columns", "SCORE,..", "Scores to show. Of rows: prompt=question.", TABLE, on="compare"),
    )
    template: str = setting(
        "auto",
        "auto, chat, alpaca, plain, or text holding {instruction}",
        Flag("--template", "NAME", "auto, chat, alpaca, plain, or a text.", DATA, default="", hidden="compare"),
    )
    max_length: Positive = setting(
        512,
        "tokens of prompt and response together",
        Flag("--max-length", "N", "Tokens of a whole row.", DATA, hidden="compare"),
    )
    max_prompt_length: Positive | None = Field(default=None, description="drop rows with longer prompts")
    limit: Positive | None = setting(
        None,
        "use the first N training rows",
        Flag(
            "--limit",
            "N",
            "Use the first N rows.",
            DATA,
            on="distill supernet compare cache generate doctor federate data-check data-score data-split data-balance "
            "data-rationales",
            hidden="compare federate",
        ),
    )
    eval_limit: Positive | None = setting(
        None,
        "use the first N held-out rows",
        Flag(
            "--eval-limit",
            "N",
            "Use the first N held-out rows.",
            DATA,
            on="distill compare cache data-score federate",
            hidden="distill compare cache federate",
        ),
        Flag("--limit", "N", "Use the first N rows.", DATA, on="eval"),
    )
    skip_bad: bool = setting(
        False,
        "leave out rows that cannot be read instead of stopping",
        Flag("--skip-bad", "", "Leave out rows that cannot be read.", DATA, hidden="distill compare"),
    )
    dev: FilePath = setting(
        None,
        "development rows, to choose settings on; never trained on",
        Flag("--dev-data", "FILE", "Dev rows.", GRID, default="a tenth of the training rows", on="compare"),
        Flag("--dev-data", "FILE", "Rows to fit temperatures on.", DATA, on="eval"),
    )
    dev_share: Annotated[float, Field(ge=0, lt=1)] = Field(
        default=0.0, description="share of the training rows kept out of training as development rows"
    )
    corpus: str | None = Field(default=None, description="rows of a second corpus, for sources that read one")
    task: Literal["auto", "class", "text"] = setting(
        "auto",
        "class: rows are texts with labels, and the student is a classifier; text: it learns the text; "
        "auto: as the student is",
        Flag(
            "--task",
            "NAME",
            "class or text; auto: as the student is.",
            DATA,
            on="distill compare",
            hidden="distill compare",
        ),
    )
    class_prompt: str = Field(
        default="{text} Category:", description="what a causal teacher reads before the name of a class"
    )
    class_names: dict[str, str] = Field(
        default={}, description="label=words that a causal teacher's class is read by, where not the label itself"
    )
    class_score: Literal["sum", "mean"] = Field(
        default="sum", description="log-probability of a class's words for a causal teacher: sum, or mean over tokens"
    )
    teacher_text: str | None = Field(
        default=None, description="folder for text that the teacher generates once; default in the run or study folder"
    )


class TrainConfig(Settings):
    """How the student is trained."""

    epochs: Annotated[float, Field(gt=0, allow_inf_nan=False)] = setting(
        3.0,
        "passes over the rows",
        Flag("--epochs", "X", "Passes over the rows.", TRAINING),
        Flag("--epochs", "X", "Passes of a client over its rows, each round.", TRAINING, on="federate"),
    )
    max_steps: Positive | None = setting(
        None,
        "optimizer steps; overrides epochs",
        Flag("--max-steps", "N", "Optimizer steps; overrides --epochs.", TRAINING),
        Flag("--max-steps", "N", "Optimizer steps of a client, each round.", TRAINING, on="federate"),
    )
    batch_size: Positive = setting(
        8,
        "sequences per optimizer step over all devices",
        Flag("--batch-size", "N", "Sequences per optimizer step.", TRAINING),
    )
    micro_tokens: Positive = Field(default=4096, description="padded tokens per micro-batch and device")
    length_window: Positive = Field(default=16, description="steps within which rows are sorted by length")
    lr: Annotated[float, Field(gt=0, allow_inf_nan=False)] = setting(
        5e-4, "peak learning rate", Flag("--lr", "X", "Peak learning rate.", TRAINING)
    )
    schedule: Literal["cosine", "linear", "constant"] = Field(default="cosine", description="learning-rate schedule")
    warmup: Annotated[float, Field(ge=0, allow_inf_nan=False)] = Field(
        default=0.03, description="warm-up: a share of the steps below 1, else a number of steps"
    )
    weight_decay: Annotated[float, Field(ge=0, allow_inf_nan=False)] = Field(
        default=0.01, description="AdamW weight decay"
    )
    betas: tuple[Annotated[float, Field(ge=0, lt=1)], Annotated[float, Field(ge=0, lt=1)]] = Field(
        default=(0.9, 0.95), description="AdamW betas"
    )
    clip: Annotated[float, Field(gt=0)] = Field(default=1.0, description="gradient norm bound")
    seed: Seed = setting(
        0,
        "seed of order, initialisation and dropout",
        Flag("--seed", "N", "Seed: order, init, dropout.", TRAINING, on="distill supernet"),
        Flag("--seed", "N", "Seed: split, order, init, who takes part.", TRAINING, on="federate"),
    )
    reduce: Literal["token", "sequence"] = Field(
        default="token", description="mean over tokens, or over sequences' means"
    )
    gradient_checkpointing: bool = setting(
        False,
        "recompute trunk activations to save memory",
        Flag("--gradient-checkpointing", "", "Recompute activations to save memory.", TRAINING, on="distill"),
    )
    keep_zeros: bool = setting(
        False,
        "weights of the student's linear layers that are 0 at the start stay 0",
        Flag("--keep-zeros", "", "Weights that are 0 stay 0.", TRAINING, on="distill compare", hidden=EVERY),
    )
    chunk_tokens: Positive | None = Field(
        default=None, description="tokens whose logits exist at once; default by device"
    )
    save_every: Positive = Field(default=200, description="steps between checkpoints")
    keep: Positive = Field(default=2, description="checkpoints kept while a run is under way")
    keep_finished: bool = Field(default=False, description="keep the checkpoints of a run that is done, too")
    log_every: Positive = Field(default=10, description="steps between progress lines")
    report_to: tuple[str, ...] = setting(
        (),
        "trackers that accelerate knows: tensorboard, trackio, wandb, mlflow and others",
        Flag("--report-to", "NAME,..", "Trackers, such as wandb.", OUTPUT, on="distill compare", hidden=EVERY),
    )


class HardwareConfig(Settings):
    """Where the arithmetic happens."""

    device: Literal["auto", "cpu", "cuda", "mps"] = setting(
        "auto", "device", Flag("--device", "NAME", "auto, cpu, cuda, mps.", HARDWARE, hidden="compare")
    )
    dtype: Literal["auto", "fp32", "bf16", "fp16"] = setting(
        "auto",
        "fp32, or autocast to bf16",
        Flag("--dtype", "NAME", "auto, fp32, bf16, fp16.", HARDWARE, hidden="compare"),
    )
    threads: Positive | None = setting(
        None, "CPU threads; part of a run's identity", Flag("--threads", "N", "CPU threads.", HARDWARE, hidden=EVERY)
    )
    gpus: Positive = setting(
        1,
        "processes that train one run together: one GPU each, or a CPU's",
        Flag("--gpus", "N", "Processes, a GPU each.", HARDWARE, on="distill"),
        Flag("--gpus", "N", "GPUs of one run.", GRID, on="compare federate"),
    )
    shard: Literal["ddp", "fsdp2", "zero3"] = setting(
        "ddp",
        "ddp: every process holds all weights; fsdp2: weights, gradients, moments in shards; "
        "zero3: fsdp2 that also drops embeddings and head between forward and backward",
        Flag("--shard", "NAME", "ddp, or fsdp2, zero3: in shards.", HARDWARE, on="distill"),
    )
    wait: Annotated[float, Field(gt=0, le=1e7, allow_inf_nan=False)] = Field(
        default=1800.0, description="seconds one process waits for the others before it gives the run up"
    )
    compile: bool = Field(default=False, description="compile the layers of student and teacher for training steps")
    matmul_precision: Literal["highest", "high", "medium"] = setting(
        "highest",
        "fp32 matrix products; medium is faster where bf16 units exist",
        Flag("--matmul-precision", "NAME", "highest, high, medium.", HARDWARE, hidden=EVERY),
    )


class GenerationConfig(Settings):
    """How answers are sampled when texts are scored."""

    max_new_tokens: Positive = setting(
        128,
        "tokens per answer at most",
        Flag("--max-new-tokens", "N", "Tokens per answer at most.", EVALUATION, hidden="distill compare"),
    )
    temperature: Annotated[float, Field(ge=0, allow_inf_nan=False)] = Field(default=1.0, description="0 is greedy")
    top_p: Annotated[float, Field(gt=0, le=1)] = Field(default=1.0, description="nucleus mass")
    seeds: tuple[Seed, ...] = setting(
        (10, 20, 30, 40, 50),
        "sampling seeds, one answer each",
        Flag("--sampling-seeds", "N,N,..", "One answer a seed.", EVALUATION, hidden="distill compare"),
        min_length=1,
    )
    batch_tokens: Positive = Field(default=8192, description="prompt and answer tokens in one batch")


class EvalSettings(Settings):
    """What is measured on held-out rows."""

    metrics: tuple[str, ...] = setting(
        ("rougeL", "perplexity", "ece", "kl_to_teacher", "agreement"),
        "metric names",
        Flag("--metric", "NAME,..", "Metrics; see kd metrics list.", EVALUATION, default="", repeat=True),
        Flag("--metric", "NAME,..", "Metrics; see kd metrics list.", GRID, default="", on="compare", repeat=True),
    )
    split: Literal["test", "dev"] = Field(default="test", description="rows measured after training: held-out or dev")
    bins: Positive = Field(default=10, description="calibration bins")
    choice_score: Literal["sum", "mean"] = Field(
        default="sum", description="a choice's log-probability, or its mean over the choice's tokens"
    )
    protocol: str | None = setting(
        None,
        "minillm, greedy, or a YAML file; what is given besides wins over what it sets",
        Flag("--protocol", "NAME", "minillm, greedy or a YAML file; flags win over it.", EVALUATION, on="eval"),
    )
    rouge_tokenizer: Literal["words", "char"] = setting(
        "words",
        "what Rouge compares: runs of a-z and 0-9, or characters of any script",
        Flag("--rouge-tokenizer", "NAME", "words, or char for any script.", EVALUATION, on="eval"),
    )
    rouge_stemmer: Literal["porter", "none"] = Field(default="porter", description="stems of words before Rouge")
    length_unit: Literal["tokens", "words"] = Field(
        default="tokens", description="unit of the reference's length in scores by length"
    )
    exposure_lengths: tuple[Positive, ...] = Field(
        default=(), description="answer lengths to give exposure bias at, besides that of whole answers"
    )
    draft_tokens: Positive = Field(default=4, description="tokens the student drafts per teacher call")
    generation: GenerationConfig = GenerationConfig()


class LoraConfig(Settings):
    """A LoRA adapter: small matrices trained in place of the student's weights."""

    rank: Positive | None = setting(
        None,
        "rank; only the adapter trains. None trains all weights",
        Flag("--lora", "RANK", "Train a LoRA adapter only; merged when saved.", MODELS, hidden="compare"),
    )
    alpha: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = Field(
        default=None, description="the adapter is scaled by alpha / rank; default twice the rank"
    )
    dropout: Annotated[float, Field(ge=0, lt=1)] = Field(default=0.0, description="of the adapter's input")
    targets: tuple[str, ...] = Field(
        default=("all-linear",), min_length=1, description="linear layers by name, such as q_proj,v_proj"
    )
    keep: bool = Field(default=False, description="keep the adapter alone too, in adapter/ of the run folder")
    start: FilePath = Field(default=None, description="folder of an adapter to begin with; none begins with B = 0")
    freeze_a: bool = Field(default=False, description="train B alone; A stays as it was drawn")


class FederationConfig(Settings):
    """Clients that train on rows of their own, and a server that averages what they learnt."""

    clients: Annotated[int, Field(ge=1, le=10_000)] | None = setting(
        None,
        "number of clients; with column, as many as the column has values",
        Flag("--clients", "N", "Number of clients.", FEDERATION),
    )
    split: str = setting(
        "iid",
        "which client has which rows: iid, column:by=NAME or dirichlet:alpha=X,by=NAME",
        Flag("--split", "HOW", "iid, dirichlet:alpha=.3,by=NAME, column:by=NAME.", FEDERATION),
    )
    rounds: Annotated[int, Field(ge=1, le=9999)] = setting(
        10, "rounds in all; more may follow", Flag("--rounds", "N", "Rounds.", FEDERATION)
    )
    server: str = setting(
        "fedavg",
        "server optimizer: fedavg, fedavgm, fedadam or fedadamw, with its options",
        Flag("--server", "NAME", "fedavg, fedavgm, fedadam:eta=.03, fedadamw.", FEDERATION),
    )
    lora_mean: Literal["factors", "product", "freeze_a", "exact"] = setting(
        "factors",
        "mean of LoRA adapters: of A and B, of B A, of B alone, or of A and B with the rest in the frozen weights",
        Flag("--lora-mean", "NAME", "factors, product, freeze_a, exact.", FEDERATION),
    )
    weigh: Literal["rows", "tokens"] = setting(
        "rows",
        "what a client counts by: its rows, or the response tokens that it trained on in the round",
        Flag("--weigh", "NAME", "Clients count by rows or tokens.", FEDERATION),
    )
    fraction: Annotated[float, Field(gt=0, le=1)] = setting(
        1.0,
        "share of the clients that a round asks",
        Flag("--fraction", "X", "Share of the clients of a round.", FEDERATION),
    )
    drop: Annotated[float, Field(ge=0, lt=1)] = setting(
        0.0,
        "probability that a client asked does not return",
        Flag("--drop", "X", "Probability that a client is lost.", FEDERATION),
    )
    bandwidth: Annotated[float, Field(gt=0, le=1e9, allow_inf_nan=False)] | None = setting(
        None,
        "megabits per second of a client's link, for times of communication",
        Flag("--bandwidth", "MBPS", "Megabits per second of a client's link.", FEDERATION),
    )
    keep: Positive = Field(default=2, description="rounds whose models and runs of clients are kept")
    without_failed: bool = Field(
        default=False,
        description="go on without a client whose run fails for whatever reason, not only for its numbers",
    )


class MonitorConfig(Settings):
    """What is measured while a student is trained; no weight depends on it, but for an early end."""

    every: Positive | None = setting(
        None,
        "steps between evaluations while training; none without",
        Flag("--eval-every", "N", "Steps between evaluations; best/ is kept.", TRAINING),
    )
    rows: Positive = Field(default=64, description="rows of the fixed sample: of the dev rows, else of those held out")
    metrics: tuple[str, ...] = Field(default=("perplexity",), min_length=1, description="metrics of texts or tokens")
    by: str | None = Field(default=None, description="score that says which student is best; default the first one")
    patience: Positive | None = Field(
        default=None, description="end training after so many evaluations without a better score"
    )


class ServerConfig(Settings):
    """A server with the OpenAI protocol, such as vLLM."""

    url: str | None = setting(
        None,
        "address, as in http://localhost:8000/v1",
        Flag("--server-url", "URL", "Ask a server, as http://localhost:8000/v1.", MODELS, on="eval judge"),
    )
    model: str | None = setting(
        None,
        "model's name on the server; default the only one it has",
        Flag("--server-model", "NAME", "Its model.", MODELS, default="the only one it has", on="eval judge"),
    )
    send: Literal["text", "ids"] = Field(
        default="text", description="prompts of a teacher's text as words, or as ids of the student's own tokenizer"
    )
    top_k: Positive = Field(
        default=20, description="top tokens requested per position of a served teacher during training; vLLM gives 20"
    )
    key_variable: str = Field(default="OPENAI_API_KEY", description="environment variable that holds the key")
    concurrency: Positive = Field(default=8, description="requests under way at once")
    timeout: Annotated[float, Field(gt=0, le=1e7, allow_inf_nan=False)] = Field(
        default=120.0, description="seconds a whole reply may take"
    )
    retries: Annotated[int, Field(ge=0, le=20)] = Field(default=4, description="further attempts after a failed one")
    wait: Annotated[float, Field(ge=0, le=1e7, allow_inf_nan=False)] = Field(
        default=0.5, description="seconds before the second attempt; doubles with every further one"
    )


class BenchmarkConfig(Settings):
    """Tasks of lm-evaluation-harness."""

    tasks: tuple[str, ...] = setting(
        (),
        "names known to lm-eval, task files or folders of them",
        Flag("--tasks", "NAME,..", "Of lm-evaluation-harness, task files or folders.", EVALUATION, on="eval"),
    )
    shots: Annotated[int, Field(ge=0)] | None = Field(default=None, description="solved examples; default the task's")
    limit: Positive | None = Field(default=None, description="use the first N documents of each task")
    batch_size: Positive = Field(default=8, description="requests computed at once")


class EdgeConfig(Settings):
    """How size, memory and speed of a model are measured."""

    measure: bool = setting(
        False,
        "measure size, memory, speed and energy on this machine",
        Flag("--edge", "", "Size, memory, speed, energy here.", EVALUATION),
    )
    prompt_tokens: Positive = Field(default=64, description="tokens of the prompt that is read")
    new_tokens: Annotated[int, Field(ge=2)] = Field(default=64, description="tokens that are added to it")
    repeats: Positive = Field(default=5, description="measurements, of which the median is reported")


_Share = Annotated[float, Field(gt=0, le=1)]


class SupernetSettings(Settings):
    """The sizes of a supernet, and how they are trained together."""

    widths: Annotated[tuple[_Share, ...], Field(min_length=1)] = setting(
        (0.5, 1.0),
        "shares of heads, feed-forward units and hidden dimensions",
        Flag("--widths", "X,..,1", "Shares of heads, units, dimensions.", MODELS),
    )
    depths: Annotated[tuple[_Share, ...], Field(min_length=1)] = setting(
        (1.0,), "shares of the layers", Flag("--depths", "X,..,1", "Shares of the layers.", MODELS)
    )
    by: str = setting(
        "magnitude",
        "score that orders heads, units and dimensions: magnitude, activation, taylor, first, random",
        Flag("--by", "SCORE", "Score that orders what a width keeps.", MODELS),
    )
    layers_by: str = Field(default="spaced", description="score of the layers that a depth keeps")
    rows: Positive = Field(default=64, description="rows that scores are taken on")
    update: Literal["full", "low-rank"] = setting(
        "full",
        "what is trained: all weights, or a low-rank pair for each matrix of the layers",
        Flag("--update", "full|low-rank", "All weights, or low-rank pairs.", TRAINING),
    )
    rank: Positive = setting(8, "rank of the pairs", Flag("--rank", "N", "Of low-rank pairs.", TRAINING))
    sizes: Annotated[int, Field(ge=2)] = setting(
        4, "sizes trained in a step at most", Flag("--sizes", "N", "Sizes trained in a step.", TRAINING)
    )
    stages: tuple[Annotated[float, Field(ge=0)], ...] = Field(
        default=(0.0, 0.5, 0.5), description="shares of the steps: largest size alone, all widths, all sizes"
    )
    alpha: Annotated[float, Field(ge=0, le=1)] = Field(
        default=0.9, description="share of the distillation from the largest size; the rest is cross-entropy"
    )
    beta: Annotated[float, Field(ge=0, allow_inf_nan=False)] = Field(
        default=0.1, description="weight of the term on hidden states"
    )
    gamma: Annotated[float, Field(ge=-4, le=4)] = setting(
        0.5,
        "power of the scale of a smaller size's gradient",
        Flag("--gamma", "X", "Power of a smaller size's gradient scale.", TRAINING),
    )

    @property
    def text(self) -> str:
        """The student that is made of a teacher, as ``kd distill --student`` takes it.

        >>> SupernetSettings(widths=(0.5, 0.75, 1.0), rank=4).text
        'supernet:widths=0.5+0.75+1,rank=4'
        """
        given = [(name, getattr(self, name)) for name in type(self).model_fields]
        told = [
            (name, value) for name, value in given if name == "widths" or value != type(self).model_fields[name].default
        ]
        return "supernet:" + ",".join(f"{name}={_joined(value)}" for name, value in told)


def _joined(value: object) -> str:
    if isinstance(value, tuple):
        return "+".join(map(_joined, value))
    return f"{value:g}" if isinstance(value, float) else str(value)


class ExecutionConfig(Settings):
    """Where the cells of a comparison run; no number of the table depends on it."""

    executor: Literal["auto", "inline", "local", "slurm", "ray"] = setting(
        "auto",
        "this process, its children, Slurm or Ray; auto: local for several jobs",
        Flag("--executor", "NAME", "auto, inline, local, slurm, ray.", GRID),
    )
    jobs: Positive | None = setting(
        None, "runs at once", Flag("--jobs", "N", "Runs at once, as processes.", GRID, default="1")
    )
    slurm: dict[str, str] = setting(
        {},
        "partition=..,time=MINUTES,gpus=..,cpus=..,mem_gb=..",
        Flag("--slurm", "NAME=X,..", "partition, time, gpus, cpus, mem_gb, ..", GRID),
    )
    ray_address: str | None = setting(
        None,
        "a running Ray cluster; default one on this machine",
        Flag("--ray-address", "ADDRESS", "A running cluster.", GRID, hidden=EVERY),
    )
