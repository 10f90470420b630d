"""Hostile folders, rows, settings and servers, and a watch over what a command does when it meets them.

Every case runs in a forked process of bounded memory and time under an audit hook: no code of the input is run, no
byte is written outside the folder of the command's output, nothing private is read, and no address but the server's
is asked.
"""

import gzip
import io
import json
import os
import pickle
import resource
import shlex
import shutil
import signal
import socket
import struct
import sys
import traceback
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import torch
from safetensors.torch import load_file, save_file

import tiny
from kdcli import plots  # its library makes a folder of its own where it is imported first
from kdcli.storage import forked
from loopback import Asked, Reply, completion, serving
from shell import kd
from wrong import chat_template, edit_json

MEMORY = 2 * 2**30
"""Bytes of address space a command may take beyond what the tests hold already."""
SECONDS = 40
"""Processor time of a command."""
WALL_SECONDS = 300
SECRET = "secret-of-somebody-else"
PLOTS = plots.__name__
DOCUMENTED = frozenset({0, 2, 3, 4, 5, 6, 7, 8})
TRAIN = "distill --teacher teacher --student student --data train.jsonl --max-steps 2 --device cpu -o out/run"
RUN = "out/run"
Make = Callable[[Path], object]


@dataclass(frozen=True)
class Hostile:
    """One input.

    Args:
        make: spoils a folder that holds a teacher, a student, rows, and where asked for a finished run in ``out/run``.
        command: what is typed there; ``URL`` stands for the server's address.
        codes: the exit codes that are right.
        script: what the server answers.
        trained: whether a finished run is needed.
    """

    make: Make
    command: str = TRAIN
    codes: tuple[int, ...] = (3,)
    script: Callable[[Asked, int], Reply] | None = None
    trained: bool = False


@dataclass
class Watch:
    """Keeps what a process did and may not do: an audit hook (PEP 578)."""

    home: Path
    addresses: set[tuple[str, int]] = field(default_factory=set)
    seen: list[str] = field(default_factory=list)
    on: bool = True

    def __call__(self, event: str, values: tuple[Any, ...]) -> None:
        if not self.on:
            return
        if event == "open":
            path, _, flags = values
            if isinstance(path, str | bytes):
                self._opened(os.fsdecode(path), flags)
        elif event in _CHANGES:
            for place, folder in _CHANGES[event]:
                if isinstance(values[place], str | bytes):
                    self._written(os.fsdecode(values[place]), event, values[folder] if folder else -1)
        elif event in ("socket.connect", "socket.sendto", "socket.bind"):
            if values[1][:2] not in self.addresses and values[0].family != socket.AF_UNIX:
                self.seen.append(f"{event} {values[1]}")
        elif event == "socket.getaddrinfo":
            if (values[0], values[1]) not in self.addresses:
                self.seen.append(f"{event} {values[0]}")
        elif event in _RUNS and not self._own_version(event, values):
            self.seen.append(f"{event} {values[:2]}"[:200])
        elif event == "exec" and str(self.home) in (name := values[0].co_filename):
            self.seen.append(f"exec {name}")
        elif event == "ctypes.dlopen" and str(self.home) in str(values[0]):
            self.seen.append(f"dlopen {values[0]}")

    def _opened(self, path: str, flags: int) -> None:
        if flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND):
            self._written(os.path.realpath(path), "open")
        elif os.path.realpath(path).startswith(str(self.home / "private")):
            self.seen.append(f"read {path}")

    def _written(self, path: str, event: str, folder: int = -1) -> None:
        around = os.path.realpath(f"/proc/self/fd/{folder}" if folder >= 0 else ".")
        parent, name = os.path.split(os.path.join(around, path))
        real = os.path.join(os.path.realpath(parent), name)  # a link itself may be removed or replaced
        if not f"{real}{os.sep}".startswith(
            (f"{self.home / 'out'}{os.sep}", "/dev/null", "/dev/shm/", f"/proc/{os.getpid()}/")
        ):
            self.seen.append(f"{event} {path.removeprefix(str(self.home) + os.sep)}")

    def _own_version(self, event: str, values: tuple[Any, ...]) -> bool:
        """Whether it is git that is asked for the version of kd's own checkout."""
        told = [str(one) for one in values[1]] if event == "subprocess.Popen" else []
        return told[:1] == ["git"] and "-C" in told and str(self.home) not in told[told.index("-C") + 1]


_CHANGES = {
    "os.rename": ((0, 2), (1, 3)), "os.remove": ((0, 1),), "os.rmdir": ((0, 1),), "os.mkdir": ((0, 2),),
    "os.symlink": ((1, 2),), "os.link": ((1, 3),), "os.truncate": ((0, 0),), "os.chmod": ((0, 2),),
    "os.chown": ((0, 3),), "os.utime": ((0, 3),), "shutil.rmtree": ((0, 0),),
}  # fmt: skip
"""Where the events of :mod:`os` say a path, and the folder that it is relative to."""
_RUNS = (
    "subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "os.spawn", "pty.spawn", "pickle.find_class",
    "os.startfile", "webbrowser.open", "urllib.Request", "ftplib.connect", "smtplib.connect",
)  # fmt: skip


def complaint(home: Path, case: Hostile) -> str:
    """Run a case in a process of its own; return what is wrong with what it did, or nothing."""
    ready, given = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(ready)
        try:
            said = _watched(home, case)
        except BaseException:
            said = traceback.format_exc()
        with os.fdopen(given, "w") as answer:
            answer.write(said)
        os._exit(0)
    os.close(given)
    with os.fdopen(ready) as answer:
        said = answer.read()
    _, status = os.waitpid(pid, 0)
    return said or ("" if status == 0 else f"ended with {status}")


def _watched(home: Path, case: Hostile) -> str:
    with open("/proc/self/statm") as file:
        held = int(file.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (held + MEMORY, resource.RLIM_INFINITY))
    resource.setrlimit(resource.RLIMIT_CPU, (int(_spent()) + SECONDS, resource.RLIM_INFINITY))
    signal.alarm(WALL_SECONDS)
    forked.CHILDREN = True
    before = _contents(home)
    with ExitStack() as stack:
        command, watch = case.command, Watch(home)
        if case.script is not None:
            server = stack.enter_context(serving(case.script))
            host, _, port = server.url.removeprefix("http://").removesuffix("/v1").partition(":")
            watch.addresses = {(host, int(port))}
            command = command.replace("URL", server.url)
        sys.addaudithook(watch)
        answer = kd(*shlex.split(command), folder=home)
        watch.on = False
    wrong = [*dict.fromkeys(watch.seen)]
    if answer.code not in case.codes:
        wrong.append(f"exit {answer.code}")
    if answer.code and len(answer.error_lines) != 1:
        wrong.append(f"{len(answer.error_lines)} lines of error")
    if any(sign in answer.err + answer.out for sign in ("Traceback", "BUG-", "\x1b", SECRET)):
        wrong.append("said what it may not say")
    after = _contents(home)
    wrong += [f"changed {name}" for name in before.keys() | after.keys() if before.get(name) != after.get(name)]
    wrong += [f"imported {name}" for name, module in list(sys.modules.items()) if _below(home, module)]
    return "\n".join([*wrong, answer.err[-1500:]]) if wrong else ""


def _spent() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def _below(home: Path, module: Any) -> bool:
    return str(getattr(module, "__file__", None)).startswith(str(home))


def _contents(home: Path) -> dict[str, str | bytes]:
    """Return all that lies outside the folder of outputs, links as what they name."""
    found: dict[str, str | bytes] = {}
    for folder, names, files in os.walk(home):
        if folder == str(home):
            names.remove("out")
        for name in [*names, *files]:
            path = Path(folder, name)
            relative = str(path.relative_to(home))
            if path.is_symlink():
                found[relative] = f"-> {path.readlink()}"
            elif path.is_file():
                found[relative] = str(path.stat().st_size) if path.stat().st_size > 2**20 else path.read_bytes()
            else:
                found[relative] = "folder"
    return found


def base(home: Path) -> Path:
    """Make what cases spoil."""
    tiny.folder(home / "teacher", seed=1)
    tiny.folder(home / "student", seed=2)
    tiny.rows(home / "train.jsonl", 16)
    tiny.rows(home / "test.jsonl", 4)
    (home / "out").mkdir()
    (home / "private").mkdir()
    (home / "private" / "diary.txt").write_text(SECRET)
    (home / "private" / "weights.safetensors").write_bytes((home / "teacher" / "model.safetensors").read_bytes())
    return home


# What is done to a folder.


def wrote(home: Path) -> str:
    """Return Python code that shows that it was run."""
    return f"open({str(home / 'private' / 'ran')!r}, 'w').write('ran')\n"


class Payload:
    """Runs a command where it is unpickled."""

    def __init__(self, home: Path) -> None:
        self.command = f"touch {home / 'private' / 'ran'}"

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (self.command,)


def teacher(**changes: Any) -> Make:
    """Change the teacher's config."""
    return lambda home: edit_json(home / "teacher" / "config.json", **changes)


def in_teacher(name: str, content: bytes | str) -> Make:
    """Put a file beside the teacher's."""
    raw = content.encode() if isinstance(content, str) else content

    def make(home: Path) -> None:
        (home / "teacher" / name).parent.mkdir(exist_ok=True)
        (home / "teacher" / name).write_bytes(raw)

    return make


def code_beside(name: str, change: Make) -> Make:
    """Put a Python file that shows that it was run beside the teacher's, and change what leads to it."""

    def make(home: Path) -> None:
        in_teacher(name, wrote(home) + "class Evil: pass\n")(home)
        change(home)

    return make


def without(name: str, then: Make) -> Make:
    """Remove a file of the teacher's, then do more."""

    def make(home: Path) -> None:
        (home / "teacher" / name).unlink()
        then(home)

    return make


def pickled(name: str) -> Make:
    return lambda home: in_teacher(name, pickle.dumps(Payload(home)))(home)


def torch_pickled(name: str) -> Make:
    def make(home: Path) -> None:
        held = io.BytesIO()
        torch.save({"weight": Payload(home)}, held)
        in_teacher(name, held.getvalue())(home)

    return make


def fifo(name: str) -> Make:
    def make(home: Path) -> None:
        (home / name).unlink(missing_ok=True)
        os.mkfifo(home / name)

    return make


def link(name: str, target: str) -> Make:
    """Replace a file or folder by a link; ``target`` is relative to the folder around everything, or absolute."""

    def make(home: Path) -> None:
        path = home / name
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        path.unlink(missing_ok=True)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.symlink_to(home / target)

    return make


def both(*makes: Make) -> Make:
    def make(home: Path) -> None:
        for one in makes:
            one(home)

    return make


def text(name: str, content: str | bytes) -> Make:
    raw = content.encode() if isinstance(content, str) else content

    def make(home: Path) -> None:
        (home / name).parent.mkdir(parents=True, exist_ok=True)
        (home / name).write_bytes(raw)

    return make


def template(content: str) -> Make:
    """Give both models a chat template, and rows that use it."""

    def make(home: Path) -> None:
        chat_template(home, content)
        talk = {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}
        (home / "chat.jsonl").write_text((json.dumps(talk) + "\n") * 8)

    return make


def tokenizer(**changes: Any) -> Make:
    """Change the teacher's and the student's tokenizer.json."""

    def make(home: Path) -> None:
        for name in ("teacher", "student"):
            edit_json(home / name / "tokenizer.json", **changes)

    return make


def header(content: Any, length: int | None = None) -> Make:
    """Give the teacher a weights file with such a header."""
    raw = json.dumps(content).encode()
    return in_teacher("model.safetensors", struct.pack("<Q", len(raw) if length is None else length) + raw)


def sharded(target: str) -> Make:
    """Let an index of weights lead out of the folder."""

    def make(home: Path) -> None:
        names = list(load_file(home / "teacher" / "model.safetensors"))
        (home / "teacher" / "model.safetensors").unlink()
        index = {"metadata": {}, "weight_map": dict.fromkeys(names, target.replace("HOME", str(home)))}
        (home / "teacher" / "model.safetensors.index.json").write_text(json.dumps(index))

    return make


def adapter(**config: Any) -> Make:
    """Put an adapter where the student is."""

    def make(home: Path) -> None:
        shutil.rmtree(home / "student")
        (home / "student").mkdir()
        shutil.copy(home / "teacher" / "tokenizer.json", home / "student")
        base = {"peft_type": "LORA", "r": 2, "task_type": "CAUSAL_LM", "target_modules": ["q_proj"]}
        (home / "student" / "adapter_config.json").write_text(json.dumps(base | config))
        save_file({"x": torch.zeros(1)}, home / "student" / "adapter_model.safetensors")

    return make


def parquet_bomb(home: Path) -> None:
    table = pyarrow.table({"prompt": ["a" * 2**20] * 2000, "completion": ["b"] * 2000})
    pyarrow.parquet.write_table(table, home / "rows.parquet", compression="zstd")


def zipped_rows(home: Path) -> None:
    (home / "rows.jsonl.gz").write_bytes(gzip.compress(b'{"prompt": "' + b"a" * 2**30 + b'"}\n'))


def record(name: str, **changes: Any) -> Make:
    return lambda home: edit_json(home / RUN / name, **changes)


def evil_checkpoint(home: Path) -> None:
    """Put a pickle where a finished run's weights are."""
    (home / RUN / "model" / "model.safetensors").unlink()
    (home / RUN / "model" / "pytorch_model.bin").write_bytes(pickle.dumps(Payload(home)))


# What a server answers.


def redirected(asked: Asked, before: int) -> Reply:
    return Reply("", 302, {"Location": "http://127.0.0.1:9/v1/completions"})


def to_a_file(asked: Asked, before: int) -> Reply:
    return Reply("", 302, {"Location": "file:///etc/passwd"})


def dripping(asked: Asked, before: int) -> Reply:
    return Reply({"choices": [{"index": 0, "text": "a" * 200}]}, drip=0.5)


def huge(asked: Asked, before: int) -> Reply:
    return Reply(b'{"choices": [{"text": "' + b"a" * 40 * 2**20 + b'"}]}')


def bomb(asked: Asked, before: int) -> Reply:
    return Reply(gzip.compress(b"[" * 2**28), headers={"Content-Encoding": "gzip"})


def deep(asked: Asked, before: int) -> Reply:
    return Reply("[" * 200_000)


def other_kinds(asked: Asked, before: int) -> Reply:
    return Reply({"choices": [{"index": "0", "text": {"__class__": "x"}, "finish_reason": []}], "usage": [1]})


def escapes(asked: Asked, before: int) -> Reply:
    return completion("\x1b]0;owned\x07\x1b[2J<script>alert(1)</script>")


def cookie(asked: Asked, before: int) -> Reply:
    return Reply(completion("a").body, headers={"Set-Cookie": "a=b", "Link": "<http://127.0.0.1:9/>; rel=preload"})


def refused(asked: Asked, before: int) -> Reply:
    return Reply({"error": {"message": "\x1b[31m" + "x" * 100_000}}, 401)


def wait_long(asked: Asked, before: int) -> Reply:
    return Reply("", 429, {"Retry-After": "99999999"})
