"""Replay records to Weights & Biases. The local records stay the truth; what is sent is a view.

A run has the id of its operating point, so pushing again updates it. A ledger in the results folder says what
each destination has; only what is new or changed goes out. W&B is imported when there is something to send,
and nothing waits for a login.
"""

from __future__ import annotations

import hashlib
import json
import netrc
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import urlparse

from pydantic import ValidationError

from bench.errors import BadInput
from bench.records.files import write_atomically
from bench.records.read import Records, read_records
from bench.records.schema import MeasureRecord, PointRecord, TrainRecord

if TYPE_CHECKING:
    import pandas

LEDGER = "wandb-ledger.json"
LEADERBOARD_RUN = "leaderboard"
TAG_LENGTH = 64
"""Characters: W&B refuses a run with a longer tag. The whole words stand in its config."""


class Pushed(NamedTuple):
    """Ids of the runs that were sent (the leaderboard's among them), and of how many points the destination had all
    already. folder: where the files of an offline push lie."""

    sent: list[str]
    unchanged: int
    folder: Path | None = None

    def in_words(self, project: str) -> str:
        """What a person wants to know of a push into `project`."""
        runs = f"{len(self.sent)} run{'' if len(self.sent) == 1 else 's'}"
        had = f"{self.unchanged} operating point{'' if self.unchanged == 1 else 's'} had not changed"
        if self.folder is None:
            return f"{runs} sent to the W&B project {project!r}; {had}"
        where = self.folder / "wandb"
        return (
            f"{runs} written for the W&B project {project!r}; {had}; `wandb sync` sends what lies in {where}"
        )


class _Replay(NamedTuple):
    """One run to be. key: of its content."""

    id: str
    record: PointRecord | TrainRecord
    train: TrainRecord | None
    measures: list[MeasureRecord]
    key: str


def push(
    results: str | Path,
    project: str,
    entity: str | None = None,
    offline: bool = False,
    directory: str | Path | None = None,
) -> Pushed:
    """Send the operating points below `results`, failed ones too, and the leaderboard.

    offline: write W&B's files under `directory` (default: `results`), for `wandb sync` on another
    day. Raises `BadInput` where W&B would ask for a login.
    """
    results = Path(results)
    records = read_records(results)
    if not records.point and not records.train:
        raise BadInput(f"results folder {results}: there are no records to push")
    directory = Path(directory) if directory is not None else results
    if not offline:
        _check_login()
    destination = _destination(project, entity, offline, results, directory)
    ledger = _read_ledger(results / LEDGER)
    known = ledger.setdefault(destination, {})
    sent: list[str] = []

    def sent_now(id: str, key: str) -> None:
        known[id] = key
        sent.append(id)
        text = json.dumps(ledger, indent=1, sort_keys=True) + "\n"
        write_atomically(results / LEDGER, text.encode())  # after every run: an interrupted push goes on

    options = {"project": project, "entity": entity, "offline": offline, "directory": directory}
    replays = list(_replays(records))
    for replay in replays:
        if known.get(replay.id) != replay.key:
            _send(replay, options)
            sent_now(replay.id, replay.key)
    board = _leaderboard(records)
    key = _hash(board.to_csv(index=False))
    unchanged = len(replays) - len(sent)
    if known.get(LEADERBOARD_RUN) != key:
        _send_leaderboard(board, options)
        sent_now(LEADERBOARD_RUN, key)
    return Pushed(sent, unchanged, directory if offline else None)


def _replays(records: Records) -> Iterator[_Replay]:
    """One per operating point, and one per failed training that left no point."""
    measures: dict[str, list[MeasureRecord]] = {}
    for measure in records.measure.values():
        measures.setdefault(measure.point_id, []).append(measure)
    reached = set()
    for id, point in sorted(records.point.items()):
        reached.add(point.train_id)
        train = records.train.get(point.train_id)
        mine = sorted(measures.get(id, []), key=lambda measure: (measure.created, measure.id))
        parts = [point, *([train] if train else []), *mine]
        yield _Replay(id, point, train, mine, _hash("".join(part.model_dump_json() for part in parts)))
    for id, train in sorted(records.train.items()):
        if train.status == "failed" and id not in reached:
            yield _Replay(id, train, train, [], _hash(train.model_dump_json()))


def _config(replay: _Replay) -> dict[str, Any]:
    record = replay.record
    return {
        "suite": record.suite,
        "dataset": record.workload.dataset,
        "dataset_fingerprint": record.workload.dataset_fingerprint,
        "network": record.workload.network,
        "recipe": record.workload.recipe,
        **record.workload.beside_recipe(),
        "method": record.method.name,
        "label": record.method.label,
        "granularity": record.method.granularity,
        "config": record.method.variant(),
        "strength": record.strength,
        "seed": record.seed,
        "protocol_version": record.protocol_version,
        "schema_version": record.schema_version,
        "versions": record.versions,
        "device": record.machine.device,
    }


def _summary(replay: _Replay) -> dict[str, Any]:
    record = replay.record
    summary: dict[str, Any] = {"status": record.status}
    if record.failure is not None:
        summary |= {"failure": record.failure.kind, "reason": record.failure.reason}
    if replay.train is not None:
        summary |= {"train/seconds": replay.train.seconds, "train/epochs": sum(replay.train.epochs.values())}
        summary["train/step_milliseconds"] = replay.train.step_milliseconds
    if isinstance(record, PointRecord):
        for name in (
            "test",
            "validation",
            "masked_test",
            "masked_validation",
            "cost",
            "dense_cost",
            "certificate",
        ):
            part = getattr(record, name)
            if part is not None:
                summary |= {f"{name}/{key}": value for key, value in part.model_dump().items()}
    for measure in replay.measures:
        for part in measure.latency:
            place = f"latency/{measure.machine.device}/{part.engine}/{part.clock}/b{part.batch}"
            summary |= {
                f"{place}/compact_median_ms": part.compact_median,
                f"{place}/dense_median_ms": part.dense_median,
                f"{place}/speedup": part.speedup,
            }
    return {name: value for name, value in summary.items() if value is not None}


def _start(id: str, options: Mapping[str, Any], **more: Any) -> Any:
    """A run that says nothing on the terminal and nothing about the machine beyond what the records say."""
    import wandb

    options["directory"].mkdir(parents=True, exist_ok=True)
    try:
        settings = wandb.Settings(
            console="off",
            silent=True,
            disable_git=True,
            disable_code=True,
            save_code=False,
            host="",
            x_disable_meta=True,
            x_disable_machine_info=True,
            x_disable_stats=True,
            x_save_requirements=False,
        )
        return wandb.init(
            id=id,
            project=options["project"],
            entity=options["entity"],
            dir=options["directory"],
            mode="offline" if options["offline"] else "online",
            resume=None
            if options["offline"]
            else "allow",  # offline nothing can resume: `wandb sync` merges by id
            reinit="create_new",
            settings=settings,
            **more,
        )
    except ValidationError as error:  # of what the environment says
        first = error.errors()[0]
        setting = "_".join(map(str, first["loc"]))
        raise BadInput(
            f"W&B does not take its setting {setting} (WANDB_{setting.upper()}): {first['msg']}"
        ) from None
    except wandb.errors.Error as error:
        reason = str(error).strip().partition("\n")[0]
        raise BadInput(f"W&B refused the project {options['project']!r}: {reason}") from None


def _send(replay: _Replay, options: Mapping[str, Any]) -> None:
    record = replay.record
    run = _start(
        replay.id,
        options,
        name=f"{record.method.label} {record.workload.network} {record.strength} s{record.seed}",
        group=record.suite,
        job_type=record.kind,
        tags=[
            word[:TAG_LENGTH]
            for word in (record.workload.dataset, record.workload.network, record.method.label)
        ],
        config=_config(replay),
    )
    try:
        history = replay.train.history if replay.train is not None else []
        for step, epoch in enumerate(
            history[run.step :], start=run.step
        ):  # what a resumed run has is not sent again
            run.log(dict(epoch), step=step)
        run.summary.update(_summary(replay))
    finally:
        run.finish(exit_code=0 if record.status == "done" else 1)


def _send_leaderboard(board: pandas.DataFrame, options: Mapping[str, Any]) -> None:
    import wandb

    plain = board.astype("object").where(board.notna(), None)
    run = _start(LEADERBOARD_RUN, options, name="leaderboard", job_type="leaderboard")
    try:
        run.log(
            {
                "leaderboard": wandb.Table(
                    columns=list(plain.columns), data=list(plain.itertuples(index=False, name=None))
                )
            }
        )
    finally:
        run.finish()


def _leaderboard(records: Records) -> pandas.DataFrame:
    from bench.records.frame import point_frame
    from bench.report.leaderboard import leaderboard

    return leaderboard(point_frame(records))


def _destination(project: str, entity: str | None, offline: bool, results: Path, directory: Path) -> str:
    if offline:
        return f"offline:{os.path.relpath(directory, results)}:{entity or ''}/{project}"
    return f"{_server()}:{entity or ''}/{project}"


def _server() -> str:
    return os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai").rstrip("/")


def _check_login() -> None:
    """W&B would ask on the terminal, or wait; so look where it looks."""
    if os.environ.get("WANDB_API_KEY") or os.environ.get("WANDB_IDENTITY_TOKEN_FILE"):
        return
    host = urlparse(_server()).hostname or ""
    candidates = [os.environ.get("NETRC"), "~/.netrc", "~/_netrc"]
    for path in (Path(name).expanduser() for name in candidates if name):
        try:
            if path.is_file() and netrc.netrc(path).authenticators(host):
                return
        except (netrc.NetrcParseError, OSError):
            continue
    raise BadInput(
        f"W&B has no key for {host}: set WANDB_API_KEY, or run `wandb login` once, or push with --offline"
    )


def _read_ledger(path: Path) -> dict[str, dict[str, str]]:
    try:
        ledger = json.loads(path.read_bytes())
    except FileNotFoundError:
        return {}
    except ValueError:
        raise BadInput(f"{path}: no JSON; remove it to push everything again") from None
    if not isinstance(ledger, dict) or not all(isinstance(part, dict) for part in ledger.values()):
        raise BadInput(f"{path}: not a ledger of pushes; remove it to push everything again")
    return ledger


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]
