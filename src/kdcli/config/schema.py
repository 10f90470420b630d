"""The settings of every command: frozen pydantic models with defaults, bounds, descriptions and flags.

A field is the only place of a setting: ``docs/generate.py`` writes the commands' flags (``cli/options.py``) and the
pages' tables from it. Options of an objective live with the objective; this file never names one.
"""

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from kdcli.config.names import DATA, EVALUATION, GRID, HARDWARE, MODELS, OBJECTIVE, OUTPUT, TABLE, TRAINING

Positive = Annotated[int, Field(ge=1)]
Finite = Field(allow_inf_nan=False)
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
        Flag("--data", "FILE", "Training rows: file, folder, hub id.", DATA, on="distill compare cache doctor"),
        Flag("--data", "FILE", "Rows: file, folder, hub id.", DATA, on="data-score data-split data-balance"),
        Flag("data", "FILE", "Rows: file, folder, hub id.", DATA, on="data-check"),
        Flag("--data", "FILE", "Rows with prompts; their answers are not read.", DATA, on="generate"),
    )
    eval: FilePath = setting(
        None,
        "held-out rows, evaluated after training",
        Flag("--eval-data", "FILE", "Held-out rows, measured after training.", DATA, on="distill compare cache"),
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
            on="distill compare cache generate doctor data-check data-score data-split data-balance",
            hidden="compare",
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
            on="distill compare cache data-score",
            hidden="distill compare cache",
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
    teacher_text: str | None = Field(
        default=None, description="folder for text that the teacher generates once; default in the run or study folder"
    )


class TrainConfig(Settings):
    """How the student is trained."""

    epochs: Annotated[float, Field(gt=0, allow_inf_nan=False)] = setting(
        3.0, "passes over the rows", Flag("--epochs", "X", "Passes over the rows.", TRAINING)
    )
    max_steps: Positive | None = setting(
        None,
        "optimizer steps; overrides epochs",
        Flag("--max-steps", "N", "Optimizer steps; overrides --epochs.", TRAINING),
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
    schedule: Literal["cosine", "linear", "constant"] = Field(
        default="cosine", description="course of the learning rate"
    )
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
        Flag("--seed", "N", "Order, first weights, dropout.", TRAINING, on="distill"),
    )
    reduce: Literal["token", "sequence"] = Field(
        default="token", description="mean over tokens, or over sequences' means"
    )
    gradient_checkpointing: bool = setting(
        False,
        "recompute trunk activations to save memory",
        Flag("--gradient-checkpointing", "", "Less memory, more time.", TRAINING, on="distill"),
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
        Flag("--gpus", "N", "GPUs of one cell.", GRID, on="compare"),
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
        Flag("--sampling-seeds", "N,N,..", "One answer each.", EVALUATION, hidden="distill compare"),
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
        default=20, description="tokens asked at each place of a teacher that a training waits for; vLLM gives 20"
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


_TEACHER = Flag("--teacher", "MODEL", "Model folder or hub id.", MODELS)
_STUDENT = Flag("--student", "MODEL", "Folder, hub id, or random:layers=3,..", MODELS)
_OUTPUT = Flag("--output -o", "FOLDER", "Folder for everything the command writes.", OUTPUT)

TEACHER = setting(None, "teacher: model folder, hub id, or a server's http address", _TEACHER)
TEACHER_CACHE = setting(
    None,
    "folder that kd cache made of this teacher and data",
    Flag("--teacher-cache", "FOLDER", "Folder of kd cache, in place of a teacher.", MODELS, on="distill"),
)
STUDENT = setting(None, "student: folder, hub id, or random:layers=..,width=..,heads=..", _STUDENT)
TEACHER_QUANTIZATION: Any = Field(
    default="none", description="teacher's linear layers below the head: none, int8 (torchao), nf4 (bitsandbytes)"
)


class CommandConfig(Settings):
    """Base of the settings of a command.

    The fields of several bases stand in a record from the last base to the first, the class's own after them.
    """

    command: ClassVar[str] = ""


class ModelsConfig(CommandConfig):
    """The teacher and the student of a training."""

    teacher: FilePath = TEACHER
    teacher_cache: FilePath = TEACHER_CACHE
    student: FilePath = STUDENT


class ObjectiveConfig(ModelsConfig):
    """The models of a training, and what is minimised."""

    loss: str = setting(
        "fkl",
        "objective, as in 0.5*ce+0.5*akl:mu=0.6",
        Flag("--loss", "OBJECTIVE", "As in akl or '0.5*ce+0.5*akl:mu=0.6'.", OBJECTIVE),
    )


class TrainingConfig(CommandConfig):
    """What every training has, alone or as a cell of a comparison."""

    lora: LoraConfig = LoraConfig()
    teacher_quantization: Quantization = TEACHER_QUANTIZATION
    server: ServerConfig = ServerConfig()
    data: DataConfig = DataConfig()
    train: TrainConfig = TrainConfig()
    hardware: HardwareConfig = HardwareConfig()
    evaluation: EvalSettings = EvalSettings()
    benchmarks: BenchmarkConfig = BenchmarkConfig()


class DistillConfig(TrainingConfig, ObjectiveConfig):
    """One training run."""

    command: ClassVar[str] = "distill"
    monitor: MonitorConfig = MonitorConfig()
    output: FilePath = setting(None, "run folder", _OUTPUT)


class EdgeConfig(Settings):
    """How size, memory and speed of a model are measured."""

    measure: bool = setting(
        False,
        "measure size, memory, speed and energy on this machine",
        Flag("--edge", "", "Size, memory, speed and energy on this machine.", EVALUATION),
    )
    prompt_tokens: Positive = Field(default=64, description="tokens of the prompt that is read")
    new_tokens: Annotated[int, Field(ge=2)] = Field(default=64, description="tokens that are added to it")
    repeats: Positive = Field(default=5, description="measurements, of which the median is reported")


class EvalConfig(CommandConfig):
    """One evaluation of a model folder, or of answers made elsewhere."""

    command: ClassVar[str] = "eval"
    model: FilePath = setting(
        None,
        "run folder, model folder or hub id",
        Flag("model", "RUN_OR_MODEL", "Run folder, model folder or hub id.", MODELS),
    )
    teacher: FilePath = setting(None, "teacher, for metrics that compare with it", _TEACHER)
    teacher_cache: FilePath = TEACHER_CACHE
    predictions: FilePath = setting(
        None,
        "JSONL of prediction and reference(s); no model is loaded",
        Flag("--predictions", "FILE", "JSONL of prediction and reference(s); no model is loaded.", DATA),
    )
    server: ServerConfig = ServerConfig()
    edge: EdgeConfig = EdgeConfig()
    benchmarks: BenchmarkConfig = BenchmarkConfig()
    teacher_quantization: Quantization = TEACHER_QUANTIZATION
    data: DataConfig = DataConfig()
    hardware: HardwareConfig = HardwareConfig()
    evaluation: EvalSettings = EvalSettings()
    output: FilePath = setting(None, "folder for results.json and samples.parquet", _OUTPUT)
    pictures: bool = Field(default=True, description="draw each curve as PNG and SVG next to curves.json")


class JudgeConfig(CommandConfig):
    """One judgement of answers."""

    command: ClassVar[str] = "judge"
    answers: FilePath = setting(
        None,
        "run, evaluation folder, or JSONL of prompt, prediction and reference",
        Flag("answers", "RUN_OR_ANSWERS", "Run, evaluation folder or JSONL of answers.", DATA),
    )
    scores: FilePath = setting(
        None,
        "JSONL of scores given elsewhere; no server is asked",
        Flag("--scores", "FILE", "JSONL of scores given elsewhere.", DATA),
    )
    server: ServerConfig = ServerConfig()
    prompt_file: FilePath = Field(default=None, description="judge's prompt with {prompt}, {first} and {second}")
    temperature: Annotated[float, Field(ge=0, allow_inf_nan=False)] = Field(
        default=0.0, description="of the judge's reply; 0 is greedy"
    )
    max_tokens: Positive = Field(default=512, description="tokens of a judge's reply at most")
    limit: Positive | None = Field(default=None, description="judge the first N examples")
    output: FilePath = setting(None, "folder for results.json and samples.parquet", _OUTPUT)


class CacheConfig(CommandConfig):
    """One pass of a teacher over rows, stored."""

    command: ClassVar[str] = "cache"
    teacher: FilePath = TEACHER
    student: FilePath = setting(None, "student folder, if its tokenizer files end texts otherwise", _STUDENT)
    teacher_quantization: Quantization = TEACHER_QUANTIZATION
    server: ServerConfig = ServerConfig()
    data: DataConfig = DataConfig()
    hardware: HardwareConfig = HardwareConfig()
    kind: Literal["exact", "compact"] = setting(
        "exact",
        "exact: last hidden states; compact: the likeliest tokens and the rest's mass",
        Flag("--kind", "exact|compact", "Hidden states, or the likeliest tokens.", MODELS),
    )
    store_dtype: Literal["auto", "fp32", "bf16", "fp16"] = setting(
        "auto",
        "of the hidden states on disk; auto: that of the computation, which loses nothing",
        Flag("--store-dtype", "NAME", "auto (loses nothing), fp32, bf16, fp16, on disk.", MODELS),
    )
    top_k: Positive = setting(
        64, "tokens kept by a compact cache", Flag("--top-k", "N", "Tokens a compact cache keeps.", MODELS)
    )
    output: FilePath = setting(None, "cache folder", _OUTPUT)


class GenerateConfig(CommandConfig):
    """Text generated by a teacher, without training."""

    command: ClassVar[str] = "generate"
    teacher: FilePath = TEACHER
    student: FilePath = setting(None, "student folder, if it reads shorter texts than the teacher", _STUDENT)
    source: str = setting(
        "teacher",
        "how it writes, as in teacher:decode=beam,answers=2",
        Flag("--source", "SOURCE", "Decoding; see kd sources show teacher.", MODELS),
    )
    count: Positive | None = setting(
        None,
        "texts to write, where prompts=bos and no rows are given",
        Flag("--count", "N", "Texts to generate with prompts=bos.", DATA),
    )
    server: ServerConfig = ServerConfig()
    data: DataConfig = DataConfig()
    hardware: HardwareConfig = HardwareConfig()
    output: FilePath = setting(None, "folder of the rows and of the text they come from", _OUTPUT)


class CheckConfig(CommandConfig):
    """What is in a file of rows."""

    command: ClassVar[str] = "data-check"
    student: FilePath = setting(
        None,
        "model whose tokenizer and template the rows are read with",
        Flag("--student", "MODEL", "Count its tokens, and show its template.", MODELS),
    )
    data: DataConfig = DataConfig()


Share = Annotated[float, Field(ge=0, le=1)]


class ScoreConfig(CommandConfig):
    """Scores of the rows of a file, kept in a column."""

    command: ClassVar[str] = "data-score"
    teacher: FilePath = setting(None, "teacher, for scores that read it", _TEACHER)
    student: FilePath = setting(
        None,
        "student, for scores that read it",
        Flag("--student", "MODEL", "Model folder or hub id.", MODELS),
    )
    by: Spaced = setting(
        (),
        "scores, each with its options",
        Flag("--by", "SCORE", "As nll or nll:of=teacher, see kd scores; repeatable.", OBJECTIVE, repeat=True),
    )
    keep: Annotated[float, Field(gt=0, le=1)] | None = setting(
        None,
        "share of the rows kept, those of the highest first score",
        Flag("--keep", "X", "Keep this share, of the highest first score.", OBJECTIVE),
    )
    low: Share | None = setting(
        None,
        "rows below this rank of the first score, from 0 to 1, are left out",
        Flag("--low", "X", "Keep ranks from X on, 0 the lowest score.", OBJECTIVE),
    )
    high: Share | None = setting(
        None,
        "rows from this rank of the first score on, from 0 to 1, are left out",
        Flag("--high", "X", "Keep ranks below X, 1 the highest score.", OBJECTIVE),
    )
    mark: bool = setting(
        False,
        "keep all rows; those of the ranks kept get teacher_trust 1, the others 0",
        Flag("--mark", "", "Keep all rows; ranks kept get teacher_trust 1, others 0.", OBJECTIVE),
    )
    column: str = Field(default="scores", min_length=1, description="column that holds the scores, by name")
    data: DataConfig = DataConfig()
    hardware: HardwareConfig = HardwareConfig()
    output: FilePath = setting(None, "folder of the scored rows", _OUTPUT)


class SplitConfig(CommandConfig):
    """Rows cut into several files."""

    command: ClassVar[str] = "data-split"
    by: str = setting(
        "iid",
        "iid, column:by=NAME or dirichlet:alpha=X,by=NAME",
        Flag("--by", "HOW", "iid, column:by=NAME, dirichlet:alpha=.3,by=NAME.", OBJECTIVE),
    )
    parts: Annotated[tuple[Annotated[float, Field(gt=0, allow_inf_nan=False)], ...], Field(min_length=1)] | None = (
        setting(
            None,
            "number of parts, or the share of each",
            Flag("--parts", "N", "Number of parts, or shares as 0.8,0.1,0.1.", OBJECTIVE),
        )
    )
    seed: Seed = setting(0, "seed of the draw", Flag("--seed", "N", "Of the draw.", OBJECTIVE))
    data: DataConfig = DataConfig()
    output: FilePath = setting(None, "folder of the parts", _OUTPUT)


class BalanceConfig(CommandConfig):
    """Rows of one stage of a training, within quotas of a column's values."""

    command: ClassVar[str] = "data-balance"
    by: str | None = setting(
        None, "column whose values are balanced", Flag("--by", "COLUMN", "Column whose values are balanced.", OBJECTIVE)
    )
    policy: Literal["natural", "balanced", "adaptive"] = setting(
        "adaptive",
        "natural: as they come; balanced: all alike; adaptive: from one to the other over the stages",
        Flag("--policy", "NAME", "natural, balanced, adaptive.", OBJECTIVE),
    )
    stage: str = setting(
        "1/1", "number of the stage and how many there are", Flag("--stage", "K/N", "As in 3/5.", OBJECTIVE)
    )
    budget: Positive | None = setting(
        None,
        "rows of all stages together",
        Flag("--budget", "N", "Rows of all stages together.", OBJECTIVE),
    )
    score: str | None = setting(
        None,
        "score that ranks rows from the second stage on, of the column scores",
        Flag("--score", "NAME", "Of the rows' scores: highest first, from stage 2 on.", OBJECTIVE),
    )
    before: Spaced = setting(
        (),
        "folders of the earlier stages, in their order",
        Flag("--before", "FOLDER", "Of an earlier stage; repeatable.", OBJECTIVE, repeat=True),
    )
    tail: Literal["repeat", "leave"] = setting(
        "repeat",
        "what becomes of a value with fewer rows than its quota",
        Flag("--tail", "NAME", "repeat or leave, where a value has too few rows.", OBJECTIVE),
    )
    seed: Seed = setting(0, "seed of the draw", Flag("--seed", "N", "Of the draw.", OBJECTIVE))
    data: DataConfig = DataConfig()
    output: FilePath = setting(None, "folder of the stage", _OUTPUT)


class DoctorConfig(CommandConfig):
    """The inputs of a run, to be checked before it."""

    command: ClassVar[str] = "doctor"
    teacher: FilePath = TEACHER
    local_teacher: FilePath = setting(
        None,
        "folder of the model that a server serves, to compare",
        Flag("--local-teacher", "MODEL", "Local copy of a served model, to compare.", MODELS),
    )
    student: FilePath = STUDENT
    lora: LoraConfig = LoraConfig()
    teacher_quantization: Quantization = TEACHER_QUANTIZATION
    server: ServerConfig = ServerConfig()
    top_k: Positive = setting(
        20,
        "tokens asked of a teacher behind a server",
        Flag("--top-k", "N", "Tokens to ask of a server.", MODELS, hidden=EVERY),
    )
    seed: Seed = Field(default=0, description="seed of a random student")
    data: DataConfig = DataConfig()
    hardware: HardwareConfig = HardwareConfig()
    output: FilePath = setting(None, "where a run would be written", _OUTPUT)


class ExecutionConfig(Settings):
    """Where the cells of a comparison run; no number of the table depends on it."""

    executor: Literal["auto", "inline", "local", "slurm", "ray"] = setting(
        "auto",
        "this process, its children, Slurm or Ray; auto: local for several jobs",
        Flag("--executor", "NAME", "auto, inline, local, slurm, ray.", GRID),
    )
    jobs: Positive | None = setting(
        None, "cells at once", Flag("--jobs", "N", "Cells at once, as processes.", GRID, default="1")
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


class ContendersConfig(CommandConfig):
    """What a comparison varies, and what it compares to."""

    losses: Spaced = setting(
        (),
        "contenders, each an objective",
        Flag("losses", "OBJECTIVE|RUN|STUDY", "Objectives, a study, or runs and models.", OBJECTIVE, repeat=True),
    )
    vary: Spaced = setting(
        (),
        "setting=value,value: each combination is a contender",
        Flag("--vary", "lr=X,Y", "Every value a contender; repeatable.", GRID, repeat=True),
    )
    tune: Spaced = setting(
        (),
        "setting=value,value: chosen on dev rows per objective",
        Flag("--tune", "lr=X,Y", "Choose per objective on dev rows; --tune-by.", GRID, repeat=True),
    )
    tune_by: str | None = setting(
        None,
        "score that chooses; default the first one measured",
        Flag("--tune-by", "SCORE", "What chooses; default the first.", GRID, hidden=EVERY),
    )
    tune_seeds: tuple[Seed, ...] | None = setting(
        None,
        "training seeds that --tune tries; default as many from 1000 on",
        Flag("--tune-seeds", "N,N,..", "Seeds to choose with.", GRID, default="as many, from 1000", hidden=EVERY),
        min_length=1,
    )
    seeds: tuple[Seed, ...] = setting(
        (0,), "training seeds", Flag("--seeds", "N,N,..", "Training seeds of each contender.", GRID), min_length=1
    )
    baseline: str | None = setting(
        None,
        "objective differences are taken to; default the first",
        Flag("--baseline", "OBJECTIVE", "Differences are taken to it.", GRID, default="the first"),
    )


class CompareConfig(TrainingConfig, ModelsConfig, ContendersConfig):
    """Objectives times variations times seeds on an equal budget."""

    command: ClassVar[str] = "compare"
    teacher_cache: Annotated[str, FromText(path=True)] = setting(
        "auto",
        "auto: run the teacher once for all cells if that pays; none; or a kd cache folder",
        Flag("--teacher-cache", "FOLDER", "Run the teacher once: auto, none, a folder.", MODELS, default=""),
    )
    execution: ExecutionConfig = ExecutionConfig()
    output: FilePath = setting(None, "study folder", _OUTPUT)

    @model_validator(mode="after")
    def _distinct(self) -> "CompareConfig":
        for name, values in (("seeds", self.seeds), ("losses", self.losses)):
            twice = [value for value in values if values.count(value) > 1]
            if twice:
                raise ValueError(f"{name}: {twice[0]} given twice; each cell needs its own")
        return self


KINDS: tuple[type[CommandConfig], ...] = (
    DistillConfig,
    EvalConfig,
    CompareConfig,
    CacheConfig,
    GenerateConfig,
    JudgeConfig,
    DoctorConfig,
    CheckConfig,
    ScoreConfig,
    SplitConfig,
    BalanceConfig,
)
"""The settings of every command that has some."""
