"""The settings of every command, each made of sections and of what the command alone has.

They are read where a command begins and go no further than the ``prepare.py`` of a package; ``make imports`` proves it.
"""

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, model_validator

from kdcli.config.names import DATA, EVALUATION, GRID, MODELS, OBJECTIVE, OUTPUT
from kdcli.config.sections import (
    EVERY,
    BenchmarkConfig,
    DataConfig,
    EdgeConfig,
    EvalSettings,
    ExecutionConfig,
    FederationConfig,
    FilePath,
    Flag,
    FromText,
    HardwareConfig,
    LoraConfig,
    MonitorConfig,
    Positive,
    Quantization,
    Seed,
    ServerConfig,
    Settings,
    Spaced,
    SupernetSettings,
    TrainConfig,
    setting,
)
from kdcli.config.sections import GenerationConfig as GenerationConfig

_TEACHER = Flag("--teacher", "MODEL", "Model folder or hub id.", MODELS)
_STUDENT = Flag("--student", "MODEL", "Folder, hub id, cut:.., random:.., tiny:..", MODELS)
_OUTPUT = Flag("--output -o", "FOLDER", "Folder for everything the command writes.", OUTPUT)
TEACHER = setting(None, "teacher: model folder, hub id, or a server's http address", _TEACHER)
TEACHER_CACHE = setting(
    None,
    "folder that kd cache made of this teacher and data",
    Flag("--teacher-cache", "FOLDER", "Folder of kd cache, in place of a teacher.", MODELS, on="distill federate"),
)
STUDENT = setting(
    None,
    "student: folder, hub id, random:layers=..,width=..,heads=.., cut:layers=..,by=.. or tiny:kind=..",
    _STUDENT,
)
TEACHER_QUANTIZATION: Any = Field(
    default="none", description="teacher's linear layers below the head: none, int8 (torchao), nf4 (bitsandbytes)"
)


class CommandConfig(Settings):
    """Base of the settings of a command.

    The fields of several bases stand in a record from the last base to the first, the class's own after them.
    """

    command: ClassVar[str] = ""
    objectives: ClassVar[tuple[str, ...]] = ()
    """The fields that hold an objective, or several."""
    has_presets: ClassVar[bool] = False
    """Whether ``-c`` takes the name of a training preset, too."""

    @property
    def cluster(self) -> str | None:
        """The address of the cluster that runs it; None for this machine."""
        return None


class ModelsConfig(CommandConfig):
    """The teacher and the student of a training."""

    teacher: FilePath = TEACHER
    teacher_cache: FilePath = TEACHER_CACHE
    student: FilePath = STUDENT


class ObjectiveConfig(ModelsConfig):
    """The models of a training, and what is minimised."""

    objectives: ClassVar[tuple[str, ...]] = ("loss",)
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
    has_presets: ClassVar[bool] = True
    monitor: MonitorConfig = MonitorConfig()
    output: FilePath = setting(None, "run folder", _OUTPUT)


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
    palette: Positive | None = setting(
        None,
        "measure so many sizes of a supernet: perplexity, parameters and speed",
        Flag("--palette", "N", "N sizes of a supernet: perplexity, speed.", EVALUATION),
    )
    benchmarks: BenchmarkConfig = BenchmarkConfig()
    teacher_quantization: Quantization = TEACHER_QUANTIZATION
    data: DataConfig = DataConfig()
    hardware: HardwareConfig = HardwareConfig()
    evaluation: EvalSettings = EvalSettings()
    output: FilePath = setting(None, "folder for results.json and samples.parquet", _OUTPUT)
    pictures: bool = Field(default=True, description="draw each curve as PNG and SVG next to curves.json")


class StudentConfig(CommandConfig):
    """One student that is made from a teacher."""

    command: ClassVar[str] = "student"
    student: str | None = setting(
        None,
        "what is made: cut:layers=..,ffn=..,by=.., random:layers=..,width=..,heads=.., or the folder of a supernet",
        Flag("student", "SPEC", "What is made: cut:layers=2,by=influence or random:layers=3,..", MODELS),
    )
    pick: str | None = setting(
        None,
        "which size of a supernet",
        Flag("--pick", "WHAT", "Of a supernet: params<=N, or width=X,depth=X.", MODELS),
    )
    teacher: FilePath = setting(
        None, "teacher that it is made from", Flag("--teacher", "MODEL", "Model folder or hub id.", MODELS)
    )
    seed: Seed = setting(0, "seed of random weights", Flag("--seed", "N", "Of random: weights.", MODELS))
    data: DataConfig = DataConfig()
    hardware: HardwareConfig = HardwareConfig()
    output: FilePath = setting(
        None, "folder of the student", Flag("--output -o", "FOLDER", "The student's folder.", OUTPUT)
    )


class SupernetConfig(CommandConfig):
    """One training of several sizes of a network."""

    command: ClassVar[str] = "supernet"
    objectives: ClassVar[tuple[str, ...]] = ("loss",)
    teacher: FilePath = setting(
        None, "teacher that the sizes are slices of", Flag("--teacher", "MODEL", "Model folder or hub id.", MODELS)
    )
    supernet: SupernetSettings = SupernetSettings()
    loss: str = setting(
        "fkl",
        "what smaller sizes learn from the largest",
        Flag("--loss", "OBJECTIVE", "What smaller sizes learn from the largest.", OBJECTIVE),
    )
    data: DataConfig = DataConfig()
    train: TrainConfig = TrainConfig()
    hardware: HardwareConfig = HardwareConfig()
    evaluation: EvalSettings = EvalSettings()
    output: FilePath = setting(None, "run folder", _OUTPUT)

    @property
    def training(self) -> DistillConfig:
        """The same as a training run, whose student is the supernet."""
        shared = {name: getattr(self, name) for name in ("teacher", "loss", "data", "train", "hardware", "evaluation")}
        return DistillConfig(**shared, student=self.supernet.text, output=self.output)


class ExportConfig(CommandConfig):
    """One model in another program's format."""

    command: ClassVar[str] = "export"
    model: FilePath = setting(
        None,
        "run folder, model folder or hub id",
        Flag("model", "RUN_OR_MODEL", "Run folder, model folder or hub id.", MODELS),
    )
    to: str | None = setting(
        None,
        "format and rounding: gguf, gguf:q8_0, gguf:q4_0, onnx, onnx:int8, onnx:int4 or safetensors:int8",
        Flag("--to", "FORMAT", "gguf[:q8_0|q4_0], onnx[:int8|int4], safetensors:int8.", OUTPUT),
    )
    data: DataConfig = DataConfig()
    hardware: HardwareConfig = HardwareConfig()
    output: FilePath = setting(
        None, "folder of the exported model", Flag("--output -o", "FOLDER", "The exported model's folder.", OUTPUT)
    )


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
    student: FilePath = setting(None, "student folder, if its tokenizer names other end tokens", _STUDENT)
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
    into: Literal["answers", "rows"] = setting(
        "answers",
        "what an answer is: the response of its prompt's row, or new rows, written Prompt: ... and Response: ...",
        Flag("--into", "NAME", "answers, or rows: an answer holds new rows.", OBJECTIVE),
    )
    feedback: FilePath = setting(
        None,
        "rows of which each prompt shows a few, where the template says {feedback}",
        Flag("--feedback", "FILE", "Rows that prompts show, at {feedback} of --template.", DATA),
    )
    shots: Positive = setting(
        4, "rows of the feedback that a prompt shows", Flag("--shots", "N", "Rows of --feedback a prompt shows.", DATA)
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
    tail: Literal["repeat", "leave", "write"] = setting(
        "repeat",
        "what becomes of a value with fewer rows than its quota: its rows again, fewer rows, or new ones by a teacher",
        Flag("--tail", "NAME", "Too few rows of a value: repeat, leave, write.", OBJECTIVE),
    )
    shots: Positive = setting(
        4,
        "rows of a value that a prompt shows, with tail=write",
        Flag("--shots", "N", "Rows of a value that a prompt shows.", OBJECTIVE),
    )
    tries: Positive = setting(
        3,
        "times that missing rows are asked for, with tail=write",
        Flag("--tries", "N", "Times that missing rows are asked for.", OBJECTIVE),
    )
    seed: Seed = setting(0, "seed of the draw", Flag("--seed", "N", "Of the draw.", OBJECTIVE))
    teacher: FilePath = setting(None, "teacher that writes rows, with tail=write", _TEACHER)
    student: FilePath = setting(None, "student folder, whose tokenizer reads the words of a server", _STUDENT)
    source: str = setting(
        "teacher",
        "how the teacher writes, as in teacher:temperature=0.8",
        Flag("--source", "SOURCE", "Decoding; see kd sources show teacher.", MODELS),
    )
    server: ServerConfig = ServerConfig()
    data: DataConfig = DataConfig()
    hardware: HardwareConfig = HardwareConfig()
    output: FilePath = setting(None, "folder of the stage", _OUTPUT)


class RationalesConfig(CommandConfig):
    """Rows with the words of their prompts that moved the teacher's answer."""

    command: ClassVar[str] = "data-rationales"
    teacher: FilePath = setting(None, "teacher whose answers are explained", _TEACHER)
    by: str = setting(
        "grad_x_input",
        "how words are weighed: grad, grad_x_input, ig, occlusion, random, first, rare",
        Flag("--by", "HOW", "grad, grad_x_input, ig, occlusion, or a control.", OBJECTIVE),
    )
    words: Positive = setting(5, "words of a rationale", Flag("--words", "N", "Words of a rationale.", OBJECTIVE))
    into: Literal["tasks", "target", "input"] = setting(
        "tasks",
        "where rationales go: a row of their own, before the answer, or behind the prompt",
        Flag("--into", "NAME", "tasks, target or input.", OBJECTIVE),
    )
    hint_dropout: Annotated[float, Field(ge=0, lt=1)] = setting(
        0.5,
        "share of the rows that get no rationale, with into=input",
        Flag("--hint-dropout", "X", "Share of rows without one, with --into input.", OBJECTIVE),
    )
    seed: Seed = setting(0, "seed of the dropout", Flag("--seed", "N", "Of the dropout.", OBJECTIVE))
    data: DataConfig = DataConfig()
    hardware: HardwareConfig = HardwareConfig()
    output: FilePath = setting(None, "folder of the rows", _OUTPUT)


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


class ContendersConfig(CommandConfig):
    """What a comparison varies, and what it compares to."""

    objectives: ClassVar[tuple[str, ...]] = ("baseline", "losses")
    losses: Spaced = setting(
        (),
        "objectives to compare",
        Flag("losses", "OBJECTIVE|RUN|STUDY", "Objectives, a study, or runs and models.", OBJECTIVE, repeat=True),
    )
    vary: Spaced = setting(
        (),
        "setting=value,value: each combination is a line of the table",
        Flag("--vary", "lr=X,Y", "Every value a line; also student=A,B.", GRID, repeat=True),
    )
    tune: Spaced = setting(
        (),
        "setting=value,value: chosen on dev rows per objective",
        Flag("--tune", "lr=X,Y", "Choose per objective on dev rows; --tune-by.", GRID, repeat=True),
    )
    tune_by: str | None = setting(
        None,
        "score that chooses; default the first one measured",
        Flag("--tune-by", "SCORE", "Score that chooses; default the first.", GRID, hidden=EVERY),
    )
    tune_seeds: tuple[Seed, ...] | None = setting(
        None,
        "training seeds that --tune tries; default as many from 1000 on",
        Flag("--tune-seeds", "N,N,..", "Seeds to choose with.", GRID, default="as many, from 1000", hidden=EVERY),
        min_length=1,
    )
    seeds: tuple[Seed, ...] = setting(
        (0,), "training seeds", Flag("--seeds", "N,N,..", "Training seeds, or a range as 0-2.", GRID), min_length=1
    )
    baseline: str | None = setting(
        None,
        "objective differences are taken to; default the first",
        Flag("--baseline", "OBJECTIVE", "Base of the differences.", GRID, default="the first"),
    )


class CompareConfig(TrainingConfig, ModelsConfig, ContendersConfig):
    """Objectives times variations times seeds on an equal budget."""

    command: ClassVar[str] = "compare"
    teacher_cache: Annotated[str, FromText(path=True)] = setting(
        "auto",
        "auto: run the teacher once for all runs if that pays; none; or a kd cache folder",
        Flag("--teacher-cache", "FOLDER", "Run the teacher once: auto, none, a folder.", MODELS, default=""),
    )
    execution: ExecutionConfig = ExecutionConfig()
    output: FilePath = setting(None, "study folder", _OUTPUT)

    @property
    def cluster(self) -> str | None:
        """The address of the cluster that runs it; None for this machine."""
        return self.execution.ray_address

    @model_validator(mode="after")
    def _distinct(self) -> "CompareConfig":
        for name, values in (("seeds", self.seeds), ("losses", self.losses)):
            twice = [value for value in values if values.count(value) > 1]
            if twice:
                raise ValueError(f"{name}: {twice[0]} given twice; each run needs its own")
        return self


class FederateConfig(ObjectiveConfig):
    """One student, trained by clients that have rows of their own."""

    command: ClassVar[str] = "federate"
    federation: FederationConfig = FederationConfig()
    lora: LoraConfig = LoraConfig()
    teacher_quantization: Quantization = TEACHER_QUANTIZATION
    server: ServerConfig = ServerConfig()
    data: DataConfig = DataConfig()
    train: TrainConfig = TrainConfig()
    hardware: HardwareConfig = HardwareConfig()
    execution: ExecutionConfig = ExecutionConfig()
    output: FilePath = setting(None, "folder of the federation", _OUTPUT)

    @property
    def cluster(self) -> str | None:
        """The address of the cluster that runs it; None for this machine."""
        return self.execution.ray_address


KINDS: tuple[type[CommandConfig], ...] = (
    DistillConfig,
    EvalConfig,
    CompareConfig,
    CacheConfig,
    GenerateConfig,
    StudentConfig,
    SupernetConfig,
    ExportConfig,
    JudgeConfig,
    DoctorConfig,
    CheckConfig,
    ScoreConfig,
    SplitConfig,
    BalanceConfig,
    RationalesConfig,
    FederateConfig,
)
"""The settings of every command that has some."""
