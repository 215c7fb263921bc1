# SPDX-License-Identifier: Apache-2.0
"""Deliberate defects in the broker: the simulator must notice each within a few simulated hours.

A mutant is a name, then (file, text, replacement) one or more times; a text must stand in its file exactly
once, so that a mutant that no longer fits its code is told, not skipped."""
import os
import shutil
import subprocess
import time

DAYS = "0.3"
SEEDS = (1, 2)
SECONDS = 200  # of one run; a mutant that hangs is noticed too

SCHED, BATCH, HELD = "daemon/sched/sched.c", "daemon/sched/batch.c", "daemon/sched/held.c"
POOL, PREFIX = "daemon/pool/pool.c", "daemon/pool/prefix.c"
REQUEST, GENERATE, CONN = "daemon/broker/request.c", "daemon/broker/generate.c", "daemon/broker/conn.c"
MODEL, RPC, LIST, SERVER = "daemon/broker/model.c", "daemon/broker/rpc.c", "daemon/broker/list.c", "daemon/broker/server.c"

# Domain, position and ids are compared although the chain, a MAC, says all of them. So that they can matter,
# chains are made to collide: everybody's page of a number of ids has the same one.
COLLIDE = (POOL, '{"chain", 5}, {parent, 16}, {ids, n * sizeof(*ids)}', '{"chain", 5}, {&n, 0 * (parent != NULL) + 0 * (ids != NULL) + sizeof(n)}')

MUTANTS = {
    # whose page it is
    "domain is not compared": [COLLIDE, (PREFIX, "memcmp(rec->domain, key->domain, 16) == 0 &&", "")],
    "ids are not compared": [COLLIDE, (PREFIX, "memcmp(rec->ids, key->ids, sizeof(rec->ids)) == 0", "true")],
    "position is not compared": [COLLIDE, (PREFIX, "rec->first_pos == key->first_pos &&", ""),
                                 (PREFIX, "memcmp(rec->ids, key->ids, sizeof(rec->ids)) == 0", "true")],
    "all users have one domain": [(POOL, "uint32_t id = uid;", "uint32_t id = uid * 0;")],
    "the path of rows does not matter": [(PREFIX, "(key->any_path || rec->n_prompt == key->n_prompt) &&", "")],
    "a page changes hands as it is": [(POOL, "rec->magic == PAGE_RECORD_MAGIC && memcmp(rec->domain, domain, 16) != 0", "false")],
    # what a page is in
    "a cached page is found and stays cached": [(POOL, "prefix_revive(p->prefix, page);\n\treturn page;", "return page;")],
    "an evicted page stays in the index": [(PREFIX, "\t*at = x->entries[page].next;\n", "")],
    "the last reference is not the last": [(POOL, "if (--p->uses[page].refs > 0)", "if (--p->uses[page].refs > 1)")],
    "a published page has no reference": [(HELD, "h.pages[h.n] = pool_ref_indexed(s->cfg.pool, pages[h.n]);", "h.pages[h.n] = pages[h.n];")],
    "an unpublished page keeps its reference": [(HELD, "for (uint32_t i = h->n; i-- > 0;)", "for (uint32_t i = h->n; i-- > 1;)")],
    "a prefix is published on top of another": [(SCHED, "if (n > q->n_pages && !q->publish) {", "if (n > q->n_pages) {")],
    "a page is sealed before its ids are known": [(SCHED, "uint32_t n = MIN(q->n_computed, q->n_ids);", "uint32_t n = q->n_posted;")],
    "what stands on another path is sealed": [(SCHED, "if (q->tainted || q->poisoned)", "if (q->poisoned)")],
    "a refused step is sealed": [(SCHED, "q->poisoned |= reply->status != CHANNEL_OK;", "")],
    "a prefix leaves no row to compute": [(SCHED, "while ((q->n_pages + 1) * PAGE_TOKENS < q->n_ids) {", "while ((q->n_pages + 1) * PAGE_TOKENS <= q->n_ids) {")],
    # pages in flight
    "who ends in a step gives its pages back at once": [(SCHED, "\tif (q->n_in_flight == 0 && !q->sched->in_callbacks)\n\t\tseq_remove(q);", "\tseq_drop_pages(q);")],
    "who is in a step is preempted": [(BATCH, "if (victim->n_in_flight) {", "if (false) {"),
                                      (SCHED, "static void seq_yield(struct seq *q)\n{\n\tassert(q->n_in_flight == 0);", "static void seq_yield(struct seq *q)\n{")],
    "who yields keeps its slot's pages and loses count": [(SCHED, "q->n_pages = q->n_sealed = q->n_computed = q->n_posted = q->n_shared = 0;", "q->n_pages = q->n_sealed = q->n_shared = 0;")],
    "rows posted to a dead worker count as computed": [(SCHED, "q->n_posted = q->n_computed;\n", "")],
    "samples of a dead worker are waited for": [(SCHED, "q->n_expected = q->n_ids;\n\t}", "}")],
    # charges
    "pages are given back, their charge is not": [(SCHED, "quota_uncharge(q->sched->cfg.quota, q->uid, QUOTA_PAGES, q->n_pages);", "(void)0;")],
    "a found page is not charged": [(SCHED, "if (quota_charge(q->sched->cfg.quota, q->uid, QUOTA_PAGES, 1, NULL) < 0) {", "if (false) {")],
    "a request's charge stays": [(REQUEST, "\tc->n_requests--;\n\tquota_uncharge(r->server->quota, c->uid, QUOTA_REQUESTS, 1);", "\tc->n_requests--;")],
    "a request's bytes stay charged": [(REQUEST, "quota_uncharge(r->server->quota, r->uid, QUOTA_BYTES, r->n_bytes);", "")],
    "a connection's charge stays": [(CONN, "\tquota_uncharge(c->server->quota, c->uid, QUOTA_CONNECTIONS, 1);\n\ttable_remove", "\ttable_remove")],
    "a refused request was charged": [(REQUEST, "\ti = r ? table_add(&s->requests, r, &r->generation) : -ENOMEM;\n\tif (i < 0) {\n\t\tquota_uncharge(s->quota, c->uid, QUOTA_REQUESTS, 1);",
                                       "\ti = r ? table_add(&s->requests, r, &r->generation) : -ENOMEM;\n\tif (i < 0) {")],
    # ends
    "a cancelled request goes on": [(REQUEST, '\trequest_detach(r);\n\tconn_send_error(c, id, DSD__CODE__CODE_CANCELLED, "cancelled by the client", 0);', '\tconn_send_error(c, id, DSD__CODE__CODE_CANCELLED, "cancelled by the client", 0);')],
    "a cancel ends nothing": [(REQUEST, "struct request *r = request_find(c, frame->cancel->target);", "struct request *r = NULL;")],
    "what matched a stop string goes on": [(GENERATE, "\t\tseq_cancel(c->seq);\n\t\tsend_delta(c, row, true, text, DSD__FINISH__FINISH_STOP);", "\t\tsend_delta(c, row, true, text, DSD__FINISH__FINISH_STOP);")],
    "a request ends twice": [(GENERATE, "\tsend_done(r);\n\trequest_end(r);", "\tsend_done(r);\n\tsend_done(r);\n\trequest_end(r);")],
    "a request ends without a word": [(GENERATE, "\tsend_done(r);\n\trequest_end(r);", "\trequest_end(r);")],
    "of n choices the first end is the request's": [(GENERATE, "if (--r->n_running > 0)", "if (--r->n_running > 0 && c->index == 0)")],
    "a deadline passes": [(REQUEST, "if (now < r->deadline_usec)", "if (now < r->deadline_usec + 1000000)")],
    "a refused step ends nobody": [(SCHED, "\t\telse if (!q->done)\n\t\t\tseq_finish(q, SEQ_END_FAILED);\n", "")],
    "numbers that are none are a token": [(SCHED, "if (row->token == CHANNEL_NO_TOKEN) {", "if (false) {")],
    "the hopeless wait": [(SCHED, "if (batch_post(s) == 0 && !end_the_hopeless(s))", "if (batch_post(s) == 0)")],
    "who kills workers is tried for ever": [(SCHED, "q->n_deaths >= 2", "q->n_deaths >= 200")],
    "a suspect is let go as somebody new": [(MODEL, "if (m->sched && m->retry_usec)", "if (false)")],
    "sequences of a dead worker are forgotten": [(SCHED, "\twhile (s->running.last)\n\t\tseq_yield(s->running.last);", "")],
    "a dead worker is not replaced": [(MODEL, "\tif (!m->leaving || model_in_use(m))\n\t\tretry_later(m);\n", "")],
    "a lying worker stays": [(MODEL, "process_kill(&m->worker); /* its death does the rest */", "")],
    # queues and readers
    "the queue has no end": [(SCHED, "if (s->waiting.n >= s->cfg.queue_max)", "if (false)")],
    "sequences of a slow reader go on": [(CONN, "\t\trequest_pause_all(c, true);\n", "")],
    "a reader that came back is not resumed": [(CONN, "\t\trequest_pause_all(c, false);\n", "")],
    "a stalled reader stays": [(CONN, "if (now < c->stalled_usec + stall_usec(c))", "if (true)")],
    "half a frame may take its time": [(CONN, "conn_set_deadline(c, CONN_FRAME_USEC);\n}", "(void)0;\n}")],
    "nobody need say Hello": [(CONN, "\tconn_set_deadline(c, CONN_HELLO_USEC);\n", "")],
    "a dead client's requests go on": [(CONN, "\tc->dead = c->closing = true;\n\twhile (c->requests)\n\t\trequest_cancel(c->requests);", "\tc->dead = c->closing = true;")],
    "a listener that failed is not tried again": [(SERVER, "if (s->listeners[i].retry_usec && now >= s->listeners[i].retry_usec)", "if (false)")],
    # tokens
    "a row is computed on the other path": [(BATCH, ".path = pos < q->n_prompt ? CHANNEL_PROMPT : CHANNEL_GENERATED,", ".path = CHANNEL_PROMPT,")],
    "one token too many": [(SCHED, "else if (q->n_ids + 1 >= q->max_ids)", "else if (q->n_ids + 1 > q->max_ids)")],
    "a resumed request forgets its seed": [(GENERATE, "\tr->params.seed = resume->seed;\n", "")],
    "a resumed choice is another one": [(GENERATE, "cfg.params.choice = r->first_choice + i;", "cfg.params.choice = i;")],
    "a resumed request forgets half a stop string": [(GENERATE, "matched = choice_take(c, r->input.ids.id[k], &text);", "matched = -1;")],
    "what a stop string held back is lost": [(GENERATE, "stop_flush(c->stop, &text);", "(void)0;")],
    "the prompt's log-probabilities come from the index": [(SCHED, "if (q->n_pages || q->prompt_logprobs)", "if (q->n_pages)")],
    "prompt log-probabilities are told twice": [(SCHED, "row->position >= q->n_told && ", "")],
    "all choices are the first": [(GENERATE, "cfg.params.choice = r->first_choice + i;", "cfg.params.choice = r->first_choice;")],
    # who may do what
    "everybody sees everybody's requests": [(LIST, "(c->admin || r->conn->uid == c->uid)", "(c->admin || r->conn->uid > 0)")],
    "users have the administrators' verbs": [(RPC, "(c->admin ? admin_methods : user_methods)", "(true || c->admin ? admin_methods : user_methods)")],
}


def copy_tree(root, to):
    files = subprocess.run(["git", "-C", root, "ls-files", "-z", "--cached", "--others", "--exclude-standard"], check=True,
                           capture_output=True, stdin=subprocess.DEVNULL).stdout.decode().split("\0")
    for f in files:
        if f and os.path.isfile(os.path.join(root, f)):
            os.makedirs(os.path.dirname(os.path.join(to, f)), exist_ok=True)
            shutil.copy2(os.path.join(root, f), os.path.join(to, f))


def mutate(tree, changes):
    """Return: the files as they were, or a sentence that says what no longer fits."""
    before = {}
    for file, old, new in changes:
        path = os.path.join(tree, file)
        text = open(path).read()
        if text.count(old) != 1:
            return before, "%s holds %d times: %s" % (file, text.count(old), old.strip()[:90])
        before.setdefault(path, text)
        with open(path, "w") as f:
            f.write(text.replace(old, new))
    return before, None


def notice(sim):
    """What the simulator says of the mutant, or None."""
    for seed in SEEDS:
        began = time.monotonic()
        try:
            p = subprocess.run([sim, "--stop-early", "--days", DAYS, "--seed", str(seed)], capture_output=True, text=True,
                               errors="replace", stdin=subprocess.DEVNULL, timeout=SECONDS)
        except subprocess.TimeoutExpired:
            return "no end in %d s" % (time.monotonic() - began)
        if p.returncode == 0:
            continue
        lines = [x for x in (p.stdout + p.stderr).splitlines() if "broken:" in x or "Assertion" in x]
        return lines[0] if lines else "exit status %d" % p.returncode
    return None


def run(claim):
    tree = os.path.join(claim.build, "mutants", "tree")
    build = os.path.join(claim.build, "mutants", "build")
    sim = os.path.join(build, "tests", "sim", "sim")
    shutil.rmtree(tree, ignore_errors=True)
    copy_tree(claim.root, tree)
    for changes in MUTANTS.values():
        for path, _, _ in changes:
            os.utime(os.path.join(tree, path))  # what is built there may be the last mutant of a run before
    if not os.path.exists(os.path.join(build, "build.ninja")):
        claim.command(["meson", "setup", build, tree, "-Dtests=enabled", "-Dwerror=false"])
    claim.command(["ninja", "-C", build, "tests/sim/sim"])
    claim.check(notice(sim) is None, "without a defect nothing is noticed")
    names = sorted(claim.rng.sample(sorted(MUTANTS), claim.some(len(MUTANTS), 2)))
    noticed = 0
    for name in sorted(MUTANTS):
        before, misfit = mutate(tree, MUTANTS[name])
        claim.check(misfit is None, "%s: %s" % (name, misfit))
        if name in names and misfit is None:
            claim.command(["ninja", "-C", build, "tests/sim/sim"])
            said = notice(sim)
            noticed += said is not None
            claim.check(said is not None, "%s: not noticed" % name)
            if said:
                claim.say("  %s: %s" % (name, said[:160]))
        for path, text in before.items():
            with open(path, "w") as f:
                f.write(text)
    claim.figure("noticed", "%d of %d" % (noticed, len(names)))
