"""The usual pandas way from a raw log to a corpus, as `itemlm prepare` gives it: items without a title go, 5-core, windows of 11, 8:1:1 by time.

  V/bin/python tests/reference/prepare_pandas.py amazon REVIEWS.json METADATA.json OUT     JSON lines of 2018, plain or .gz
  V/bin/python tests/reference/prepare_pandas.py table LOG.csv OUT                         columns user, item, rating, timestamp, title

Needs pandas and pyarrow. Vectorised throughout; JSON lines are read in chunks and stripped to the columns that count, which keeps it well below
the memory of a plain `read_json`. Writes items, interactions and windows-{train,valid,test}.parquet with itemlm's columns; prints counts as JSON.
"""
import json, os, sys
import pandas as pd

HISTORY = 10

def read_amazon(reviews, metadata):
    columns = ["reviewerID", "asin", "unixReviewTime", "overall"]
    chunks = pd.read_json(reviews, lines=True, chunksize=500_000, dtype={"reviewerID": str, "asin": str})
    events = pd.concat([chunk[columns] for chunk in chunks], ignore_index=True)
    events.columns = ["user_id", "item_id", "timestamp", "rating"]
    chunks = pd.read_json(metadata, lines=True, chunksize=500_000, dtype={"asin": str, "title": str})
    titles = pd.concat([chunk[["asin", "title"]] for chunk in chunks])
    titles = titles.drop_duplicates("asin").set_index("asin")["title"]
    return events, titles[titles.fillna("").str.strip() != ""]

def read_table(path):
    events = pd.read_csv(path, dtype={"user": str, "item": str, "title": str})
    titles = events.dropna(subset=["title"]).drop_duplicates("item").set_index("item")["title"]
    events = events[["user", "item", "timestamp", "rating"]]
    events.columns = ["user_id", "item_id", "timestamp", "rating"]
    return events, titles

def k_core(events, k):
    while True:
        users, items = events["user_id"].value_counts(), events["item_id"].value_counts()
        kept = events[events["user_id"].isin(users.index[users >= k]) & events["item_id"].isin(items.index[items >= k])]
        if len(kept) == len(events):
            return kept
        events = kept

def main(source, *paths):
    *inputs, out = paths
    events, titles = read_amazon(*inputs) if source == "amazon" else read_table(*inputs)
    events = k_core(events[events["item_id"].isin(titles.index)], 5).copy()
    events["user"], users = pd.factorize(events["user_id"], sort=True)
    events["item"], items = pd.factorize(events["item_id"], sort=True)
    events = events.sort_values(["user", "timestamp"], kind="stable", ignore_index=True)

    position = events.groupby("user").cumcount()
    count = events.groupby("user")["item"].transform("size")
    ends = (position >= HISTORY) | ((count <= HISTORY + 1) & (position == count - 1) & (count >= 2))
    windows = events.loc[ends, ["user", "timestamp"]].copy()
    windows["len"] = (position[ends] + 1).clip(upper=HISTORY + 1)
    windows["start"] = windows.index - windows["len"] + 1
    windows = windows.sort_values(["timestamp", "user", "start"], kind="stable")
    train, valid = len(windows) * 8 // 10, len(windows) * 9 // 10

    os.makedirs(out, exist_ok=True)
    pd.DataFrame({"item": range(len(items)), "id": items, "title": titles.reindex(items).to_numpy()}).to_parquet(f"{out}/items.parquet", index=False)
    events[["user", "user_id", "item", "timestamp", "rating"]].to_parquet(f"{out}/interactions.parquet", index=False)
    parts = {"train": windows[:train], "valid": windows[train:valid], "test": windows[valid:]}
    for name, part in parts.items():
        part[["user", "start", "len", "timestamp"]].to_parquet(f"{out}/windows-{name}.parquet", index=False)
    print(json.dumps({"users": len(users), "items": len(items), "interactions": len(events), "windows": {n: len(p) for n, p in parts.items()}}))

main(*sys.argv[1:])
