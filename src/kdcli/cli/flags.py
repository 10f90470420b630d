"""Every flag, once: the same name means the same on all commands.

Flags are texts; the setting behind each one (``spelling.FLAGS``) gives it its type.
"""

from typing import Annotated, Any

import typer

from kdcli.spelling import ALIASES

MODELS, DATA, OBJECTIVE, TRAINING = "Models", "Data", "Objective", "Training"
EVALUATION, OUTPUT, HARDWARE = "Evaluation", "Output", "Hardware"


def _flag(names: str, metavar: str, text: str, panel: str, default: str = "", *, hidden: bool = False) -> Any:
    return typer.Option(
        *names.split(),
        metavar=metavar,
        help=f"{text} Default {default}." if default else text,
        rich_help_panel=panel,
        show_default=False,
        hidden=hidden,
    )


def _switch(name: str, text: str, panel: str) -> Any:
    return typer.Option(name, metavar="", help=text, rich_help_panel=panel, show_default=False)


Text = str | None
Texts = list[str] | None

Teacher = Annotated[Text, _flag("--teacher", "MODEL", "Model folder or hub id.", MODELS)]
Student = Annotated[Text, _flag("--student", "MODEL", "Folder, hub id, or random:layers=3,width=64,heads=4.", MODELS)]

Data = Annotated[Text, _flag("--data", "FILE", "Training rows: file, folder, hub id.", DATA)]
TestData = Annotated[Text, _flag("--data", "FILE", "Rows to evaluate on, as for kd distill.", DATA)]
EvalData = Annotated[Text, _flag("--eval-data", "FILE", "Held-out rows, measured after training.", DATA)]
Predictions = Annotated[
    Text, _flag("--predictions", "FILE", "JSONL of prediction and reference(s); no model is loaded.", DATA)
]
Columns = Annotated[Text, _flag("--columns", "NAME=COL,..", "Where names differ: prompt=question.", DATA)]
Template = Annotated[Text, _flag("--template", "NAME", "auto, chat, alpaca, plain, or a text.", DATA)]
MaxLength = Annotated[Text, _flag("--max-length", "N", "Tokens of a whole row.", DATA, "512")]
Limit = Annotated[Text, _flag("--limit", "N", "Use the first N rows.", DATA)]
EvalLimit = Annotated[Text, _flag("--eval-limit", "N", "Use the first N held-out rows.", DATA, hidden=True)]

Loss = Annotated[Text, _flag("--loss", "OBJECTIVE", "As in akl or '0.5*ce+0.5*akl:mu=0.6'.", OBJECTIVE, "fkl")]
Baseline = Annotated[Text, _flag("--baseline", "OBJECTIVE", "Differences are taken to it.", OBJECTIVE, "the first")]

Epochs = Annotated[Text, _flag("--epochs", "X", "Passes over the rows.", TRAINING, "3")]
MaxSteps = Annotated[Text, _flag("--max-steps", "N", "Optimizer steps; overrides --epochs.", TRAINING)]
BatchSize = Annotated[Text, _flag("--batch-size", "N", "Sequences per optimizer step.", TRAINING, "8")]
Lr = Annotated[Text, _flag("--lr", "X", "Peak learning rate.", TRAINING, "0.0005")]
Seed = Annotated[Text, _flag("--seed", "N", "Order, initialisation, dropout.", TRAINING, "0")]
Seeds = Annotated[Text, _flag("--seeds", "N,N,..", "Training seeds, for each objective.", TRAINING, "0")]
Resume = Annotated[Text, _flag("--resume", "auto|never", "auto goes on with what the folder holds.", OUTPUT)]

Metric = Annotated[
    Texts,
    _flag("--metric", "NAME,..", "Names of kd metrics list.", EVALUATION),
]
SamplingSeeds = Annotated[Text, _flag("--sampling-seeds", "N,N,..", "One answer each.", EVALUATION, "10,20,30,40,50")]
MaxNewTokens = Annotated[Text, _flag("--max-new-tokens", "N", "Tokens per answer at most.", EVALUATION, "128")]
MoreSeeds = Annotated[Text, _flag("--sampling-seeds", "N,N,..", "One answer each.", EVALUATION, hidden=True)]
MoreTokens = Annotated[Text, _flag("--max-new-tokens", "N", "Tokens per answer at most.", EVALUATION, hidden=True)]

Output = Annotated[Text, _flag("--output -o", "FOLDER", "Folder for everything the command writes.", OUTPUT)]
Config = Annotated[Texts, _flag("--config -c", "FILE", "Settings as YAML; a run's config.yaml is one.", OUTPUT)]
Sets = Annotated[Texts, _flag("--set", "KEY=VALUE", "Any setting, as train.clip=0.5; repeatable.", OUTPUT)]
DryRun = Annotated[bool, _switch("--dry-run", "Show plan and examples; write nothing.", OUTPUT)]
Json = Annotated[bool, _switch("--json", "Print the result as JSON.", OUTPUT)]
Quiet = Annotated[bool, _switch("--quiet", "Print the result only, no progress.", OUTPUT)]
Debug = Annotated[bool, typer.Option("--debug", help="Show tracebacks.", rich_help_panel=OUTPUT, hidden=True)]

Device = Annotated[Text, _flag("--device", "NAME", "auto, cpu, cuda, mps.", HARDWARE, "auto")]
Dtype = Annotated[Text, _flag("--dtype", "NAME", "auto, fp32, bf16, fp16.", HARDWARE, "auto")]
Threads = Annotated[Text, _flag("--threads", "N", "CPU threads.", HARDWARE, hidden=True)]
MatmulPrecision = Annotated[Text, _flag("--matmul-precision", "NAME", "highest, high, medium.", HARDWARE, hidden=True)]


def canonical(token: str) -> str:
    """Return the spelling of a flag or command that we declare, for any that users type.

    >>> canonical("batch_size"), canonical("learning_rate"), canonical("output-dir")
    ('batch-size', 'lr', 'output')
    """
    snake = token.replace("-", "_")
    return ALIASES.get(snake, snake).replace("_", "-") if len(token) > 1 else token
