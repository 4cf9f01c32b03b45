"""Writes the eleven events of tests/prepare/cases.rs to tests/fixtures/data_cases/types.parquet, ids, times and ratings in
columns of many types, next to columns of types that `prepare` cannot read.

    python3 tests/reference/parquet_types.py     (pyarrow 18 or later)
"""

import decimal
import os
import uuid

import numpy
import pyarrow as pa
import pyarrow.parquet as pq

here = os.path.dirname(os.path.abspath(__file__))
users = [1, 2, 1, 3, 2, 1, 3, 2, 1, 3, 3]
items = [0, 1, 1, 2, 2, 2, 3, 0, 3, 0, 1]
ratings = [5, 4, 3, 2, 5, 1, 4, 4, 5, 3, 5]
seconds = [1_400_000_000 + n for n in range(1, 12)]
columns = {}
for width in (8, 16, 32, 64):
    columns[f"user_i{width}"] = pa.array(users, getattr(pa, f"int{width}")())
    columns[f"user_u{width}"] = pa.array(users, getattr(pa, f"uint{width}")())
    columns[f"rating_i{width}"] = pa.array(ratings, getattr(pa, f"int{width}")())
    columns[f"rating_u{width}"] = pa.array(ratings, getattr(pa, f"uint{width}")())
text = [str(u) for u in users]
columns["user_text"] = pa.array(text)
columns["user_large"] = pa.array(text, pa.large_string())
columns["user_binary"] = pa.array([t.encode() for t in text], pa.binary())
columns["user_dictionary"] = pa.array(text).dictionary_encode()
columns["user_decimal"] = pa.array([decimal.Decimal(u) for u in users], pa.decimal128(9, 0))
columns["user_struct"] = pa.array([{"name": "x", "inner": {"id": u, "list": [1]}} for u in users])
columns["item"] = pa.array([f"i{i}" for i in items]).dictionary_encode()
columns["title"] = pa.array([["Alpha", "Beta", "Gamma", "Delta"][i] for i in items])
columns["rating_f16"] = pa.array(numpy.array(ratings, numpy.float16))
columns["rating_f32"] = pa.array(ratings, pa.float32())
columns["rating_f64"] = pa.array([float(r) for r in ratings])
columns["rating_decimal"] = pa.array([decimal.Decimal(r) for r in ratings], pa.decimal128(12, 3))
columns["rating_decimal_small"] = pa.array([decimal.Decimal(r) for r in ratings], pa.decimal128(4, 1))
columns["rating_text"] = pa.array([f"{r}.0" for r in ratings])
for unit, factor in (("s", 1), ("ms", 1000), ("us", 10**6), ("ns", 10**9)):
    scaled = [s * factor for s in seconds]
    columns[f"time_{unit}"] = pa.array(scaled, pa.timestamp(unit))
    columns[f"time_{unit}_zone"] = pa.array(scaled, pa.timestamp(unit, tz="America/New_York"))
    columns[f"time_{unit}_number"] = pa.array(scaled, pa.int64())
columns["time_u32"] = pa.array(seconds, pa.uint32())
columns["time_f64"] = pa.array([float(s) for s in seconds])
columns["time_decimal"] = pa.array([decimal.Decimal(s) for s in seconds], pa.decimal128(18, 3))
columns["time_text"] = pa.array([str(s) for s in seconds])
# Types that are not read, and need not be.
columns["x_list"] = pa.array([[{"a": [1]}]] * 11)
columns["x_map"] = pa.array([[("k", 1)]] * 11, pa.map_(pa.string(), pa.int8()))
columns["x_time"] = pa.array([1] * 11, pa.time64("ns"))
columns["x_uuid"] = pa.array([uuid.UUID(int=n).bytes for n in range(11)], pa.binary(16))
columns["x_decimal256"] = pa.array([decimal.Decimal(n) for n in range(11)], pa.decimal256(60, 2))
columns["x_null"] = pa.nulls(11)
columns["x_duration"] = pa.array([1] * 11, pa.duration("ms"))
columns["x_empty"] = pa.array([[]] * 11, pa.list_(pa.float16()))
target = os.path.join(here, "../fixtures/data_cases/types.parquet")
pq.write_table(pa.table(columns), target, row_group_size=4, compression="snappy")
other = os.path.join(here, "../fixtures/data_cases/int96.parquet")
pq.write_table(pa.table({k: columns[k] for k in ("user_i64", "item", "time_ns")}), other, use_deprecated_int96_timestamps=True, compression="gzip")
