# SPDX-License-Identifier: Apache-2.0
"""Simulated days of the broker: nothing broken, every fault and every verb often, the same seed the same hash."""
DAYS = 10
LEAST_PER_DAY = 10
REQUESTS_PER_DAY = 100000
RATE = 1000  # times real time, on one core
FAULTS = ["client_death", "connection_lost", "slow_reader", "half_frame", "garbage", "cancel", "deadline", "worker_death",
          "worker_death_loading", "killer", "worker_slow", "worker_lies", "step_refused", "no_numbers", "accept_failed",
          "no_memory", "pool_short"]
ACTS = ["generate", "chat", "choices", "logprobs", "echo", "echo_logprobs", "stop", "resume", "resume_choice", "reuse", "repeat", "come_back", "score", "tokenize",
        "detokenize", "session_open", "session_fork", "session_close", "session_use", "session_over", "descriptor", "list", "stats", "models", "cancel_number", "forbidden", "publish", "unpublish", "evict", "find_shared",
        "reload", "drain", "unload", "load"]
AGAIN = 0.02  # of a day, twice


def run(claim):
    sim, = claim.need("tests/sim/sim")
    days = max(AGAIN, DAYS * claim.fraction)
    total, seconds = {}, 0.0
    todo, seed = days, claim.seed
    while todo > 1e-9:
        share = min(1.0, todo)
        status, figures, output = claim.program([sim, "--seed", str(seed), "--days", "%.4f" % share])
        f = {k: v for line in figures for k, v in line.items()}
        claim.check(status == 0 and f.get("broken") == "0", "seed %d: nothing is broken\n%s" % (seed, output[-2000:]))
        if "hash" not in f:
            return
        for k in ["requests", "events", "tokens", "steps", "checks", "quiet"] + FAULTS + ACTS:
            total[k] = total.get(k, 0) + int(f[k])
        seconds += float(f["cpu_seconds"])
        todo -= share
        seed += 1
    hashes = [claim.program([sim, "--seed", str(claim.seed), "--days", str(AGAIN)])[1][-1]["hash"] for _ in range(2)]
    claim.check(hashes[0] == hashes[1], "seed %d replays: %s" % (claim.seed, " ".join(hashes)))
    claim.figure("days", "%.3f" % days)
    for k, v in total.items():
        claim.figure(k, v)
    claim.figure("rate", "%.0f x real time" % (days * 86400 / seconds))
    claim.figure("hash", hashes[0])
    claim.check(total["requests"] >= REQUESTS_PER_DAY * days * 0.9, "%d requests in %.3f days" % (total["requests"], days))
    claim.check(days * 86400 / seconds >= RATE, "%d times as fast as the world" % RATE)
    for k in FAULTS + ACTS:
        # A small share of a day cannot have each of them for sure.
        claim.check(total[k] >= LEAST_PER_DAY * days or days < 1, "%s: %d times in %.3f days" % (k, total[k], days))
