"""`segpipe VERB --flag value ...`: the flags are the fields of the verb's config."""

from __future__ import annotations

import io
import logging
import platform
import signal
import sys
from collections.abc import Sequence
from contextlib import nullcontext, redirect_stderr
from dataclasses import MISSING, fields
from importlib import import_module
from itertools import takewhile
from typing import Any

import tyro

from segpipe import __version__
from segpipe.errors import Skipped, Unfinished, UserError, first_cause, must_change, os_error_text
from segpipe.flags import flag, unknown_flag, wrong_value
from segpipe.progress import FORMATS, LEVELS, LogSettings, last_word
from segpipe.storage import folders

# A verb's module is imported only when it is asked for: Ray and torch take seconds.
VERBS = {
    "check": ("segpipe.train.check", "CheckConfig", "look at a labelled set before training on it"),
    "train": ("segpipe.train.run", "TrainConfig", "train a network on a labelled set"),
    "segment": (
        "segpipe.segment.run",
        "SegmentConfig",
        "segment a folder or prefix of photographs",
    ),
    "measure": (
        "segpipe.measuring.run",
        "MeasureConfig",
        "measure masks that were made or corrected elsewhere",
    ),
    "evaluate": (
        "segpipe.evaluate.run",
        "EvaluateConfig",
        "measure a checkpoint on a labelled set",
    ),
    "scale": ("segpipe.scaling.run", "ScaleConfig", "measure what more workers buy"),
    "plan": ("segpipe.planning.run", "PlanConfig", "tell how long an archive takes on a cluster"),
    "models": ("segpipe.models.shipped", "ModelsConfig", "list the checkpoints that segpipe ships"),
    "status": ("segpipe.segment.status", "StatusConfig", "tell how far the run on an output is"),
    "demo": ("segpipe.demo", "DemoConfig", "draw data, train, evaluate and segment it"),
}
WITH_RAY = ("train", "segment", "measure", "evaluate", "scale", "demo")  # whose core can end it
DEBUG = "--debug"
LOG_FLAGS = {"--log-level": LEVELS, "--log-format": FORMATS}
OF_EVERY_VERB = f"""Of every verb:
  --log-level {{{",".join(LEVELS)}}}
      Lowest level of the lines on stderr. (default: info)
  --log-format {{{",".join(FORMATS)}}}
      Lines on stderr for people (text), or each a JSON object with time, level,
      logger, message and verb. (default: text)
  {DEBUG}
      Show tracebacks."""
logger = logging.getLogger(__name__)
PLATFORM = ("Linux", "x86_64")  # of the kernels, of /proc and of what was tested
OK, UNFINISHED, USER_ERROR = 0, 1, 2  # exit codes, beside 128 + the signal's number


def usage() -> str:
    verbs = "\n".join(f"  {verb:<9} {summary}" for verb, (_, _, summary) in VERBS.items())
    return (
        f"segpipe {__version__}: segment retinal photographs at scale, on Ray\n\n"
        f"usage: segpipe VERB [--flag value ...]\n\n{verbs}\n\n"
        f"segpipe VERB --help tells the flags.\n\n{OF_EVERY_VERB}"
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """The console command. Always ends in SystemExit."""
    words = _verb_first(list(sys.argv[1:] if arguments is None else arguments))
    if not words or words[0] in ("-h", "--help", "help"):
        print(usage())
        sys.exit(OK if words else USER_ERROR)
    if words[0] == "--version":
        print(f"segpipe {__version__}")
        sys.exit(OK)
    if words[0] not in VERBS:
        print(f"segpipe: {words[0]}: unknown verb, choose from {', '.join(VERBS)}", file=sys.stderr)
        sys.exit(USER_ERROR)
    run_verb(words[0], words[1:])


def _verb_first(words: list[str]) -> list[str]:
    """What every verb takes may stand before it too."""
    at = 0
    while at < len(words):
        name, separator, _ = words[at].partition("=")
        name = name.replace("_", "-")
        if name not in (DEBUG, *LOG_FLAGS):
            break
        at += 2 if name in LOG_FLAGS and not separator else 1
    return [*words[at : at + 1], *words[:at], *words[at + 1 :]] if at < len(words) else []


def run_verb(verb: str, flags: Sequence[str] | None = None) -> None:
    """Run one verb with these flags (the process's own without any) and exit with its code."""
    words = list(sys.argv[1:] if flags is None else flags)
    LogSettings(verb).apply()
    try:
        words = _take_log_flags(verb, words)
    except UserError as error:
        logger.error("segpipe %s: %s", verb, error)
        sys.exit(USER_ERROR)
    folders.spare_home()
    ended = (
        f"segpipe {verb}: something ended this process (a kill, too little memory, or Ray on this "
        "machine died); run the same command again"
    )
    with last_word(ended) if verb in WITH_RAY else nullcontext():
        code = _run(verb, words)
    sys.exit(code)


def _take_log_flags(verb: str, words: Sequence[str]) -> list[str]:
    """Log as these flags say -> the others, which are the verb's own."""
    chosen, kept, left = {}, [], iter(words)
    for word in left:
        name, separator, value = word.partition("=")
        name = name.replace("_", "-")
        if name not in LOG_FLAGS:
            kept.append(word)
            continue
        chosen[name] = value if separator else next(left, "")
        if chosen[name] not in LOG_FLAGS[name]:
            given = f"{name} {chosen[name]}".rstrip()
            raise UserError(f"{given}: choose from {', '.join(LOG_FLAGS[name])}")
    LogSettings(verb, **{name.removeprefix("--log-"): chosen[name] for name in chosen}).apply()
    return kept


def _run(verb: str, words: list[str]) -> int:
    """The verb's exit code, after the one line that explains it."""
    debug = DEBUG in words
    module, config_name, _ = VERBS[verb]
    terminate = _Terminate()
    signal.signal(signal.SIGTERM, terminate)
    try:
        _check_platform()
        code = _call(verb, import_module(module), config_name, [w for w in words if w != DEBUG])
    except KeyboardInterrupt:
        code = 128 + (signal.SIGTERM if terminate.called else signal.SIGINT)
        logger.warning("segpipe %s: stopped, run the same command again to resume", verb)
    except Skipped as error:
        print(f"segpipe {verb}: {error}")
        code = OK
    except (UserError, Unfinished) as error:
        if debug:
            raise
        logger.error("segpipe %s: %s", verb, error)
        code = USER_ERROR if isinstance(error, UserError) else UNFINISHED
    except Exception as error:
        if debug:
            raise
        logger.error("segpipe %s: %s (%s shows where)", verb, _one_line(error), DEBUG)
        cause = first_cause(error)
        code = USER_ERROR if isinstance(cause, OSError) and must_change(cause) else UNFINISHED
    return code


def _check_platform() -> None:
    here = platform.system(), platform.machine()
    if here != PLATFORM:
        raise UserError(
            f"{' '.join(here)}: segpipe runs on {' '.join(PLATFORM)} alone, use such a machine, "
            "container or cluster"
        )


def _call(verb: str, module: Any, config_name: str, flags: list[str]) -> int:
    config = parse(verb, getattr(module, config_name), flags)
    code = getattr(module, verb)(config)
    return OK if code is None else int(code)


def parse(verb: str, config: type, flags: list[str]) -> Any:
    """The config that the flags give; UserError with tyro's box of a complaint as one line."""
    complaint = io.StringIO()
    preset = config.preset(flags) if hasattr(config, "preset") else None
    try:
        with redirect_stderr(complaint):
            return tyro.cli(config, prog=f"segpipe {verb}", args=flags, default=preset)
    except SystemExit as stop:
        if not stop.code:
            print(OF_EVERY_VERB)
            raise
        if unknown := unknown_flag(verb, flags, _flags_of(config)):
            raise UserError(f"{unknown} (segpipe {verb} --help tells all)") from stop
        kinds = {flag(one.name): str(one.type) for one in fields(config)}
        if misused := wrong_value(flags, kinds):
            raise UserError(misused) from stop
        if missing := _missing(config, flags):
            raise UserError(
                f"missing {', '.join(missing)} (segpipe {verb} --help tells more)"
            ) from stop
        box = [
            line.strip("│ ") for line in complaint.getvalue().splitlines() if line.startswith("│")
        ]
        line = " ".join(takewhile(lambda text: not text.startswith("─"), box))
        raise UserError(f"{line} (segpipe {verb} --help tells more)") from stop


def _flags_of(config: type) -> list[str]:
    """All that the parser takes, tyro's --no-X of switches too."""
    named = [flag(one.name) for one in fields(config)]
    switches = [f"--no-{one.name}" for one in fields(config) if one.type in (bool, "bool")]
    return ["--help", DEBUG, *LOG_FLAGS, *named, *(name.replace("_", "-") for name in switches)]


def _missing(config: type, flags: list[str]) -> list[str]:
    """The flags without a default that are not given."""
    given = {word.partition("=")[0].replace("_", "-") for word in flags}
    needed = (one for one in fields(config) if one.default is one.default_factory is MISSING)
    return [flag(one.name) for one in needed if flag(one.name) not in given]


class _Terminate:
    """Handler of SIGTERM: ends a run as Ctrl-C does.

    It is remembered here, because Ray's core passes on a plain KeyboardInterrupt of any.
    """

    called = False

    def __call__(self, *_: object) -> None:
        self.called = True
        raise KeyboardInterrupt


def _one_line(error: BaseException) -> str:
    cause = first_cause(error)
    if isinstance(cause, OSError):
        return os_error_text(cause)
    lines = [line.strip() for line in str(cause).splitlines() if line.strip()]
    return f"{type(cause).__name__}: {lines[-1] if lines else 'no message'}"
