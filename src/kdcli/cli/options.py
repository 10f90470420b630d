"""Every flag, declared once: the same name means the same in all commands.

Flags are texts; the setting behind each one (``spelling.FLAGS``) gives it its type.
"""

from pathlib import Path
from typing import Annotated, Any

import typer

from kdcli.registry import plugins

MODELS, DATA, OBJECTIVE, TRAINING = "Models", "Data", "Objective", "Training"
EVALUATION, OUTPUT, HARDWARE = "Evaluation", "Output", "Hardware"
GRID = "Grid"


def _flag(
    names: str, metavar: str, text: str, panel: str, default: str = "", *, hidden: bool = False, **more: Any
) -> Any:
    return typer.Option(
        *names.split(),
        metavar=metavar,
        help=f"{text} Default {default}." if default else text,
        rich_help_panel=panel,
        show_default=False,
        hidden=hidden,
        **more,
    )


def _code(names: str, metavar: str, text: str, panel: str, *, hidden: bool = False) -> Any:
    """Return a flag whose values name code that the command may run."""

    def permit(values: list[str] | None) -> list[str] | None:
        plugins.permit(values or ())
        return values

    return _flag(names, metavar, text, panel, hidden=hidden, callback=permit)


def _switch(name: str, text: str, panel: str, *, hidden: bool = False) -> Any:
    return typer.Option(name, metavar="", help=text, rich_help_panel=panel, show_default=False, hidden=hidden)


Text = str | None
Texts = list[str] | None

Teacher = Annotated[Text, _flag("--teacher", "MODEL", "Model folder or hub id.", MODELS)]
Student = Annotated[Text, _flag("--student", "MODEL", "Folder, hub id, or random:layers=3,..", MODELS)]
LocalTeacher = Annotated[Text, _flag("--local-teacher", "MODEL", "Of the server, to compare numbers.", MODELS)]
ServedTopK = Annotated[Text, _flag("--top-k", "N", "Tokens to ask of a server.", MODELS, hidden=True)]
MoreLora = Annotated[Text, _flag("--lora", "RANK", "As for kd distill.", MODELS, hidden=True)]
Lora = Annotated[Text, _flag("--lora", "RANK", "Train a LoRA adapter only; merged when saved.", MODELS)]

TeacherCache = Annotated[
    Text, _flag("--teacher-cache", "FOLDER", "Of kd cache, instead of running the teacher.", MODELS)
]
StudyCache = Annotated[Text, _flag("--teacher-cache", "FOLDER", "Run the teacher once: auto, none, a folder.", MODELS)]
Kind = Annotated[Text, _flag("--kind", "exact|compact", "Hidden states, or the likeliest tokens.", MODELS, "exact")]
StoreDtype = Annotated[
    Text, _flag("--store-dtype", "NAME", "auto (loses nothing), fp32, bf16, fp16, on disk.", MODELS, "auto")
]
TopK = Annotated[Text, _flag("--top-k", "N", "Tokens a compact cache keeps.", MODELS, "64")]

Source = Annotated[Text, _flag("--source", "SOURCE", "How it writes; see kd sources show teacher.", MODELS, "teacher")]
Count = Annotated[Text, _flag("--count", "N", "Texts without prompts, of prompts=bos.", DATA)]
Prompts = Annotated[Text, _flag("--data", "FILE", "Rows with prompts; their answers are not read.", DATA)]
Data = Annotated[Text, _flag("--data", "FILE", "Training rows: file, folder, hub id.", DATA)]
TestData = Annotated[Text, _flag("--data", "FILE", "Rows to evaluate on, as for kd distill.", DATA)]
EvalData = Annotated[Text, _flag("--eval-data", "FILE", "Held-out rows, measured after training.", DATA)]
Predictions = Annotated[
    Text, _flag("--predictions", "FILE", "JSONL of prediction and reference(s); no model is loaded.", DATA)
]
ServerUrl = Annotated[Text, _flag("--server-url", "URL", "Ask a server, as http://localhost:8000/v1.", MODELS)]
ServerModel = Annotated[Text, _flag("--server-model", "NAME", "Its model.", MODELS, "the only one it has")]
JudgeScores = Annotated[Text, _flag("--scores", "FILE", "JSONL of scores given elsewhere.", DATA)]
Columns = Annotated[Text, _flag("--columns", "NAME=COL,..", "Where names differ: prompt=question.", DATA)]
Template = Annotated[Text, _flag("--template", "NAME", "auto, chat, alpaca, plain, or a text.", DATA)]
MaxLength = Annotated[Text, _flag("--max-length", "N", "Tokens of a whole row.", DATA, "512")]
Limit = Annotated[Text, _flag("--limit", "N", "Use the first N rows.", DATA)]
SkipBad = Annotated[bool, _switch("--skip-bad", "Leave out rows that cannot be read.", DATA)]
MoreSkipBad = Annotated[bool, _switch("--skip-bad", "Leave out rows that cannot be read.", DATA, hidden=True)]
EvalLimit = Annotated[Text, _flag("--eval-limit", "N", "Use the first N held-out rows.", DATA, hidden=True)]

Loss = Annotated[Text, _flag("--loss", "OBJECTIVE", "As in akl or '0.5*ce+0.5*akl:mu=0.6'.", OBJECTIVE, "fkl")]
Baseline = Annotated[Text, _flag("--baseline", "OBJECTIVE", "Differences are taken to it.", OBJECTIVE, "the first")]

Epochs = Annotated[Text, _flag("--epochs", "X", "Passes over the rows.", TRAINING, "3")]
MaxSteps = Annotated[Text, _flag("--max-steps", "N", "Optimizer steps; overrides --epochs.", TRAINING)]
BatchSize = Annotated[Text, _flag("--batch-size", "N", "Sequences per optimizer step.", TRAINING, "8")]
Lr = Annotated[Text, _flag("--lr", "X", "Peak learning rate.", TRAINING, "0.0005")]
Seed = Annotated[Text, _flag("--seed", "N", "Order, first weights, dropout.", TRAINING, "0")]
Seeds = Annotated[Text, _flag("--seeds", "N,N,..", "Training seeds, for each objective.", TRAINING, "0")]
Resume = Annotated[Text, _flag("--resume", "auto|never", "auto goes on with what the folder holds.", OUTPUT)]

Contenders = Annotated[Text, _flag("--seeds", "N,N,..", "Training seeds of each contender.", GRID, "0")]
Reference = Annotated[Text, _flag("--baseline", "OBJECTIVE", "Differences are taken to it.", GRID, "the first")]
Scores = Annotated[Texts, _flag("--metric", "NAME,..", "Names of kd metrics list.", GRID)]
Vary = Annotated[Texts, _flag("--vary", "lr=X,Y", "Every value a contender; repeatable.", GRID)]
Tune = Annotated[Texts, _flag("--tune", "lr=X,Y", "Choose per objective on dev rows; --tune-by.", GRID)]
TuneBy = Annotated[Text, _flag("--tune-by", "SCORE", "What chooses; default the first.", GRID, hidden=True)]
TuneSeeds = Annotated[Text, _flag("--tune-seeds", "N,N,..", "They choose.", GRID, "as many, from 1000", hidden=True)]
DevData = Annotated[Text, _flag("--dev-data", "FILE", "Dev rows.", GRID, "a tenth of the training rows")]
FitData = Annotated[Text, _flag("--dev-data", "FILE", "Rows to fit temperatures on.", DATA)]
Jobs = Annotated[Text, _flag("--jobs", "N", "Cells at once, as processes.", GRID, "1")]
Executor = Annotated[Text, _flag("--executor", "NAME", "auto, inline, local, slurm, ray.", GRID, "auto")]
Slurm = Annotated[Text, _flag("--slurm", "NAME=X,..", "partition, time, gpus, cpus, mem_gb, ..", GRID)]
RayAddress = Annotated[Text, _flag("--ray-address", "ADDRESS", "A running cluster.", GRID, hidden=True)]
Gpus = Annotated[Text, _flag("--gpus", "N", "Processes, a GPU each.", HARDWARE, "1")]
Shard = Annotated[Text, _flag("--shard", "NAME", "ddp, or fsdp2, zero3: in shards.", HARDWARE, "ddp")]
GpuMemory = Annotated[Text, _flag("--gpu-memory", "SIZE", "Plan for GPUs that are not here: 80GiB.", HARDWARE)]
CellGpus = Annotated[Text, _flag("--gpus", "N", "GPUs of one cell.", GRID, "1")]

Status = Annotated[bool, _switch("--status", "How far a study's cells are; loads no model.", OUTPUT)]
To = Annotated[Text, _flag("--to", "FILE", "Write a study's table: .tex .md .csv .json .html", OUTPUT)]
Caption = Annotated[Text, _flag("--caption", "TEXT", "Caption of the exported table.", OUTPUT, hidden=True)]
Label = Annotated[Text, _flag("--label", "NAME", "LaTeX label of the exported table.", OUTPUT, hidden=True)]
Digits = Annotated[Text, _flag("--digits", "N", "Decimals in the exported table.", OUTPUT, hidden=True)]

Metric = Annotated[
    Texts,
    _flag("--metric", "NAME,..", "Names of kd metrics list.", EVALUATION),
]
Checkpointing = Annotated[bool, _switch("--gradient-checkpointing", "Less memory, more time.", TRAINING)]
EvalEvery = Annotated[Text, _flag("--eval-every", "N", "Steps between evaluations; best/ is kept.", TRAINING)]
SamplingSeeds = Annotated[Text, _flag("--sampling-seeds", "N,N,..", "One answer each.", EVALUATION, "10,20,30,40,50")]
MaxNewTokens = Annotated[Text, _flag("--max-new-tokens", "N", "Tokens per answer at most.", EVALUATION, "128")]
Protocol = Annotated[
    Text, _flag("--protocol", "NAME", "minillm, greedy or a YAML file; flags win over it.", EVALUATION)
]
RougeTokenizer = Annotated[
    Text, _flag("--rouge-tokenizer", "NAME", "words, or char for any script.", EVALUATION, "words")
]
Tasks = Annotated[Text, _flag("--tasks", "NAME,..", "Of lm-evaluation-harness, task files or folders.", EVALUATION)]
EdgeCosts = Annotated[bool, _switch("--edge", "Size, memory, speed and energy on this machine.", EVALUATION)]
MoreSeeds = Annotated[Text, _flag("--sampling-seeds", "N,N,..", "One answer each.", EVALUATION, hidden=True)]
MoreTokens = Annotated[Text, _flag("--max-new-tokens", "N", "Tokens per answer at most.", EVALUATION, hidden=True)]

Output = Annotated[Text, _flag("--output -o", "FOLDER", "Folder for everything the command writes.", OUTPUT)]
Config = Annotated[Texts, _flag("--config -c", "FILE", "Settings as YAML; a run's config.yaml is one.", OUTPUT)]
Sets = Annotated[Texts, _flag("--set", "KEY=VALUE", "Any setting, as train.clip=0.5; repeatable.", OUTPUT)]
Plugin = Annotated[Texts, _code("--plugin", "FILE", "Its code may run where a file or record names it.", OUTPUT)]
MorePlugin = Annotated[Texts, _code("--plugin", "FILE", "As for kd rerun.", OUTPUT, hidden=True)]
PushToHub = Annotated[Text, _flag("--push-to-hub", "ID", "Upload the student, last of all.", MODELS)]
DryRun = Annotated[bool, _switch("--dry-run", "Show plan and examples; write nothing.", OUTPUT)]
Json = Annotated[bool, _switch("--json", "Print the result as JSON.", OUTPUT)]
Quiet = Annotated[bool, _switch("--quiet", "Print the result only, no progress.", OUTPUT)]
Debug = Annotated[bool, typer.Option("--debug", help="Show tracebacks.", rich_help_panel=OUTPUT, hidden=True)]

Device = Annotated[Text, _flag("--device", "NAME", "auto, cpu, cuda, mps.", HARDWARE, "auto")]
Dtype = Annotated[Text, _flag("--dtype", "NAME", "auto, fp32, bf16, fp16.", HARDWARE, "auto")]
Threads = Annotated[Text, _flag("--threads", "N", "CPU threads.", HARDWARE, hidden=True)]
MatmulPrecision = Annotated[Text, _flag("--matmul-precision", "NAME", "highest, high, medium.", HARDWARE, hidden=True)]

MoreColumns = Annotated[Text, _flag("--columns", "NAME=COL,..", "As for kd distill.", DATA, hidden=True)]
MoreTemplate = Annotated[Text, _flag("--template", "NAME", "As for kd distill.", DATA, hidden=True)]
MoreLength = Annotated[Text, _flag("--max-length", "N", "As for kd distill.", DATA, hidden=True)]
MoreLimit = Annotated[Text, _flag("--limit", "N", "As for kd distill.", DATA, hidden=True)]
Verbose = Annotated[bool, _switch("--verbose", "All scores, costs and remarks.", OUTPUT)]
MoreQuiet = Annotated[bool, typer.Option("--quiet", help="No progress.", rich_help_panel=OUTPUT, hidden=True)]
MoreDevice = Annotated[Text, _flag("--device", "NAME", "As for kd distill.", HARDWARE, hidden=True)]
MoreDtype = Annotated[Text, _flag("--dtype", "NAME", "As for kd distill.", HARDWARE, hidden=True)]


def looks_like_folder(name: str) -> bool:
    """Whether an argument names a folder and not an objective."""
    return Path(name).is_dir() or ("/" in name.partition(":")[0] and ".py" not in name)
