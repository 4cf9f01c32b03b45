"""Load on a running `itemlm serve`, or on anything that answers as it does: requests a second, latencies, refusals, memory.

    itemlm serve runs/office --queue 1024 &
    python3 benches/serve.py 127.0.0.1:8080 --clients 1,8,32,128 --requests 200 --pid $!

Histories of 3 to 9 items are drawn with a fixed seed from the first 100 items of the catalogue. Each client keeps one connection and
sends its next request when it has the answer to the last one. Needs nothing but Python.
"""

import argparse
import collections
import http.client
import json
import random
import threading
import time


def resident_mib(pid):
    with open(f"/proc/{pid}/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("VmRSS")) / 1024


def load(address, items, clients, requests, k):
    latencies, statuses = [], collections.Counter()
    left, lock = [requests], threading.Lock()

    def client(seed):
        draw, connection = random.Random(seed), http.client.HTTPConnection(address)
        while True:
            with lock:
                if left[0] == 0:
                    return
                left[0] -= 1
            history = [{"item": draw.choice(items)} for _ in range(draw.randint(3, 9))]
            started = time.perf_counter()
            connection.request("POST", "/v1/recommend", json.dumps({"history": history, "k": k}))
            response = connection.getresponse()
            response.read()
            with lock:
                latencies.append(time.perf_counter() - started)
                statuses[response.status] += 1

    started = time.perf_counter()
    threads = [threading.Thread(target=client, args=(seed,)) for seed in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    seconds = time.perf_counter() - started
    latencies.sort()
    return {
        "clients": clients,
        "requests_per_second": statuses[200] / seconds,
        "p50_ms": 1e3 * latencies[len(latencies) // 2],
        "p99_ms": 1e3 * latencies[int(0.99 * len(latencies))],
        "statuses": dict(statuses),
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("address")
    parser.add_argument("--clients", default="1,8,32,128")
    parser.add_argument("--requests", type=int, default=200, help="for each number of clients")
    parser.add_argument("-k", type=int, default=10)
    parser.add_argument("--pid", type=int, help="of the server, for its memory")
    arguments = parser.parse_args()
    connection = http.client.HTTPConnection(arguments.address)
    connection.request("GET", "/v1/items?limit=100")
    items = [item["item"] for item in json.load(connection.getresponse())["items"]]
    for clients in map(int, arguments.clients.split(",")):
        measured = load(arguments.address, items, clients, arguments.requests, arguments.k)
        if arguments.pid:
            measured["resident_mib"] = resident_mib(arguments.pid)
        print(json.dumps(measured), flush=True)


main()
