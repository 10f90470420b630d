"""The flags of every command that has settings. Written by docs/generate.py from config/schema.py."""

from typing import Annotated

from kdcli.cli import switches
from kdcli.cli.switches import Run, Text, Texts, argument, flag, switch

Teacher = Annotated[Text, flag("--teacher", "MODEL", "Model folder or hub id.", "Models")]
TeacherCache = Annotated[
    Text, flag("--teacher-cache", "FOLDER", "Folder of kd cache, in place of a teacher.", "Models")
]
Student = Annotated[Text, flag("--student", "MODEL", "Folder, hub id, cut:.., random:.., tiny:..", "Models")]
Lora = Annotated[Text, flag("--lora", "RANK", "Train a LoRA adapter only; merged when saved.", "Models")]
Data = Annotated[Text, flag("--data", "FILE", "Training rows: file, folder, hub id.", "Data")]
EvalData = Annotated[Text, flag("--eval-data", "FILE", "Held-out rows, measured after training.", "Data")]
Columns = Annotated[Text, flag("--columns", "NAME=COL,..", "Names of your columns: prompt=question.", "Data")]
Template = Annotated[Text, flag("--template", "NAME", "auto, chat, alpaca, plain, or a text.", "Data")]
MaxLength = Annotated[Text, flag("--max-length", "N", "Tokens of a whole row. Default 512.", "Data")]
Limit = Annotated[Text, flag("--limit", "N", "Use the first N rows.", "Data")]
EvalLimit = Annotated[Text, flag("--eval-limit", "N", "Use the first N held-out rows.", "Data", hidden=True)]
SkipBad = Annotated[bool, switch("--skip-bad", "Leave out rows that cannot be read.", "Data", hidden=True)]
Task = Annotated[
    Text, flag("--task", "NAME", "class or text; auto: as the student is. Default auto.", "Data", hidden=True)
]
Loss = Annotated[Text, flag("--loss", "OBJECTIVE", "As in akl or '0.5*ce+0.5*akl:mu=0.6'. Default fkl.", "Objective")]
Epochs = Annotated[Text, flag("--epochs", "X", "Passes over the rows. Default 3.", "Training")]
MaxSteps = Annotated[Text, flag("--max-steps", "N", "Optimizer steps; overrides --epochs.", "Training")]
BatchSize = Annotated[Text, flag("--batch-size", "N", "Sequences per optimizer step. Default 8.", "Training")]
Lr = Annotated[Text, flag("--lr", "X", "Peak learning rate. Default 0.0005.", "Training")]
Seed = Annotated[Text, flag("--seed", "N", "Seed: order, init, dropout. Default 0.", "Training")]
GradientCheckpointing = Annotated[
    bool, switch("--gradient-checkpointing", "Recompute activations to save memory.", "Training")
]
KeepZeros = Annotated[bool, switch("--keep-zeros", "Weights that are 0 stay 0.", "Training", hidden=True)]
EvalEvery = Annotated[Text, flag("--eval-every", "N", "Steps between evaluations; best/ is kept.", "Training")]
Metric = Annotated[Texts, flag("--metric", "NAME,..", "Metrics; see kd metrics list.", "Evaluation")]
MaxNewTokens = Annotated[
    Text, flag("--max-new-tokens", "N", "Tokens per answer at most. Default 128.", "Evaluation", hidden=True)
]
SamplingSeeds = Annotated[
    Text, flag("--sampling-seeds", "N,N,..", "One answer a seed. Default 10,20,30,40,50.", "Evaluation", hidden=True)
]
ReportTo = Annotated[Text, flag("--report-to", "NAME,..", "Trackers, such as wandb.", "Output", hidden=True)]
Output = Annotated[Text, flag("--output -o", "FOLDER", "Folder for everything the command writes.", "Output")]
Device = Annotated[Text, flag("--device", "NAME", "auto, cpu, cuda, mps. Default auto.", "Hardware")]
Dtype = Annotated[Text, flag("--dtype", "NAME", "auto, fp32, bf16, fp16. Default auto.", "Hardware")]
Threads = Annotated[Text, flag("--threads", "N", "CPU threads.", "Hardware", hidden=True)]
Gpus = Annotated[Text, flag("--gpus", "N", "Processes, a GPU each. Default 1.", "Hardware")]
Shard = Annotated[Text, flag("--shard", "NAME", "ddp, or fsdp2, zero3: in shards. Default ddp.", "Hardware")]
MatmulPrecision = Annotated[
    Text, flag("--matmul-precision", "NAME", "highest, high, medium. Default highest.", "Hardware", hidden=True)
]
Losses = Annotated[Texts, argument("OBJECTIVE|RUN|STUDY", "Objectives, a study, or runs and models.")]
TeacherCacheCompare = Annotated[
    Text, flag("--teacher-cache", "FOLDER", "Run the teacher once: auto, none, a folder.", "Models")
]
LoraCompare = Annotated[
    Text, flag("--lora", "RANK", "Train a LoRA adapter only; merged when saved.", "Models", hidden=True)
]
TemplateCompare = Annotated[
    Text, flag("--template", "NAME", "auto, chat, alpaca, plain, or a text.", "Data", hidden=True)
]
MaxLengthCompare = Annotated[
    Text, flag("--max-length", "N", "Tokens of a whole row. Default 512.", "Data", hidden=True)
]
LimitCompare = Annotated[Text, flag("--limit", "N", "Use the first N rows.", "Data", hidden=True)]
Baseline = Annotated[Text, flag("--baseline", "OBJECTIVE", "Base of the differences. Default the first.", "Grid")]
Seeds = Annotated[Text, flag("--seeds", "N,N,..", "Training seeds, or a range as 0-2. Default 0.", "Grid")]
Vary = Annotated[Texts, flag("--vary", "lr=X,Y", "Every value a line; also student=A,B.", "Grid")]
Tune = Annotated[Texts, flag("--tune", "lr=X,Y", "Choose per objective on dev rows; --tune-by.", "Grid")]
DevData = Annotated[Text, flag("--dev-data", "FILE", "Dev rows. Default a tenth of the training rows.", "Grid")]
Jobs = Annotated[Text, flag("--jobs", "N", "Runs at once, as processes. Default 1.", "Grid")]
Executor = Annotated[Text, flag("--executor", "NAME", "auto, inline, local, slurm, ray. Default auto.", "Grid")]
Slurm = Annotated[Text, flag("--slurm", "NAME=X,..", "partition, time, gpus, cpus, mem_gb, ..", "Grid")]
GpusCompare = Annotated[Text, flag("--gpus", "N", "GPUs of one run. Default 1.", "Grid")]
TuneBy = Annotated[Text, flag("--tune-by", "SCORE", "Score that chooses; default the first.", "Grid", hidden=True)]
TuneSeeds = Annotated[
    Text, flag("--tune-seeds", "N,N,..", "Seeds to choose with. Default as many, from 1000.", "Grid", hidden=True)
]
MetricCompare = Annotated[Texts, flag("--metric", "NAME,..", "Metrics; see kd metrics list.", "Grid")]
RayAddress = Annotated[Text, flag("--ray-address", "ADDRESS", "A running cluster.", "Grid", hidden=True)]
ColumnsCompare = Annotated[Text, flag("--columns", "SCORE,..", "Scores to show. Of rows: prompt=question.", "Table")]
DeviceCompare = Annotated[
    Text, flag("--device", "NAME", "auto, cpu, cuda, mps. Default auto.", "Hardware", hidden=True)
]
DtypeCompare = Annotated[
    Text, flag("--dtype", "NAME", "auto, fp32, bf16, fp16. Default auto.", "Hardware", hidden=True)
]
Model = Annotated[Text, argument("RUN_OR_MODEL", "Run folder, model folder or hub id.")]
ServerUrl = Annotated[Text, flag("--server-url", "URL", "Ask a server, as http://localhost:8000/v1.", "Models")]
ServerModel = Annotated[Text, flag("--server-model", "NAME", "Its model. Default the only one it has.", "Models")]
DataEval = Annotated[Text, flag("--data", "FILE", "Rows to evaluate on, as for kd distill.", "Data")]
DevDataEval = Annotated[Text, flag("--dev-data", "FILE", "Rows to fit temperatures on.", "Data")]
Predictions = Annotated[
    Text, flag("--predictions", "FILE", "JSONL of prediction and reference(s); no model is loaded.", "Data")
]
SkipBadEval = Annotated[bool, switch("--skip-bad", "Leave out rows that cannot be read.", "Data")]
Protocol = Annotated[
    Text, flag("--protocol", "NAME", "minillm, greedy or a YAML file; flags win over it.", "Evaluation")
]
Tasks = Annotated[Text, flag("--tasks", "NAME,..", "Of lm-evaluation-harness, task files or folders.", "Evaluation")]
Edge = Annotated[bool, switch("--edge", "Size, memory, speed, energy here.", "Evaluation")]
Palette = Annotated[Text, flag("--palette", "N", "N sizes of a supernet: perplexity, speed.", "Evaluation")]
RougeTokenizer = Annotated[
    Text, flag("--rouge-tokenizer", "NAME", "words, or char for any script. Default words.", "Evaluation")
]
SamplingSeedsEval = Annotated[
    Text, flag("--sampling-seeds", "N,N,..", "One answer a seed. Default 10,20,30,40,50.", "Evaluation")
]
MaxNewTokensEval = Annotated[
    Text, flag("--max-new-tokens", "N", "Tokens per answer at most. Default 128.", "Evaluation")
]
Answers = Annotated[Text, argument("RUN_OR_ANSWERS", "Run, evaluation folder or JSONL of answers.")]
Scores = Annotated[Text, flag("--scores", "FILE", "JSONL of scores given elsewhere.", "Data")]
Kind = Annotated[
    Text, flag("--kind", "exact|compact", "Hidden states, or the likeliest tokens. Default exact.", "Models")
]
StoreDtype = Annotated[
    Text, flag("--store-dtype", "NAME", "auto (loses nothing), fp32, bf16, fp16, on disk. Default auto.", "Models")
]
TopK = Annotated[Text, flag("--top-k", "N", "Tokens a compact cache keeps. Default 64.", "Models")]
Source = Annotated[
    Text, flag("--source", "SOURCE", "Decoding; see kd sources show teacher. Default teacher.", "Models")
]
DataGenerate = Annotated[Text, flag("--data", "FILE", "Rows with prompts; their answers are not read.", "Data")]
Count = Annotated[Text, flag("--count", "N", "Texts to generate with prompts=bos.", "Data")]
Feedback = Annotated[Text, flag("--feedback", "FILE", "Rows that prompts show, at {feedback} of --template.", "Data")]
Shots = Annotated[Text, flag("--shots", "N", "Rows of --feedback a prompt shows. Default 4.", "Data")]
Into = Annotated[
    Text, flag("--into", "NAME", "answers, or rows: an answer holds new rows. Default answers.", "Objective")
]
StudentStudent = Annotated[Text, argument("SPEC", "What is made: cut:layers=2,by=influence or random:layers=3,..")]
Pick = Annotated[Text, flag("--pick", "WHAT", "Of a supernet: params<=N, or width=X,depth=X.", "Models")]
SeedStudent = Annotated[Text, flag("--seed", "N", "Of random: weights. Default 0.", "Models")]
DataStudent = Annotated[Text, flag("--data", "FILE", "Rows that scores and zeros are measured on.", "Data")]
OutputStudent = Annotated[Text, flag("--output -o", "FOLDER", "The student's folder.", "Output")]
Widths = Annotated[Text, flag("--widths", "X,..,1", "Shares of heads, units, dimensions. Default 0.5,1.0.", "Models")]
Depths = Annotated[Text, flag("--depths", "X,..,1", "Shares of the layers. Default 1.0.", "Models")]
By = Annotated[Text, flag("--by", "SCORE", "Score that orders what a width keeps. Default magnitude.", "Models")]
LossSupernet = Annotated[
    Text, flag("--loss", "OBJECTIVE", "What smaller sizes learn from the largest. Default fkl.", "Objective")
]
Update = Annotated[Text, flag("--update", "full|low-rank", "All weights, or low-rank pairs. Default full.", "Training")]
Rank = Annotated[Text, flag("--rank", "N", "Of low-rank pairs. Default 8.", "Training")]
Sizes = Annotated[Text, flag("--sizes", "N", "Sizes trained in a step. Default 4.", "Training")]
Gamma = Annotated[Text, flag("--gamma", "X", "Power of a smaller size's gradient scale. Default 0.5.", "Training")]
DataExport = Annotated[Text, flag("--data", "FILE", "Rows that the exported model is measured on.", "Data")]
To = Annotated[Text, flag("--to", "FORMAT", "gguf[:q8_0|q4_0], onnx[:int8|int4], safetensors:int8.", "Output")]
OutputExport = Annotated[Text, flag("--output -o", "FOLDER", "The exported model's folder.", "Output")]
LocalTeacher = Annotated[Text, flag("--local-teacher", "MODEL", "Local copy of a served model, to compare.", "Models")]
TopKDoctor = Annotated[Text, flag("--top-k", "N", "Tokens to ask of a server. Default 20.", "Models", hidden=True)]
DataDataCheck = Annotated[Text, argument("FILE", "Rows: file, folder, hub id.")]
StudentDataCheck = Annotated[Text, flag("--student", "MODEL", "Count its tokens, and show its template.", "Models")]
StudentDataScore = Annotated[Text, flag("--student", "MODEL", "Model folder or hub id.", "Models")]
DataDataScore = Annotated[Text, flag("--data", "FILE", "Rows: file, folder, hub id.", "Data")]
EvalDataDataScore = Annotated[Text, flag("--eval-data", "FILE", "Held-out rows, for scores that read them.", "Data")]
EvalLimitDataScore = Annotated[Text, flag("--eval-limit", "N", "Use the first N held-out rows.", "Data")]
ByDataScore = Annotated[
    Texts, flag("--by", "SCORE", "As nll or nll:of=teacher, see kd scores; repeatable.", "Objective")
]
Keep = Annotated[Text, flag("--keep", "X", "Keep this share, of the highest first score.", "Objective")]
Low = Annotated[Text, flag("--low", "X", "Keep ranks from X on, 0 the lowest score.", "Objective")]
High = Annotated[Text, flag("--high", "X", "Keep ranks below X, 1 the highest score.", "Objective")]
Mark = Annotated[bool, switch("--mark", "Keep all rows; ranks kept get teacher_trust 1, others 0.", "Objective")]
ByDataSplit = Annotated[
    Text, flag("--by", "HOW", "iid, column:by=NAME, dirichlet:alpha=.3,by=NAME. Default iid.", "Objective")
]
Parts = Annotated[Text, flag("--parts", "N", "Number of parts, or shares as 0.8,0.1,0.1.", "Objective")]
SeedDataSplit = Annotated[Text, flag("--seed", "N", "Of the draw. Default 0.", "Objective")]
ByDataBalance = Annotated[Text, flag("--by", "COLUMN", "Column whose values are balanced.", "Objective")]
Policy = Annotated[Text, flag("--policy", "NAME", "natural, balanced, adaptive. Default adaptive.", "Objective")]
Stage = Annotated[Text, flag("--stage", "K/N", "As in 3/5. Default 1/1.", "Objective")]
Budget = Annotated[Text, flag("--budget", "N", "Rows of all stages together.", "Objective")]
Score = Annotated[Text, flag("--score", "NAME", "Of the rows' scores: highest first, from stage 2 on.", "Objective")]
Before = Annotated[Texts, flag("--before", "FOLDER", "Of an earlier stage; repeatable.", "Objective")]
Tail = Annotated[
    Text, flag("--tail", "NAME", "Too few rows of a value: repeat, leave, write. Default repeat.", "Objective")
]
ShotsDataBalance = Annotated[Text, flag("--shots", "N", "Rows of a value that a prompt shows. Default 4.", "Objective")]
Tries = Annotated[Text, flag("--tries", "N", "Times that missing rows are asked for. Default 3.", "Objective")]
ByDataRationales = Annotated[
    Text, flag("--by", "HOW", "grad, grad_x_input, ig, occlusion, or a control. Default grad_x_input.", "Objective")
]
Words = Annotated[Text, flag("--words", "N", "Words of a rationale. Default 5.", "Objective")]
IntoDataRationales = Annotated[Text, flag("--into", "NAME", "tasks, target or input. Default tasks.", "Objective")]
HintDropout = Annotated[
    Text, flag("--hint-dropout", "X", "Share of rows without one, with --into input. Default 0.5.", "Objective")
]
SeedDataRationales = Annotated[Text, flag("--seed", "N", "Of the dropout. Default 0.", "Objective")]
EvalDataFederate = Annotated[Text, flag("--eval-data", "FILE", "Held-out rows, measured after every round.", "Data")]
Clients = Annotated[Text, flag("--clients", "N", "Number of clients.", "Federation")]
Split = Annotated[
    Text, flag("--split", "HOW", "iid, dirichlet:alpha=.3,by=NAME, column:by=NAME. Default iid.", "Federation")
]
Rounds = Annotated[Text, flag("--rounds", "N", "Rounds. Default 10.", "Federation")]
Server = Annotated[
    Text, flag("--server", "NAME", "fedavg, fedavgm, fedadam:eta=.03, fedadamw. Default fedavg.", "Federation")
]
LoraMean = Annotated[
    Text, flag("--lora-mean", "NAME", "factors, product, freeze_a, exact. Default factors.", "Federation")
]
Weigh = Annotated[Text, flag("--weigh", "NAME", "Clients count by rows or tokens. Default rows.", "Federation")]
Fraction = Annotated[Text, flag("--fraction", "X", "Share of the clients of a round. Default 1.", "Federation")]
Drop = Annotated[Text, flag("--drop", "X", "Probability that a client is lost. Default 0.", "Federation")]
Bandwidth = Annotated[Text, flag("--bandwidth", "MBPS", "Megabits per second of a client's link.", "Federation")]
EpochsFederate = Annotated[
    Text, flag("--epochs", "X", "Passes of a client over its rows, each round. Default 3.", "Training")
]
MaxStepsFederate = Annotated[Text, flag("--max-steps", "N", "Optimizer steps of a client, each round.", "Training")]
SeedFederate = Annotated[Text, flag("--seed", "N", "Seed: split, order, init, who takes part. Default 0.", "Training")]


def distill(run: Run) -> Run:
    """Return ``kd distill``, which calls ``run`` with the settings as typed and the switches by name."""

    def command(
        teacher: Teacher = None,
        teacher_cache: TeacherCache = None,
        student: Student = None,
        lora: Lora = None,
        data: Data = None,
        eval_data: EvalData = None,
        columns: Columns = None,
        template: Template = None,
        max_length: MaxLength = None,
        limit: Limit = None,
        eval_limit: EvalLimit = None,
        skip_bad: SkipBad = False,
        task: Task = None,
        loss: Loss = None,
        epochs: Epochs = None,
        max_steps: MaxSteps = None,
        batch_size: BatchSize = None,
        lr: Lr = None,
        seed: Seed = None,
        gradient_checkpointing: GradientCheckpointing = False,
        keep_zeros: KeepZeros = False,
        eval_every: EvalEvery = None,
        metric: Metric = None,
        max_new_tokens: MaxNewTokens = None,
        sampling_seeds: SamplingSeeds = None,
        report_to: ReportTo = None,
        output: Output = None,
        device: Device = None,
        dtype: Dtype = None,
        threads: Threads = None,
        gpus: Gpus = None,
        shard: Shard = None,
        matmul_precision: MatmulPrecision = None,
        resume: switches.Resume = None,
        push_to_hub: switches.PushToHub = None,
        config: switches.Config = None,
        sets: switches.Sets = None,
        plugin: switches.HiddenPlugin = None,
        dry_run: switches.DryRun = False,
        json: switches.Json = False,
        quiet: switches.Quiet = False,
        debug: switches.Debug = False,
    ) -> None:
        typed = {
            "teacher": teacher, "teacher_cache": teacher_cache, "student": student, "lora": lora, "data": data,
            "eval_data": eval_data, "columns": columns, "template": template, "max_length": max_length, "limit": limit,
            "eval_limit": eval_limit, "skip_bad": skip_bad, "task": task, "loss": loss, "epochs": epochs,
            "max_steps": max_steps, "batch_size": batch_size, "lr": lr, "seed": seed,
            "gradient_checkpointing": gradient_checkpointing, "keep_zeros": keep_zeros, "eval_every": eval_every,
            "metric": metric, "max_new_tokens": max_new_tokens, "sampling_seeds": sampling_seeds,
            "report_to": report_to, "output": output, "device": device, "dtype": dtype, "threads": threads,
            "gpus": gpus, "shard": shard, "matmul_precision": matmul_precision,
        }  # fmt: skip
        run(
            typed,
            resume=resume,
            push_to_hub=push_to_hub,
            config=config,
            sets=sets,
            dry_run=dry_run,
            json=json,
            quiet=quiet,
        )

    command.__doc__ = run.__doc__
    return command


def plan(run: Run) -> Run:
    """Return ``kd plan``, which calls ``run`` with the settings as typed and the switches by name."""

    def command(
        teacher: Teacher = None,
        teacher_cache: TeacherCache = None,
        student: Student = None,
        lora: Lora = None,
        data: Data = None,
        eval_data: EvalData = None,
        columns: Columns = None,
        template: Template = None,
        max_length: MaxLength = None,
        limit: Limit = None,
        eval_limit: EvalLimit = None,
        skip_bad: SkipBad = False,
        task: Task = None,
        loss: Loss = None,
        epochs: Epochs = None,
        max_steps: MaxSteps = None,
        batch_size: BatchSize = None,
        lr: Lr = None,
        seed: Seed = None,
        gradient_checkpointing: GradientCheckpointing = False,
        keep_zeros: KeepZeros = False,
        eval_every: EvalEvery = None,
        metric: Metric = None,
        max_new_tokens: MaxNewTokens = None,
        sampling_seeds: SamplingSeeds = None,
        report_to: ReportTo = None,
        output: Output = None,
        device: Device = None,
        dtype: Dtype = None,
        threads: Threads = None,
        gpus: Gpus = None,
        shard: Shard = None,
        matmul_precision: MatmulPrecision = None,
        push_to_hub: switches.PushToHub = None,
        config: switches.Config = None,
        sets: switches.Sets = None,
        plugin: switches.HiddenPlugin = None,
        json: switches.Json = False,
        quiet: switches.Quiet = False,
        debug: switches.Debug = False,
        gpu_memory: switches.GpuMemory = None,
    ) -> None:
        typed = {
            "teacher": teacher, "teacher_cache": teacher_cache, "student": student, "lora": lora, "data": data,
            "eval_data": eval_data, "columns": columns, "template": template, "max_length": max_length, "limit": limit,
            "eval_limit": eval_limit, "skip_bad": skip_bad, "task": task, "loss": loss, "epochs": epochs,
            "max_steps": max_steps, "batch_size": batch_size, "lr": lr, "seed": seed,
            "gradient_checkpointing": gradient_checkpointing, "keep_zeros": keep_zeros, "eval_every": eval_every,
            "metric": metric, "max_new_tokens": max_new_tokens, "sampling_seeds": sampling_seeds,
            "report_to": report_to, "output": output, "device": device, "dtype": dtype, "threads": threads,
            "gpus": gpus, "shard": shard, "matmul_precision": matmul_precision,
        }  # fmt: skip
        run(typed, push_to_hub=push_to_hub, config=config, sets=sets, json=json, quiet=quiet, gpu_memory=gpu_memory)

    command.__doc__ = run.__doc__
    return command


def compare(run: Run) -> Run:
    """Return ``kd compare``, which calls ``run`` with the settings as typed and the switches by name."""

    def command(
        losses: Losses = None,
        teacher: Teacher = None,
        teacher_cache: TeacherCacheCompare = None,
        student: Student = None,
        lora: LoraCompare = None,
        data: Data = None,
        eval_data: EvalData = None,
        template: TemplateCompare = None,
        max_length: MaxLengthCompare = None,
        limit: LimitCompare = None,
        eval_limit: EvalLimit = None,
        skip_bad: SkipBad = False,
        task: Task = None,
        baseline: Baseline = None,
        seeds: Seeds = None,
        vary: Vary = None,
        tune: Tune = None,
        dev_data: DevData = None,
        jobs: Jobs = None,
        executor: Executor = None,
        slurm: Slurm = None,
        gpus: GpusCompare = None,
        tune_by: TuneBy = None,
        tune_seeds: TuneSeeds = None,
        metric: MetricCompare = None,
        ray_address: RayAddress = None,
        epochs: Epochs = None,
        max_steps: MaxSteps = None,
        batch_size: BatchSize = None,
        lr: Lr = None,
        keep_zeros: KeepZeros = False,
        max_new_tokens: MaxNewTokens = None,
        sampling_seeds: SamplingSeeds = None,
        report_to: ReportTo = None,
        output: Output = None,
        columns: ColumnsCompare = None,
        device: DeviceCompare = None,
        dtype: DtypeCompare = None,
        threads: Threads = None,
        matmul_precision: MatmulPrecision = None,
        config: switches.Config = None,
        sets: switches.Sets = None,
        plugin: switches.HiddenPlugin = None,
        dry_run: switches.DryRun = False,
        json: switches.Json = False,
        quiet: switches.HiddenQuiet = False,
        verbose: switches.Verbose = False,
        debug: switches.Debug = False,
        status: switches.Status = False,
        by: switches.By = None,
        to: switches.To = None,
        layout: switches.Layout = None,
        titles: switches.Titles = None,
        digits: switches.Digits = None,
        caption: switches.Caption = None,
        label: switches.Label = None,
    ) -> None:
        typed = {
            "losses": losses, "teacher": teacher, "teacher_cache": teacher_cache, "student": student, "lora": lora,
            "data": data, "eval_data": eval_data, "template": template, "max_length": max_length, "limit": limit,
            "eval_limit": eval_limit, "skip_bad": skip_bad, "task": task, "baseline": baseline, "seeds": seeds,
            "vary": vary, "tune": tune, "dev_data": dev_data, "jobs": jobs, "executor": executor, "slurm": slurm,
            "gpus": gpus, "tune_by": tune_by, "tune_seeds": tune_seeds, "metric": metric, "ray_address": ray_address,
            "epochs": epochs, "max_steps": max_steps, "batch_size": batch_size, "lr": lr, "keep_zeros": keep_zeros,
            "max_new_tokens": max_new_tokens, "sampling_seeds": sampling_seeds, "report_to": report_to,
            "output": output, "columns": columns, "device": device, "dtype": dtype, "threads": threads,
            "matmul_precision": matmul_precision,
        }  # fmt: skip
        run(
            typed,
            config=config,
            sets=sets,
            dry_run=dry_run,
            json=json,
            quiet=quiet,
            verbose=verbose,
            status=status,
            by=by,
            to=to,
            layout=layout,
            titles=titles,
            digits=digits,
            caption=caption,
            label=label,
        )

    command.__doc__ = run.__doc__
    return command


def eval(run: Run) -> Run:
    """Return ``kd eval``, which calls ``run`` with the settings as typed and the switches by name."""

    def command(
        model: Model = None,
        teacher: Teacher = None,
        server_url: ServerUrl = None,
        server_model: ServerModel = None,
        data: DataEval = None,
        dev_data: DevDataEval = None,
        predictions: Predictions = None,
        columns: Columns = None,
        template: Template = None,
        max_length: MaxLength = None,
        limit: Limit = None,
        skip_bad: SkipBadEval = False,
        protocol: Protocol = None,
        metric: Metric = None,
        tasks: Tasks = None,
        edge: Edge = False,
        palette: Palette = None,
        rouge_tokenizer: RougeTokenizer = None,
        sampling_seeds: SamplingSeedsEval = None,
        max_new_tokens: MaxNewTokensEval = None,
        output: Output = None,
        device: Device = None,
        dtype: Dtype = None,
        threads: Threads = None,
        matmul_precision: MatmulPrecision = None,
        config: switches.Config = None,
        sets: switches.Sets = None,
        plugin: switches.HiddenPlugin = None,
        json: switches.Json = False,
        quiet: switches.Quiet = False,
        debug: switches.Debug = False,
    ) -> None:
        typed = {
            "model": model, "teacher": teacher, "server_url": server_url, "server_model": server_model, "data": data,
            "dev_data": dev_data, "predictions": predictions, "columns": columns, "template": template,
            "max_length": max_length, "limit": limit, "skip_bad": skip_bad, "protocol": protocol, "metric": metric,
            "tasks": tasks, "edge": edge, "palette": palette, "rouge_tokenizer": rouge_tokenizer,
            "sampling_seeds": sampling_seeds, "max_new_tokens": max_new_tokens, "output": output, "device": device,
            "dtype": dtype, "threads": threads, "matmul_precision": matmul_precision,
        }  # fmt: skip
        run(typed, config=config, sets=sets, json=json, quiet=quiet)

    command.__doc__ = run.__doc__
    return command


def judge(run: Run) -> Run:
    """Return ``kd judge``, which calls ``run`` with the settings as typed and the switches by name."""

    def command(
        answers: Answers = None,
        scores: Scores = None,
        server_url: ServerUrl = None,
        server_model: ServerModel = None,
        output: Output = None,
        config: switches.Config = None,
        sets: switches.Sets = None,
        json: switches.Json = False,
        quiet: switches.Quiet = False,
        debug: switches.Debug = False,
    ) -> None:
        typed = {
            "answers": answers, "scores": scores, "server_url": server_url, "server_model": server_model,
            "output": output,
        }  # fmt: skip
        run(typed, config=config, sets=sets, json=json, quiet=quiet)

    command.__doc__ = run.__doc__
    return command


def cache(run: Run) -> Run:
    """Return ``kd cache``, which calls ``run`` with the settings as typed and the switches by name."""

    def command(
        teacher: Teacher = None,
        student: Student = None,
        kind: Kind = None,
        store_dtype: StoreDtype = None,
        top_k: TopK = None,
        data: Data = None,
        eval_data: EvalData = None,
        columns: Columns = None,
        template: Template = None,
        max_length: MaxLength = None,
        limit: Limit = None,
        eval_limit: EvalLimit = None,
        skip_bad: SkipBadEval = False,
        output: Output = None,
        device: Device = None,
        dtype: Dtype = None,
        threads: Threads = None,
        matmul_precision: MatmulPrecision = None,
        config: switches.Config = None,
        sets: switches.Sets = None,
        dry_run: switches.DryRun = False,
        json: switches.Json = False,
        quiet: switches.Quiet = False,
        debug: switches.Debug = False,
    ) -> None:
        typed = {
            "teacher": teacher, "student": student, "kind": kind, "store_dtype": store_dtype, "top_k": top_k,
            "data": data, "eval_data": eval_data, "columns": columns, "template": template, "max_length": max_length,
            "limit": limit, "eval_limit": eval_limit, "skip_bad": skip_bad, "output": output, "device": device,
            "dtype": dtype, "threads": threads, "matmul_precision": matmul_precision,
        }  # fmt: skip
        run(typed, config=config, sets=sets, dry_run=dry_run, json=json, quiet=quiet)

    command.__doc__ = run.__doc__
    return command


def generate(run: Run) -> Run:
    """Return ``kd generate``, which calls ``run`` with the settings as typed and the switches by name."""

    def command(
        teacher: Teacher = None,
        student: Student = None,
        source: Source = None,
        data: DataGenerate = None,
        count: Count = None,
        feedback: Feedback = None,
        shots: Shots = None,
        columns: Columns = None,
        template: Template = None,
        max_length: MaxLength = None,
        limit: Limit = None,
        skip_bad: SkipBadEval = False,
        into: Into = None,
        output: Output = None,
        device: Device = None,
        dtype: Dtype = None,
        threads: Threads = None,
        matmul_precision: MatmulPrecision = None,
        config: switches.Config = None,
        sets: switches.Sets = None,
        plugin: switches.HiddenPlugin = None,
        dry_run: switches.DryRun = False,
        json: switches.Json = False,
        quiet: switches.Quiet = False,
        debug: switches.Debug = False,
    ) -> None:
        typed = {
            "teacher": teacher, "student": student, "source": source, "data": data, "count": count,
            "feedback": feedback, "shots": shots, "columns": columns, "template": template, "max_length": max_length,
            "limit": limit, "skip_bad": skip_bad, "into": into, "output": output, "device": device, "dtype": dtype,
            "threads": threads, "matmul_precision": matmul_precision,
        }  # fmt: skip
        run(typed, config=config, sets=sets, dry_run=dry_run, json=json, quiet=quiet)

    command.__doc__ = run.__doc__
    return command


def student(run: Run) -> Run:
    """Return ``kd student``, which calls ``run`` with the settings as typed and the switches by name."""

    def command(
        student: StudentStudent = None,
        teacher: Teacher = None,
        pick: Pick = None,
        seed: SeedStudent = None,
        data: DataStudent = None,
        columns: Columns = None,
        template: Template = None,
        max_length: MaxLength = None,
        skip_bad: SkipBadEval = False,
        output: OutputStudent = None,
        device: Device = None,
        dtype: Dtype = None,
        threads: Threads = None,
        matmul_precision: MatmulPrecision = None,
        config: switches.Config = None,
        sets: switches.Sets = None,
        dry_run: switches.DryRun = False,
        json: switches.Json = False,
        quiet: switches.Quiet = False,
        debug: switches.Debug = False,
    ) -> None:
        typed = {
            "student": student, "teacher": teacher, "pick": pick, "seed": seed, "data": data, "columns": columns,
            "template": template, "max_length": max_length, "skip_bad": skip_bad, "output": output, "device": device,
            "dtype": dtype, "threads": threads, "matmul_precision": matmul_precision,
        }  # fmt: skip
        run(typed, config=config, sets=sets, dry_run=dry_run, json=json, quiet=quiet)

    command.__doc__ = run.__doc__
    return command


def supernet(run: Run) -> Run:
    """Return ``kd supernet``, which calls ``run`` with the settings as typed and the switches by name."""

    def command(
        teacher: Teacher = None,
        widths: Widths = None,
        depths: Depths = None,
        by: By = None,
        data: Data = None,
        eval_data: EvalData = None,
        columns: Columns = None,
        template: Template = None,
        max_length: MaxLength = None,
        limit: Limit = None,
        skip_bad: SkipBadEval = False,
        loss: LossSupernet = None,
        update: Update = None,
        rank: Rank = None,
        sizes: Sizes = None,
        gamma: Gamma = None,
        epochs: Epochs = None,
        max_steps: MaxSteps = None,
        batch_size: BatchSize = None,
        lr: Lr = None,
        seed: Seed = None,
        metric: Metric = None,
        max_new_tokens: MaxNewTokensEval = None,
        sampling_seeds: SamplingSeedsEval = None,
        output: Output = None,
        device: Device = None,
        dtype: Dtype = None,
        threads: Threads = None,
        matmul_precision: MatmulPrecision = None,
        resume: switches.Resume = None,
        config: switches.Config = None,
        sets: switches.Sets = None,
        plugin: switches.HiddenPlugin = None,
        json: switches.Json = False,
        quiet: switches.Quiet = False,
        debug: switches.Debug = False,
    ) -> None:
        typed = {
            "teacher": teacher, "widths": widths, "depths": depths, "by": by, "data": data, "eval_data": eval_data,
            "columns": columns, "template": template, "max_length": max_length, "limit": limit, "skip_bad": skip_bad,
            "loss": loss, "update": update, "rank": rank, "sizes": sizes, "gamma": gamma, "epochs": epochs,
            "max_steps": max_steps, "batch_size": batch_size, "lr": lr, "seed": seed, "metric": metric,
            "max_new_tokens": max_new_tokens, "sampling_seeds": sampling_seeds, "output": output, "device": device,
            "dtype": dtype, "threads": threads, "matmul_precision": matmul_precision,
        }  # fmt: skip
        run(typed, resume=resume, config=config, sets=sets, json=json, quiet=quiet)

    command.__doc__ = run.__doc__
    return command


def export(run: Run) -> Run:
    """Return ``kd export``, which calls ``run`` with the settings as typed and the switches by name."""

    def command(
        model: Model = None,
        data: DataExport = None,
        columns: Columns = None,
        template: Template = None,
        max_length: MaxLength = None,
        skip_bad: SkipBadEval = False,
        to: To = None,
        output: OutputExport = None,
        device: Device = None,
        dtype: Dtype = None,
        threads: Threads = None,
        matmul_precision: MatmulPrecision = None,
        config: switches.Config = None,
        sets: switches.Sets = None,
        dry_run: switches.DryRun = False,
        json: switches.Json = False,
        quiet: switches.Quiet = False,
        debug: switches.Debug = False,
    ) -> None:
        typed = {
            "model": model, "data": data, "columns": columns, "template": template, "max_length": max_length,
            "skip_bad": skip_bad, "to": to, "output": output, "device": device, "dtype": dtype, "threads": threads,
            "matmul_precision": matmul_precision,
        }  # fmt: skip
        run(typed, config=config, sets=sets, dry_run=dry_run, json=json, quiet=quiet)

    command.__doc__ = run.__doc__
    return command


def doctor(run: Run) -> Run:
    """Return ``kd doctor``, which calls ``run`` with the settings as typed and the switches by name."""

    def command(
        teacher: Teacher = None,
        local_teacher: LocalTeacher = None,
        student: Student = None,
        lora: Lora = None,
        top_k: TopKDoctor = None,
        data: Data = None,
        columns: Columns = None,
        template: Template = None,
        max_length: MaxLength = None,
        limit: Limit = None,
        skip_bad: SkipBadEval = False,
        output: Output = None,
        device: Device = None,
        dtype: Dtype = None,
        threads: Threads = None,
        matmul_precision: MatmulPrecision = None,
        config: switches.Config = None,
        sets: switches.Sets = None,
        json: switches.Json = False,
        quiet: switches.Quiet = False,
        debug: switches.Debug = False,
    ) -> None:
        typed = {
            "teacher": teacher, "local_teacher": local_teacher, "student": student, "lora": lora, "top_k": top_k,
            "data": data, "columns": columns, "template": template, "max_length": max_length, "limit": limit,
            "skip_bad": skip_bad, "output": output, "device": device, "dtype": dtype, "threads": threads,
            "matmul_precision": matmul_precision,
        }  # fmt: skip
        run(typed, config=config, sets=sets, json=json, quiet=quiet)

    command.__doc__ = run.__doc__
    return command


def data_check(run: Run) -> Run:
    """Return ``kd data check``, which calls ``run`` with the settings as typed and the switches by name."""

    def command(
        data: DataDataCheck = None,
        student: StudentDataCheck = None,
        columns: Columns = None,
        template: Template = None,
        max_length: MaxLength = None,
        limit: Limit = None,
        skip_bad: SkipBadEval = False,
        config: switches.Config = None,
        sets: switches.Sets = None,
        json: switches.Json = False,
        quiet: switches.Quiet = False,
        debug: switches.Debug = False,
    ) -> None:
        typed = {
            "data": data, "student": student, "columns": columns, "template": template, "max_length": max_length,
            "limit": limit, "skip_bad": skip_bad,
        }  # fmt: skip
        run(typed, config=config, sets=sets, json=json, quiet=quiet)

    command.__doc__ = run.__doc__
    return command


def data_score(run: Run) -> Run:
    """Return ``kd data score``, which calls ``run`` with the settings as typed and the switches by name."""

    def command(
        teacher: Teacher = None,
        student: StudentDataScore = None,
        data: DataDataScore = None,
        eval_data: EvalDataDataScore = None,
        columns: Columns = None,
        template: Template = None,
        max_length: MaxLength = None,
        limit: Limit = None,
        eval_limit: EvalLimitDataScore = None,
        skip_bad: SkipBadEval = False,
        by: ByDataScore = None,
        keep: Keep = None,
        low: Low = None,
        high: High = None,
        mark: Mark = False,
        output: Output = None,
        device: Device = None,
        dtype: Dtype = None,
        threads: Threads = None,
        matmul_precision: MatmulPrecision = None,
        config: switches.Config = None,
        sets: switches.Sets = None,
        plugin: switches.HiddenPlugin = None,
        json: switches.Json = False,
        quiet: switches.Quiet = False,
        debug: switches.Debug = False,
    ) -> None:
        typed = {
            "teacher": teacher, "student": student, "data": data, "eval_data": eval_data, "columns": columns,
            "template": template, "max_length": max_length, "limit": limit, "eval_limit": eval_limit,
            "skip_bad": skip_bad, "by": by, "keep": keep, "low": low, "high": high, "mark": mark, "output": output,
            "device": device, "dtype": dtype, "threads": threads, "matmul_precision": matmul_precision,
        }  # fmt: skip
        run(typed, config=config, sets=sets, json=json, quiet=quiet)

    command.__doc__ = run.__doc__
    return command


def data_split(run: Run) -> Run:
    """Return ``kd data split``, which calls ``run`` with the settings as typed and the switches by name."""

    def command(
        data: DataDataScore = None,
        columns: Columns = None,
        template: Template = None,
        max_length: MaxLength = None,
        limit: Limit = None,
        skip_bad: SkipBadEval = False,
        by: ByDataSplit = None,
        parts: Parts = None,
        seed: SeedDataSplit = None,
        output: Output = None,
        config: switches.Config = None,
        sets: switches.Sets = None,
        json: switches.Json = False,
        quiet: switches.Quiet = False,
        debug: switches.Debug = False,
    ) -> None:
        typed = {
            "data": data, "columns": columns, "template": template, "max_length": max_length, "limit": limit,
            "skip_bad": skip_bad, "by": by, "parts": parts, "seed": seed, "output": output,
        }  # fmt: skip
        run(typed, config=config, sets=sets, json=json, quiet=quiet)

    command.__doc__ = run.__doc__
    return command


def data_balance(run: Run) -> Run:
    """Return ``kd data balance``, which calls ``run`` with the settings as typed and the switches by name."""

    def command(
        teacher: Teacher = None,
        student: Student = None,
        source: Source = None,
        data: DataDataScore = None,
        columns: Columns = None,
        template: Template = None,
        max_length: MaxLength = None,
        limit: Limit = None,
        skip_bad: SkipBadEval = False,
        by: ByDataBalance = None,
        policy: Policy = None,
        stage: Stage = None,
        budget: Budget = None,
        score: Score = None,
        before: Before = None,
        tail: Tail = None,
        shots: ShotsDataBalance = None,
        tries: Tries = None,
        seed: SeedDataSplit = None,
        output: Output = None,
        device: Device = None,
        dtype: Dtype = None,
        threads: Threads = None,
        matmul_precision: MatmulPrecision = None,
        config: switches.Config = None,
        sets: switches.Sets = None,
        json: switches.Json = False,
        quiet: switches.Quiet = False,
        debug: switches.Debug = False,
    ) -> None:
        typed = {
            "teacher": teacher, "student": student, "source": source, "data": data, "columns": columns,
            "template": template, "max_length": max_length, "limit": limit, "skip_bad": skip_bad, "by": by,
            "policy": policy, "stage": stage, "budget": budget, "score": score, "before": before, "tail": tail,
            "shots": shots, "tries": tries, "seed": seed, "output": output, "device": device, "dtype": dtype,
            "threads": threads, "matmul_precision": matmul_precision,
        }  # fmt: skip
        run(typed, config=config, sets=sets, json=json, quiet=quiet)

    command.__doc__ = run.__doc__
    return command


def data_rationales(run: Run) -> Run:
    """Return ``kd data rationales``, which calls ``run`` with the settings as typed and the switches by name."""

    def command(
        teacher: Teacher = None,
        data: DataDataScore = None,
        columns: Columns = None,
        template: Template = None,
        max_length: MaxLength = None,
        limit: Limit = None,
        skip_bad: SkipBadEval = False,
        by: ByDataRationales = None,
        words: Words = None,
        into: IntoDataRationales = None,
        hint_dropout: HintDropout = None,
        seed: SeedDataRationales = None,
        output: Output = None,
        device: Device = None,
        dtype: Dtype = None,
        threads: Threads = None,
        matmul_precision: MatmulPrecision = None,
        config: switches.Config = None,
        sets: switches.Sets = None,
        json: switches.Json = False,
        quiet: switches.Quiet = False,
        debug: switches.Debug = False,
    ) -> None:
        typed = {
            "teacher": teacher, "data": data, "columns": columns, "template": template, "max_length": max_length,
            "limit": limit, "skip_bad": skip_bad, "by": by, "words": words, "into": into, "hint_dropout": hint_dropout,
            "seed": seed, "output": output, "device": device, "dtype": dtype, "threads": threads,
            "matmul_precision": matmul_precision,
        }  # fmt: skip
        run(typed, config=config, sets=sets, json=json, quiet=quiet)

    command.__doc__ = run.__doc__
    return command


def federate(run: Run) -> Run:
    """Return ``kd federate``, which calls ``run`` with the settings as typed and the switches by name."""

    def command(
        teacher: Teacher = None,
        teacher_cache: TeacherCache = None,
        student: Student = None,
        lora: Lora = None,
        data: Data = None,
        eval_data: EvalDataFederate = None,
        columns: Columns = None,
        template: Template = None,
        max_length: MaxLength = None,
        limit: LimitCompare = None,
        eval_limit: EvalLimit = None,
        skip_bad: SkipBadEval = False,
        loss: Loss = None,
        clients: Clients = None,
        split: Split = None,
        rounds: Rounds = None,
        server: Server = None,
        lora_mean: LoraMean = None,
        weigh: Weigh = None,
        fraction: Fraction = None,
        drop: Drop = None,
        bandwidth: Bandwidth = None,
        gpus: GpusCompare = None,
        executor: Executor = None,
        jobs: Jobs = None,
        slurm: Slurm = None,
        ray_address: RayAddress = None,
        epochs: EpochsFederate = None,
        max_steps: MaxStepsFederate = None,
        batch_size: BatchSize = None,
        lr: Lr = None,
        seed: SeedFederate = None,
        output: Output = None,
        device: Device = None,
        dtype: Dtype = None,
        threads: Threads = None,
        matmul_precision: MatmulPrecision = None,
        config: switches.Config = None,
        sets: switches.Sets = None,
        plugin: switches.HiddenPlugin = None,
        json: switches.Json = False,
        quiet: switches.Quiet = False,
        debug: switches.Debug = False,
    ) -> None:
        typed = {
            "teacher": teacher, "teacher_cache": teacher_cache, "student": student, "lora": lora, "data": data,
            "eval_data": eval_data, "columns": columns, "template": template, "max_length": max_length, "limit": limit,
            "eval_limit": eval_limit, "skip_bad": skip_bad, "loss": loss, "clients": clients, "split": split,
            "rounds": rounds, "server": server, "lora_mean": lora_mean, "weigh": weigh, "fraction": fraction,
            "drop": drop, "bandwidth": bandwidth, "gpus": gpus, "executor": executor, "jobs": jobs, "slurm": slurm,
            "ray_address": ray_address, "epochs": epochs, "max_steps": max_steps, "batch_size": batch_size, "lr": lr,
            "seed": seed, "output": output, "device": device, "dtype": dtype, "threads": threads,
            "matmul_precision": matmul_precision,
        }  # fmt: skip
        run(typed, config=config, sets=sets, json=json, quiet=quiet)

    command.__doc__ = run.__doc__
    return command


def inspect_batch(run: Run) -> Run:
    """Return ``kd inspect batch``, which calls ``run`` with the settings as typed and the switches by name."""

    def command(
        teacher: Teacher = None,
        student: Student = None,
        data: Data = None,
        columns: Columns = None,
        template: Template = None,
        max_length: MaxLength = None,
        limit: Limit = None,
        skip_bad: SkipBadEval = False,
        seed: Seed = None,
        output: Output = None,
        device: Device = None,
        dtype: Dtype = None,
        threads: Threads = None,
        matmul_precision: MatmulPrecision = None,
        objectives: switches.Objectives = None,
        rows: switches.Rows = None,
        config: switches.Config = None,
        sets: switches.Sets = None,
        plugin: switches.HiddenPlugin = None,
        json: switches.Json = False,
        quiet: switches.Quiet = False,
        debug: switches.Debug = False,
    ) -> None:
        typed = {
            "teacher": teacher, "student": student, "data": data, "columns": columns, "template": template,
            "max_length": max_length, "limit": limit, "skip_bad": skip_bad, "seed": seed, "output": output,
            "device": device, "dtype": dtype, "threads": threads, "matmul_precision": matmul_precision,
        }  # fmt: skip
        run(typed, objectives=objectives, rows=rows, config=config, sets=sets, json=json, quiet=quiet)

    command.__doc__ = run.__doc__
    return command
