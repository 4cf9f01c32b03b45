"""The requests of benches/serve.py answered by transformers' `generate` behind FastAPI, as one would write it in Python: the same table.

    itemlm merge runs/office --out merged
    python3 benches/serve_peer.py runs/office --model merged

It reads the run's run file and corpus and the merged model, constrains beam search by `prefix_allowed_tokens_fn` over a dictionary of prefixes,
and runs one `generate` at a time, as a constraint of each request's own asks for. Needs fastapi, uvicorn, torch, transformers and pandas with
pyarrow.
"""

import argparse
import os
import pathlib
import threading
import time
import tomllib

import pandas
import torch
import transformers
import uvicorn
from fastapi import FastAPI

import serve


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("run", type=pathlib.Path)
    parser.add_argument("--model", required=True, help="a Hugging Face directory")
    parser.add_argument("--prompt", default="The user bought: {history}\nThe next item: ", help="with {history}")
    parser.add_argument("--port", type=int, default=8090)
    serve.add_options(parser, "1,8", 30)
    arguments = parser.parse_args()
    run = tomllib.loads((arguments.run / "run.toml").read_text())
    items = pandas.read_parquet(pathlib.Path(run["data"]["corpus"]) / "items.parquet")
    titles, ids = dict(zip(items.id, items.title)), dict(zip(items.title, items.id))
    tokenizer = transformers.AutoTokenizer.from_pretrained(arguments.model)
    model = transformers.AutoModelForCausalLM.from_pretrained(arguments.model, dtype=torch.float32).eval()
    eos = tokenizer.eos_token_id
    children = {}
    for title in items.title:
        tokens = tokenizer(f'"{title}"', add_special_tokens=False).input_ids + [eos]
        for end, token in enumerate(tokens):
            children.setdefault(tuple(tokens[:end]), set()).add(token)
    app, one_at_a_time = FastAPI(), threading.Lock()

    @app.get("/v1/items")
    def found(limit: int = 20):
        return {"items": [{"item": item, "title": title} for item, title in list(titles.items())[:limit]]}

    @app.post("/v1/recommend")
    def recommend(request: dict):
        history = ", ".join(f'"{titles[entry["item"]]}"' for entry in request["history"])
        inputs = tokenizer(arguments.prompt.format(history=history), return_tensors="pt")
        start, k = inputs.input_ids.shape[1], request.get("k", 10)
        with one_at_a_time, torch.inference_mode():
            lists = model.generate(
                **inputs,
                num_beams=k,
                num_return_sequences=k,
                max_new_tokens=max(map(len, children)) + 1,
                do_sample=False,
                length_penalty=0.0,
                prefix_allowed_tokens_fn=lambda _, tokens: list(children.get(tuple(tokens[start:].tolist()), [eos])),
                return_dict_in_generate=True,
                output_scores=True,
            )
        answers = []
        for sequence, score in zip(lists.sequences, lists.sequences_scores):
            title = tokenizer.decode(sequence[start:], skip_special_tokens=True).strip('"')
            answers.append({"rank": len(answers) + 1, "item": ids.get(title), "title": title, "score": float(score)})
        return {"model": "transformers", "items": answers}

    server = uvicorn.Server(uvicorn.Config(app, port=arguments.port, log_level="warning"))
    threading.Thread(target=server.run, daemon=True).start()
    while not server.started:
        time.sleep(0.1)
    clients = map(int, arguments.clients.split(","))
    serve.table(f"127.0.0.1:{arguments.port}", os.getpid(), clients, arguments.seconds, arguments.k)


main()
