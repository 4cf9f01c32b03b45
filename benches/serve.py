"""Load on `itemlm serve`: a table of requests a second, latencies, refusals and memory, in less than two minutes.

    python3 benches/serve.py runs/office
    python3 benches/serve.py runs/office --itemlm target/release/itemlm --clients 1,8,32,128 --seconds 20

starts the server on a free port, with further options of `itemlm serve` after `--`, waits until it is ready, and ends it. Histories of 3 to 9 items
are drawn with a fixed seed from the first 100 items of the catalogue. Each client keeps one connection and sends its next request when it
has the answer to the last one. The table's memory is the server's after the last answer. Needs nothing but Python.
"""

import argparse
import collections
import http.client
import json
import random
import subprocess
import threading
import time


def resident_mib(pid):
    with open(f"/proc/{pid}/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("VmRSS")) / 1024


def load(address, items, clients, seconds, k):
    """Returns the seconds of each answer in time, and the number of answers of each status."""
    latencies, statuses, lock = [], collections.Counter(), threading.Lock()
    end = time.perf_counter() + seconds

    def client(seed):
        draw, connection = random.Random(seed), http.client.HTTPConnection(address, timeout=seconds)
        while time.perf_counter() < end:
            history = [{"item": draw.choice(items)} for _ in range(draw.randint(3, 9))]
            started = time.perf_counter()
            try:
                body, headers = json.dumps({"history": history, "k": k}), {"Content-Type": "application/json"}
                connection.request("POST", "/v1/recommend", body, headers)
                response = connection.getresponse()
                response.read()
            except (OSError, http.client.HTTPException):
                connection.close()
                continue
            now = time.perf_counter()
            if now > end:
                return
            with lock:
                statuses[response.status] += 1
                if response.status == 200:
                    latencies.append(now - started)
            if response.status == 429:
                # A client that is told to come again does not do so at once.
                time.sleep(0.1)

    threads = [threading.Thread(target=client, args=(seed,)) for seed in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return sorted(latencies), statuses


def table(address, pid, clients, seconds, k):
    connection = http.client.HTTPConnection(address)
    connection.request("GET", "/v1/items?limit=100")
    items = [item["item"] for item in json.load(connection.getresponse())["items"]]
    print("| clients | requests/s | p50 ms | p99 ms | 429 | other | memory MiB |\n|--:|--:|--:|--:|--:|--:|--:|", flush=True)
    for count in clients:
        latencies, statuses = load(address, items, count, seconds, k)
        at = lambda part: f"{1e3 * latencies[int(part * len(latencies))]:.1f}" if latencies else "none"
        other = sum(statuses.values()) - statuses[200] - statuses[429]
        rate = f"{statuses[200] / seconds:.1f}"
        print(f"| {count} | {rate} | {at(0.5)} | {at(0.99)} | {statuses[429]} | {other} | {resident_mib(pid):.0f} |", flush=True)


def add_options(parser, clients, seconds):
    parser.add_argument("--clients", default=clients, help="numbers of clients, one after another")
    parser.add_argument("--seconds", type=float, default=seconds, help="of each number of clients")
    parser.add_argument("-k", type=int, default=10)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("run")
    parser.add_argument("--itemlm", default="itemlm", help="the program")
    parser.add_argument("serve", nargs="*", help="options of `itemlm serve`, after --")
    add_options(parser, "1,8,32,128", 20)
    arguments = parser.parse_args()
    command = [arguments.itemlm, "serve", arguments.run, "--port", "0", *arguments.serve]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as server:
        try:
            address = json.loads(server.stdout.readline())["listening"].removeprefix("http://")
            while True:
                connection = http.client.HTTPConnection(address)
                connection.request("GET", "/health/ready")
                if connection.getresponse().status == 200:
                    break
                time.sleep(0.1)
            table(address, server.pid, map(int, arguments.clients.split(",")), arguments.seconds, arguments.k)
        finally:
            server.terminate()


if __name__ == "__main__":
    main()
