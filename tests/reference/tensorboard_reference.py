"""Event records by Python's tensorboard -> tensorboard/events; with a directory, prints the numbers in its event files. Needs tensorboard.

    python tests/reference/tensorboard_reference.py            writes the fixture
    python tests/reference/tensorboard_reference.py RUN_DIR    what TensorBoard reads of a run, beside its metrics.jsonl
"""
import json
import sys
from pathlib import Path

from tensorboard.compat.proto import event_pb2, summary_pb2
from tensorboard.summary.writer.record_writer import RecordWriter

OUT = Path(__file__).parent.parent / "fixtures" / "reference" / "tensorboard"

if len(sys.argv) == 1:
    OUT.mkdir(parents=True, exist_ok=True)
    values = [summary_pb2.Summary.Value(tag=tag, simple_value=value) for tag, value in (("loss", 2.5), ("lr", 1e-4))]
    start = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
    with open(OUT / "events", "wb") as file:
        writer = RecordWriter(file)
        for event in (
            event_pb2.Event(wall_time=1764547200.25, file_version="brain.Event:2"),
            event_pb2.Event(wall_time=1764547201.5, step=301, session_log=start),
            event_pb2.Event(wall_time=1764547202.0, step=300, summary=summary_pb2.Summary(value=values)),
        ):
            writer.write(event.SerializeToString())
    sys.exit()

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

run = Path(sys.argv[1])
accumulator = EventAccumulator(str(run / "tensorboard"), size_guidance={"scalars": 0}).Reload()
lines = {line["step"]: line for line in map(json.loads, (run / "metrics.jsonl").read_text().splitlines())}
for tag in sorted(accumulator.Tags()["scalars"]):
    scalars = accumulator.Scalars(tag)
    print(tag, [(s.step, round(s.value, 6)) for s in scalars])
    key = tag.removeprefix("train/")
    if key != tag:
        assert [s.step for s in scalars] == sorted(lines), f"{tag}: steps {[s.step for s in scalars]}"
        for s in scalars:
            assert abs(s.value - lines[s.step][key]) <= 1e-6 * max(1, abs(lines[s.step][key])), f"{tag} of step {s.step}"
print("equal to metrics.jsonl")
