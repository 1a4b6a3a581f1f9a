"""The command line: parsing only. Heavy imports wait until a command needs them."""

from __future__ import annotations

import argparse
import errno
import io
import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from bench.errors import EXIT_BAD_INPUT, EXIT_DONE, BadInput, system_error

if TYPE_CHECKING:
    from rich.console import Console

    from bench.filters import Filters
    from bench.run import RunOptions

EXIT_INTERRUPTED = 130
PIPE_WIDTH = 160
MOST_JOBS = 100_000


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; the exit code (0 done, 2 bad input, 3 some cells failed, 130 interrupted)."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a terminal that lacks a letter still shows the rest
    try:
        options = _parser().parse_args(arguments)
        code: int = options.command(options)
        sys.stdout.flush()
        return code
    except BadInput as error:
        print(f"bench: {error}", file=sys.stderr)
        return EXIT_BAD_INPUT
    except KeyboardInterrupt:
        print("interrupted; the same command goes on from here", file=sys.stderr)
        return EXIT_INTERRUPTED
    except BrokenPipeError:  # the reader of our output has gone (`bench … | head`)
        _let_go_of_output()
        return EXIT_DONE
    except OSError as error:
        print(f"bench: {system_error(error)}", file=sys.stderr)
        try:
            sys.stdout.flush()
        except OSError:  # it was our output that could not be written
            _let_go_of_output()
        return EXIT_BAD_INPUT


def _let_go_of_output() -> None:
    """What is still to be written goes nowhere: at the end of the process it would fail once more."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="bench",
        description="Compare sparsification methods: what they keep, and what the network that is left really costs.",
        epilog="exit codes: 0 all done, 2 bad input, 3 some cells failed, 130 interrupted",
    )
    commands = parser.add_subparsers(metavar="COMMAND", required=True)

    listing = _command(commands, "list", "methods, networks, data sets, suites, or what runs where", _list)
    listing.add_argument("what", choices=["methods", "networks", "datasets", "suites", "matrix"])
    _json(listing)

    for name, says, command in (
        ("plan", "what a run would do: done, to do, skipped and why, about how long", _plan),
        ("run", "run a suite, or go on with it, and make its leaderboard and figures", _run),
    ):
        running = _command(commands, name, says, command)
        running.add_argument("suite", metavar="SUITE", help="a name of `bench list suites`, or a .toml file")
        _filters(running)
        _results(running)
        _data(running)
        running.add_argument(
            "--jobs",
            type=_positive,
            default=None,
            help="processes (default: the cores; on a GPU 8 at most, 1 for images in files)",
        )
        _device(running)
        running.add_argument(
            "--retry-failed", action="store_true", help="try cells with a failed record again"
        )
        running.add_argument(
            "--timeout", type=_seconds, default=None, help="seconds after which a cell has failed"
        )
        running.add_argument(
            "--tune",
            action="store_true",
            help="measure once which memory format and threads train each network fastest on this CPU, and use them",
        )

    status = _command(commands, "status", "what a results folder holds", _status)
    _reading(status)
    _json(status)

    measure = _command(
        commands,
        "measure",
        "measure latency later, or on another machine, from the compact networks",
        _measure,
    )
    _reading(measure)
    _filters(measure, files=False)
    _device(measure)
    measure.add_argument(
        "--latency", choices=["quick", "full"], default="quick", help="how long (default: %(default)s)"
    )
    measure.add_argument("--retry-failed", action="store_true", help="try failed measurements again")

    verify = _command(
        commands,
        "verify",
        "load, score and prove the compact networks again; exit code 3 if any disagrees",
        _verify,
    )
    _reading(verify)
    _filters(verify, files=False)
    _data(verify)

    report = _command(commands, "report", "make leaderboard and figures anew from the records", _report)
    _reading(report)
    report.add_argument(
        "--out", type=Path, help="folder to write to (default: report/ in the results folder)"
    )
    report.add_argument(
        "--suite",
        help="a name of `bench list suites`, or a .toml file, whose published figures stand beside these records "
        "(default: the shipped suites that the records name)",
    )
    report.add_argument("--readme", type=Path, help="a Markdown file whose marked parts are made anew")

    figures = _command(commands, "figures", "make only the figures anew from the records", _figures)
    _reading(figures)
    figures.add_argument(
        "--out", type=Path, help="folder to write to (default: report/ in the results folder)"
    )

    push = _command(commands, "push", "replay the records into Weights & Biases", _push)
    _reading(push)
    push.add_argument("--project", default="sparsebench")
    push.add_argument("--entity", default=None)
    push.add_argument("--offline", action="store_true", help="write a W&B folder, send nothing")

    controls = _command(
        commands,
        "controls",
        "write the suite of a point's controls: its shape from scratch, random units",
        _controls,
    )
    controls.add_argument(
        "point", nargs="+", metavar="POINT", help="id of a done point (see results/README.md)"
    )
    _reading(controls)
    controls.add_argument("--out", type=Path, default=Path("controls.toml"), help="(default: %(default)s)")
    controls.add_argument(
        "--same-compute", action="store_true", help="train for the same MACs, not for the same epochs"
    )

    doctor = _command(commands, "doctor", "what this machine has: versions, device, data sets", _doctor)
    _data(doctor)
    doctor.add_argument(
        "--network", metavar="NAME", help="time a training step of it, by memory format and threads"
    )

    new_method = _command(
        commands, "new-method", "write NAME.py here: a method that works, to change", _new_method
    )
    new_method.add_argument("name", metavar="NAME", help="such as my-method")
    return parser


def _command(
    commands: argparse._SubParsersAction[argparse.ArgumentParser], name: str, says: str, command: object
) -> argparse.ArgumentParser:
    parser = commands.add_parser(name, help=says, description=says)
    parser.set_defaults(command=command)
    return parser


def _filters(parser: argparse.ArgumentParser, files: bool = True) -> None:
    """files: whether a method may come by path."""
    says = "only this method or label"
    parser.add_argument(
        "--method",
        action="append",
        default=[],
        metavar="NAME|FILE.py" if files else "NAME",
        help=f"{says}, or one of `bench list methods` that the suite lacks; a file adds the method it defines "
        "(repeatable)"
        if files
        else f"{says} (repeatable)",
    )
    parser.add_argument("--network", action="append", default=[], help="only this network (repeatable)")
    parser.add_argument("--dataset", action="append", default=[], help="only this data set (repeatable)")
    parser.add_argument(
        "--strength", action="append", default=[], type=float, help="only this one (repeatable)"
    )
    parser.add_argument("--seed", action="append", default=[], type=_seed, help="only this seed (repeatable)")


def _data(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--data-root", type=Path, help="folder of the data sets (default: $BENCH_DATA)")


def _device(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--device", default="auto", help="cpu, cuda, cuda:1 … (default: cuda where there is one)"
    )


def _results(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--results",
        type=Path,
        default=None,
        metavar="DIR",
        help="results folder (default: results/runs/SUITE)",
    )


def _reading(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--results", type=Path, default=Path("results/runs"), metavar="DIR", help="(default: %(default)s)"
    )


def _json(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print JSON")


def _positive(text: str) -> int:
    if not text.isdecimal() or len(text) > len(str(MOST_JOBS)) or not 1 <= int(text) <= MOST_JOBS:
        raise argparse.ArgumentTypeError(f"{_short(text)!r} is no whole number from 1 to {MOST_JOBS}")
    return int(text)


def _seed(text: str) -> int:
    from bench.suite import MOST_SEED

    digits = len(str(MOST_SEED))
    if not re.fullmatch(rf"-?\d{{1,{digits}}}", text) or int(text) > MOST_SEED:
        raise argparse.ArgumentTypeError(f"{_short(text)!r} is no whole number up to {MOST_SEED}")
    return int(text)


def _short(text: str) -> str:
    return text if len(text) <= 40 else f"{text[:40]}…"


def _seconds(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = 0.0
    if not 0 < number < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is no number of seconds")
    return number


def _list(options: argparse.Namespace) -> int:
    from bench.listing import print_list

    print_list(options.what, options.json)
    return EXIT_DONE


def _plan(options: argparse.Namespace) -> int:
    from bench.planned import print_plan
    from bench.records.store import Store
    from bench.run import plan_elsewhere
    from bench.suite import load

    suite = load(options.suite)
    resolved = _run_options(options)
    plan = plan_elsewhere(suite, _chosen(options), resolved)
    print_plan(plan, Store(resolved.results), resolved, _console())
    return EXIT_DONE


def _run(options: argparse.Namespace) -> int:
    from bench.run import run_suite

    return run_suite(options.suite, _chosen(options), _run_options(options), _console())


def _status(options: argparse.Namespace) -> int:
    from bench.status import print_status

    print_status(options.results, options.json, _console())
    return EXIT_DONE


def _report(options: argparse.Namespace) -> int:
    from bench.markers import check_markers
    from bench.report.views import report_results

    if options.readme is not None:
        check_markers(options.readme)
    report_results(options.results, _console(), options.suite, options.out, options.readme)
    return EXIT_DONE


def _figures(options: argparse.Namespace) -> int:
    from bench.report.views import write_only_figures

    write_only_figures(options.results, _console(), out=options.out)
    return EXIT_DONE


def _measure(options: argparse.Namespace) -> int:
    from bench.measure_results import measure_results

    return measure_results(
        options.results, _chosen(options), options.device, options.latency, options.retry_failed, _console()
    )


def _verify(options: argparse.Namespace) -> int:
    from bench.verify_results import verify_results

    return verify_results(options.results, _chosen(options), _data_root(options), _console())


def _new_method(options: argparse.Namespace) -> int:
    from bench.new_method import write_new_method

    write_new_method(options.name, Path(), _console())
    return EXIT_DONE


def _push(options: argparse.Namespace) -> int:
    from bench.records.store import check_writable
    from bench.report.wandb_push import push

    if options.results.is_dir():  # it keeps the ledger; without that, what was sent would be sent again
        check_writable(options.results, f"results folder {options.results}")
    pushed = push(options.results, options.project, entity=options.entity, offline=options.offline)
    _console().print(pushed.in_words(options.project), highlight=False, markup=False, soft_wrap=True)
    return EXIT_DONE


def _controls(options: argparse.Namespace) -> int:
    from bench.controls import write_controls

    suite = write_controls(options.results, options.point, options.out, options.same_compute)
    _console().print(f"{options.out}: {len(suite.methods)} entries", highlight=False, markup=False)
    return EXIT_DONE


def _doctor(options: argparse.Namespace) -> int:
    from bench.doctor import print_doctor

    print_doctor(_data_root(options), _console(), options.network)
    return EXIT_DONE


def _chosen(options: argparse.Namespace) -> Filters:
    from bench.filters import Filters

    return Filters(
        methods=tuple(word for word in options.method if not word.endswith(".py")),
        files=tuple(word for word in options.method if word.endswith(".py")),
        networks=tuple(options.network),
        datasets=tuple(options.dataset),
        strengths=tuple(options.strength),
        seeds=tuple(options.seed),
    )


def _run_options(options: argparse.Namespace) -> RunOptions:
    from bench.run import RunOptions

    results = options.results or Path("results/runs") / Path(options.suite).stem
    try:
        results.stat()
    except OSError as error:
        if (
            error.errno == errno.ENAMETOOLONG
        ):  # else it would be told of every record that is looked for there
            raise
    return RunOptions(
        results=results,
        data_root=_data_root(options),
        jobs=options.jobs,
        device=options.device,
        retry_failed=options.retry_failed,
        timeout=options.timeout,
        tune=options.tune,
    )


def _data_root(options: argparse.Namespace) -> Path | None:
    root = options.data_root or os.environ.get("BENCH_DATA")
    return Path(os.path.expanduser(root)) if root else None


def _console() -> Console:
    """Into a file or a pipe goes the whole table, as wide as it is."""
    from rich.console import Console

    return Console() if sys.stdout.isatty() else Console(width=PIPE_WIDTH)
