"""The settings of every command: frozen pydantic models with defaults, bounds and descriptions.

Options of an objective live with the objective; this file never names one.
"""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

Positive = Annotated[int, Field(ge=1)]
Finite = Field(allow_inf_nan=False)
Seed = Annotated[int, Field(ge=0, lt=2**63)]
Quantization = Literal["none", "int8", "nf4"]


class Settings(BaseModel):
    """Base of every section: immutable, and a key it does not know is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())


class DataConfig(Settings):
    """Where rows come from and how they become tokens."""

    train: str | None = Field(default=None, description="training rows: file, folder or hub id")
    eval: str | None = Field(default=None, description="held-out rows, evaluated after training")
    columns: dict[str, str] = Field(default={}, description="field=column pairs where names differ")
    template: str = Field(default="auto", description="auto, chat, alpaca, plain, or text holding {instruction}")
    max_length: Positive = Field(default=512, description="tokens of prompt and response together")
    max_prompt_length: Positive | None = Field(default=None, description="drop rows with longer prompts")
    limit: Positive | None = Field(default=None, description="use the first N training rows")
    eval_limit: Positive | None = Field(default=None, description="use the first N held-out rows")
    skip_bad: bool = Field(default=False, description="leave out rows that cannot be read instead of stopping")
    dev: str | None = Field(default=None, description="development rows, to choose settings on; never trained on")
    dev_share: Annotated[float, Field(ge=0, lt=1)] = Field(
        default=0.0, description="share of the training rows kept out of training as development rows"
    )
    corpus: str | None = Field(default=None, description="rows of a second corpus, for sources that read one")
    made: str | None = Field(
        default=None, description="folder for what a teacher writes once; default in the run or study folder"
    )


class TrainConfig(Settings):
    """How the student is trained."""

    epochs: Annotated[float, Field(gt=0, allow_inf_nan=False)] = Field(default=3.0, description="passes over the rows")
    max_steps: Positive | None = Field(default=None, description="optimizer steps; overrides epochs")
    batch_size: Positive = Field(default=8, description="sequences per optimizer step over all devices")
    micro_tokens: Positive = Field(default=4096, description="padded tokens per micro-batch and device")
    length_window: Positive = Field(default=16, description="steps within which rows are sorted by length")
    lr: Annotated[float, Field(gt=0, allow_inf_nan=False)] = Field(default=5e-4, description="peak learning rate")
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
    seed: Seed = Field(default=0, description="seed of order, initialisation and dropout")
    reduce: Literal["token", "sequence"] = Field(
        default="token", description="mean over tokens, or over sequences' means"
    )
    gradient_checkpointing: bool = Field(default=False, description="recompute trunk activations to save memory")
    chunk_tokens: Positive | None = Field(
        default=None, description="tokens whose logits exist at once; default by device"
    )
    save_every: Positive = Field(default=200, description="steps between checkpoints")
    keep: Positive = Field(default=2, description="checkpoints kept while a run is under way")
    keep_finished: bool = Field(default=False, description="keep the checkpoints of a run that is done, too")
    log_every: Positive = Field(default=10, description="steps between progress lines")
    report_to: tuple[str, ...] = Field(default=(), description="trackers known to accelerate, such as tensorboard")


class HardwareConfig(Settings):
    """Where the arithmetic happens."""

    device: Literal["auto", "cpu", "cuda", "mps"] = Field(default="auto", description="device")
    dtype: Literal["auto", "fp32", "bf16", "fp16"] = Field(default="auto", description="fp32, or autocast to bf16")
    threads: Positive | None = Field(default=None, description="CPU threads; part of a run's identity")
    gpus: Positive = Field(default=1, description="processes that train one run together: one GPU each, or a CPU's")
    shard: Literal["ddp", "fsdp2", "zero3"] = Field(
        default="ddp",
        description="ddp: every process holds all weights; fsdp2: weights, gradients, moments in shards; "
        "zero3: fsdp2 that also drops embeddings and head between forward and backward",
    )
    wait: Annotated[float, Field(gt=0, le=1e7, allow_inf_nan=False)] = Field(
        default=1800.0, description="seconds one process waits for the others before it gives the run up"
    )
    compile: bool = Field(default=False, description="compile the layers of student and teacher for training steps")
    matmul_precision: Literal["highest", "high", "medium"] = Field(
        default="highest", description="fp32 matrix products; medium is faster where bf16 units exist"
    )


class GenerationConfig(Settings):
    """How answers are sampled when texts are scored."""

    max_new_tokens: Positive = Field(default=128, description="tokens per answer at most")
    temperature: Annotated[float, Field(ge=0, allow_inf_nan=False)] = Field(default=1.0, description="0 is greedy")
    top_p: Annotated[float, Field(gt=0, le=1)] = Field(default=1.0, description="nucleus mass")
    seeds: tuple[Seed, ...] = Field(
        default=(10, 20, 30, 40, 50), min_length=1, description="sampling seeds, one answer each"
    )
    batch_tokens: Positive = Field(default=8192, description="prompt and answer tokens in one batch")


class EvalSettings(Settings):
    """What is measured on held-out rows."""

    metrics: tuple[str, ...] = Field(
        default=("rougeL", "perplexity", "ece", "kl_to_teacher", "agreement"), description="metric names"
    )
    split: Literal["test", "dev"] = Field(default="test", description="rows measured after training: held-out or dev")
    bins: Positive = Field(default=10, description="calibration bins")
    choice_score: Literal["sum", "mean"] = Field(
        default="sum", description="a choice's log-probability, or its mean over the choice's tokens"
    )
    protocol: str | None = Field(
        default=None, description="minillm, greedy, or a YAML file; what is given besides wins over what it sets"
    )
    rouge_tokenizer: Literal["words", "char"] = Field(
        default="words", description="what Rouge compares: runs of a-z and 0-9, or characters of any script"
    )
    rouge_stemmer: Literal["porter", "none"] = Field(default="porter", description="stems of words before Rouge")
    length_unit: Literal["tokens", "words"] = Field(
        default="tokens", description="unit of the reference's length in scores by length"
    )
    exposure_lengths: tuple[Positive, ...] = Field(
        default=(), description="answer lengths to give exposure bias at, beside that of whole answers"
    )
    draft_tokens: Positive = Field(default=4, description="tokens the student drafts per teacher call")
    generation: GenerationConfig = GenerationConfig()


class LoraConfig(Settings):
    """A LoRA adapter: small matrices trained in place of the student's weights."""

    rank: Positive | None = Field(default=None, description="rank; only the adapter trains. None trains all weights")
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

    every: Positive | None = Field(default=None, description="steps between evaluations while training; none without")
    rows: Positive = Field(default=64, description="rows of the fixed sample: of the dev rows, else of those held out")
    metrics: tuple[str, ...] = Field(default=("perplexity",), min_length=1, description="metrics of texts or tokens")
    by: str | None = Field(default=None, description="score that says which student is best; default the first one")
    patience: Positive | None = Field(
        default=None, description="end training after so many evaluations without a better score"
    )


class ServerConfig(Settings):
    """A server with the OpenAI protocol, such as vLLM."""

    url: str | None = Field(default=None, description="address, as in http://localhost:8000/v1")
    model: str | None = Field(default=None, description="model's name on the server; default the only one it has")
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

    tasks: tuple[str, ...] = Field(default=(), description="names known to lm-eval, task files or folders of them")
    shots: Annotated[int, Field(ge=0)] | None = Field(default=None, description="solved examples; default the task's")
    limit: Positive | None = Field(default=None, description="use the first N documents of each task")
    batch_size: Positive = Field(default=8, description="requests computed at once")


class DistillConfig(Settings):
    """One training run."""

    teacher: str | None = Field(default=None, description="teacher: model folder, hub id, or a server's http address")
    teacher_cache: str | None = Field(default=None, description="folder that kd cache made of this teacher and data")
    student: str | None = Field(
        default=None, description="student: folder, hub id, or random:layers=..,width=..,heads=.."
    )
    loss: str = Field(default="fkl", description="objective, as in 0.5*ce+0.5*akl:mu=0.6")
    lora: LoraConfig = LoraConfig()
    teacher_quantization: Quantization = Field(
        default="none", description="teacher's linear layers below the head: none, int8 (torchao), nf4 (bitsandbytes)"
    )
    server: ServerConfig = ServerConfig()
    data: DataConfig = DataConfig()
    train: TrainConfig = TrainConfig()
    hardware: HardwareConfig = HardwareConfig()
    evaluation: EvalSettings = EvalSettings()
    benchmarks: BenchmarkConfig = BenchmarkConfig()
    monitor: MonitorConfig = MonitorConfig()
    output: str | None = Field(default=None, description="run folder")


class EdgeConfig(Settings):
    """How size, memory and speed of a model are measured."""

    measure: bool = Field(default=False, description="measure size, memory, speed and energy on this machine")
    prompt_tokens: Positive = Field(default=64, description="tokens of the prompt that is read")
    new_tokens: Annotated[int, Field(ge=2)] = Field(default=64, description="tokens that are added to it")
    repeats: Positive = Field(default=5, description="measurements, of which the median is reported")


class EvalConfig(Settings):
    """One evaluation of a model folder, or of answers made elsewhere."""

    model: str | None = Field(default=None, description="run folder, model folder or hub id")
    teacher: str | None = Field(default=None, description="teacher, for metrics that compare with it")
    teacher_cache: str | None = Field(default=None, description="folder that kd cache made of this teacher and data")
    predictions: str | None = Field(
        default=None, description="JSONL of prediction and reference(s); no model is loaded"
    )
    server: ServerConfig = ServerConfig()
    edge: EdgeConfig = EdgeConfig()
    benchmarks: BenchmarkConfig = BenchmarkConfig()
    teacher_quantization: Quantization = Field(
        default="none", description="teacher's linear layers below the head: none, int8 (torchao), nf4 (bitsandbytes)"
    )
    data: DataConfig = DataConfig()
    hardware: HardwareConfig = HardwareConfig()
    evaluation: EvalSettings = EvalSettings()
    output: str | None = Field(default=None, description="folder for results.json and samples.parquet")
    pictures: bool = Field(default=True, description="draw each curve as PNG and SVG beside curves.json")


class JudgeConfig(Settings):
    """One judgement of answers."""

    answers: str | None = Field(
        default=None, description="run, evaluation folder, or JSONL of prompt, prediction and reference"
    )
    scores: str | None = Field(default=None, description="JSONL of scores given elsewhere; no server is asked")
    server: ServerConfig = ServerConfig()
    prompt_file: str | None = Field(default=None, description="judge's prompt with {prompt}, {first} and {second}")
    temperature: Annotated[float, Field(ge=0, allow_inf_nan=False)] = Field(
        default=0.0, description="of the judge's reply; 0 is greedy"
    )
    max_tokens: Positive = Field(default=512, description="tokens of a judge's reply at most")
    limit: Positive | None = Field(default=None, description="judge the first N examples")
    output: str | None = Field(default=None, description="folder for results.json and samples.parquet")


class CacheConfig(Settings):
    """One pass of a teacher over rows, kept."""

    teacher: str | None = Field(default=None, description="teacher: model folder, hub id, or a server's http address")
    student: str | None = Field(default=None, description="student folder, if its tokenizer files end texts otherwise")
    teacher_quantization: Quantization = Field(
        default="none", description="teacher's linear layers below the head: none, int8 (torchao), nf4 (bitsandbytes)"
    )
    server: ServerConfig = ServerConfig()
    data: DataConfig = DataConfig()
    hardware: HardwareConfig = HardwareConfig()
    kind: Literal["exact", "compact"] = Field(
        default="exact", description="exact: last hidden states; compact: the likeliest tokens and the rest's mass"
    )
    store_dtype: Literal["auto", "fp32", "bf16", "fp16"] = Field(
        default="auto", description="of the hidden states on disk; auto: that of the computation, which loses nothing"
    )
    top_k: Positive = Field(default=64, description="tokens kept by a compact cache")
    output: str | None = Field(default=None, description="cache folder")


class GenerateConfig(Settings):
    """A teacher's text, written by itself."""

    teacher: str | None = Field(default=None, description="teacher: model folder, hub id, or a server's http address")
    student: str | None = Field(default=None, description="student folder, if it reads shorter texts than the teacher")
    source: str = Field(default="teacher", description="how it writes, as in teacher:decode=beam,answers=2")
    count: Positive | None = Field(default=None, description="texts to write, where prompts=bos and no rows are given")
    server: ServerConfig = ServerConfig()
    data: DataConfig = DataConfig()
    hardware: HardwareConfig = HardwareConfig()
    output: str | None = Field(default=None, description="folder of the rows and of the text they come from")


class DoctorConfig(Settings):
    """What a run would be given, to be looked at."""

    teacher: str | None = Field(default=None, description="teacher: model folder, hub id, or a server's http address")
    local_teacher: str | None = Field(default=None, description="folder of the model that a server serves, to compare")
    student: str | None = Field(
        default=None, description="student: folder, hub id, or random:layers=..,width=..,heads=.."
    )
    lora: LoraConfig = LoraConfig()
    teacher_quantization: Quantization = Field(
        default="none", description="teacher's linear layers below the head: none, int8 (torchao), nf4 (bitsandbytes)"
    )
    server: ServerConfig = ServerConfig()
    top_k: Positive = Field(default=20, description="tokens asked of a teacher behind a server")
    seed: Seed = Field(default=0, description="seed of a random student")
    data: DataConfig = DataConfig()
    hardware: HardwareConfig = HardwareConfig()
    output: str | None = Field(default=None, description="where a run would be written")


class ExecutionConfig(Settings):
    """Where the cells of a comparison run; no number of the table depends on it."""

    executor: Literal["auto", "inline", "local", "slurm", "ray"] = Field(
        default="auto", description="this process, its children, Slurm or Ray; auto: local for several jobs"
    )
    jobs: Positive | None = Field(default=None, description="cells at once")
    slurm: dict[str, str] = Field(default={}, description="partition=..,time=MINUTES,gpus=..,cpus=..,mem_gb=..")
    ray_address: str | None = Field(default=None, description="a running Ray cluster; default one on this machine")


class CompareConfig(Settings):
    """Objectives times variations times seeds on an equal budget."""

    losses: tuple[str, ...] = Field(default=(), description="contenders, each an objective")
    vary: tuple[str, ...] = Field(default=(), description="setting=value,value: each combination is a contender")
    tune: tuple[str, ...] = Field(default=(), description="setting=value,value: chosen on dev rows per objective")
    tune_by: str | None = Field(default=None, description="score that chooses; default the first one measured")
    tune_seeds: tuple[Seed, ...] | None = Field(
        default=None, min_length=1, description="training seeds that --tune tries; default as many from 1000 on"
    )
    seeds: tuple[Seed, ...] = Field(default=(0,), min_length=1, description="training seeds")
    baseline: str | None = Field(default=None, description="objective differences are taken to; default the first")
    teacher: str | None = Field(default=None, description="teacher: model folder, hub id, or a server's http address")
    teacher_cache: str = Field(
        default="auto", description="auto: run the teacher once for all cells if that pays; none; or a kd cache folder"
    )
    student: str | None = Field(default=None, description="student: folder, hub id, or random:...")
    lora: LoraConfig = LoraConfig()
    teacher_quantization: Quantization = Field(
        default="none", description="teacher's linear layers below the head: none, int8 (torchao), nf4 (bitsandbytes)"
    )
    server: ServerConfig = ServerConfig()
    data: DataConfig = DataConfig()
    train: TrainConfig = TrainConfig()
    hardware: HardwareConfig = HardwareConfig()
    evaluation: EvalSettings = EvalSettings()
    benchmarks: BenchmarkConfig = BenchmarkConfig()
    execution: ExecutionConfig = ExecutionConfig()
    output: str | None = Field(default=None, description="study folder")

    @model_validator(mode="after")
    def _distinct(self) -> "CompareConfig":
        for name, values in (("seeds", self.seeds), ("losses", self.losses)):
            twice = [value for value in values if values.count(value) > 1]
            if twice:
                raise ValueError(f"{name}: {twice[0]} given twice; each cell needs its own")
        return self
