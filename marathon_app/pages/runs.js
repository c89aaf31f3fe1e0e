// What is known of a run, and what is to be seen of it: facts in, rows of bars out. Nothing here draws.
//
// A run: key, id, path, recipient, duplicate, start (this page's clock), status, answer (milliseconds
// until the answer came), noAnswer, server (what /dev/timeline told, at the moment `seen`), mail
// (milliseconds until the mailbox had the mail), killed (milliseconds until the process died).

import { milliseconds } from "./waterfall.js";

export const STORE = "INSERT runners";
export const CONFIRM = "send confirmation e-mail";
const CONFIRMS = /^send[ _]confirmation/; // a stored task is called by its registered name
const FINAL = ["succeeded", "failed", "cancelled", "discarded", "abandoned"];
const PATIENCE = 60000; // milliseconds to look for a mail that a queue holds
const ELSEWHERE = 500; // milliseconds after its mail in which a task of this process would have told of itself
const DUPLICATE_PATIENCE = 2000; // where there should be none

// Who has given up has no answer, whatever the server thinks it has sent.
export const answeredAt = (run) => (run.noAnswer ? undefined : (run.server?.answered ?? run.answer));
const isAnswered = (run) => answeredAt(run) !== undefined;
const tasksOf = (run) => toldOf(run).filter((row) => row.kind === "task");
const mailTask = (run) => tasksOf(run).find((row) => CONFIRMS.test(row.name));

// What the server told. Stored work may be run by another process, of which it knows nothing: then the mail tells.
function toldOf(run) {
  const rows = run.server?.rows ?? [];
  if (run.key !== "durable" || run.mail === undefined || !(run.server?.now > run.mail + ELSEWHERE)) return rows;
  const unheard = (row) => row.kind === "task" && row.state === "pending" && !row.segments.length;
  const done = (row) => ({ ...row, state: "succeeded", segments: [{ start: Math.min(row.created, run.mail), end: run.mail }] });
  return rows.map((row) => (unheard(row) ? done(row) : row));
}

// Milliseconds from the run's start, on the server's clock where it is known.
export function elapsed(run, now) {
  if (run.killed !== undefined) return run.killed;
  return run.server ? run.server.now + (now - run.seen) : now - run.start;
}

// What became of the mail: "sent", "failed", "lost", "none" or "waiting".
export function mailFate(run, now) {
  const task = mailTask(run);
  if (run.mail !== undefined || task?.state === "succeeded") return "sent";
  if (task && FINAL.includes(task.state)) return "failed";
  if (run.killed !== undefined) return run.key === "durable" && now - run.start < PATIENCE ? "waiting" : "lost";
  if (run.status >= 400 || (run.noAnswer && !task)) return "none";
  if (task) return "waiting";
  if (!isAnswered(run)) return "waiting";
  if (run.watches && !(run.key === "durable" && !run.duplicate)) return run.duplicate || run.server ? "none" : "waiting";
  return now - run.start < (run.duplicate ? DUPLICATE_PATIENCE : PATIENCE) ? "waiting" : "none";
}

export function isOver(run, now) {
  if (!run.noAnswer && run.status === undefined) return false;
  if (run.killed === undefined && run.server) {
    if (run.server.answered == null && !run.noAnswer) return false;
    if (tasksOf(run).some((row) => !FINAL.includes(row.state))) return false;
  }
  return mailFate(run, now) !== "waiting";
}

// The last moment there is anything of it to see.
export function lastOf(run, now) {
  const ends = tasksOf(run).flatMap((row) => row.segments.map((segment) => segment.end ?? 0));
  const live = isOver(run, now) ? 0 : run.killed !== undefined ? now - run.start : elapsed(run, now);
  const mail = mailTaskEnded(run) ? 0 : (run.mail ?? 0); // the task's own times are the better ones
  return Math.max(answeredAt(run) ?? 0, mail, run.killed ?? 0, live, ...ends);
}

function requestRow(run, at) {
  const answered = answeredAt(run);
  const ended = answered ?? (run.noAnswer ? run.killed ?? run.gaveUp ?? at : undefined);
  const bad = run.noAnswer || run.status >= 400;
  const look = ended === undefined ? "request running" : bad ? "bad" : "request";
  const text = answered !== undefined ? milliseconds(answered) : run.noAnswer ? "no answer" : "…";
  return { key: "request", name: "request", indent: false, segments: [{ start: 0, end: ended ?? at, look }], text };
}

// Attempts are bars; between them, while the next one is waited for, it is hatched.
function segmentsOf(row, run, at) {
  const answered = answeredAt(run) ?? Infinity;
  const segments = [];
  // Stored work waits for a worker, pale; what waits in memory waits for the answer alone.
  let free = undefined;
  if (run.key === "durable" && row.kind === "task") {
    segments.push({ start: row.created, end: row.segments[0]?.start ?? at, look: "queued" });
  }
  for (const { start, end, failed } of row.segments) {
    if (free !== undefined) segments.push({ start: free, end: start, look: "backoff" });
    const isOpen = end == null;
    const good = row.kind === "step" || (end ?? at) <= answered + 1 ? "before" : "after";
    const look = isOpen ? (run.killed === undefined ? "running" : "bad lost") : failed ? "bad" : good;
    segments.push({ start, end: end ?? at, look });
    free = end ?? at;
  }
  if (row.state === "retrying" && free !== undefined) segments.push({ start: free, end: at, look: "backoff" });
  return segments;
}

function rowOf(row, index, run, at) {
  const title = CONFIRMS.test(row.name) ? CONFIRM : row.name;
  const outlives = row.kind === "task" && run.key !== "sequential";
  const segments = segmentsOf(row, run, at);
  const ran = row.segments.reduce((sum, { start, end }) => sum + ((end ?? at) - start), 0);
  const open = !FINAL.includes(row.state);
  let text = milliseconds(ran);
  if (open) text = run.killed === undefined ? "…" : "lost";
  else if (row.segments.length > 1) text = `${row.segments.length} tries`;
  const name = outlives ? `↳ ${title}` : title;
  return { key: `${index} ${title}`, name, indent: true, segments, text };
}

function rowsOf(run, now) {
  const at = elapsed(run, now);
  const rows = [requestRow(run, at)];
  const order = (row) => (row.kind === "step" ? 0 : 1);
  const known = [...toldOf(run)].sort((a, b) => order(a) - order(b));
  const stored = known.some((row) => row.name === STORE);
  if (run.watches && !stored && !isAnswered(run) && run.key !== "concurrent") {
    const look = run.killed === undefined && !run.noAnswer ? "running" : "bad lost";
    rows.push({ key: "0 " + STORE, name: STORE, indent: true, segments: [{ start: 0, end: at, look }], text: "…" });
  }
  known.forEach((row, index) => rows.push(rowOf(row, index, run, at)));
  const fate = mailFate(run, now);
  let mail = rows.find((row) => row.key.endsWith(CONFIRM));
  if (!mail && isAnswered(run) && run.hasOutbox && fate !== "none" && run.status < 400) {
    mail = { key: CONFIRM, name: `↳ ${CONFIRM}`, indent: true, segments: [], text: "" };
    const from = Math.min(answeredAt(run), run.mail ?? Infinity);
    const until = Math.min(run.mail ?? at, run.killed ?? Infinity);
    const look = run.mail === undefined ? (fate === "waiting" && run.killed === undefined ? "running" : "queued") : run.killed === undefined ? "after" : "queued";
    mail.segments.push({ start: from, end: until, look: fate === "lost" ? "bad lost" : look });
    mail.text = fate === "lost" ? "lost" : run.mail === undefined ? "…" : milliseconds(run.mail - from);
    rows.push(mail);
  }
  if (mail && run.killed !== undefined && !mailTaskEnded(run)) {
    if (run.mail !== undefined && run.mail > run.killed) {
      mail.segments.push({ start: run.killed, end: run.mail, look: "after" });
      mail.text = "survived";
    } else if (fate === "waiting") {
      mail.segments.push({ start: run.killed, end: now - run.start, look: "running" });
      mail.text = "stored";
    }
  }
  return rows;
}

const mailTaskEnded = (run) => FINAL.includes(mailTask(run)?.state);

function summaryOf(run, now) {
  if (run.noAnswer) return run.killed === undefined ? "no answer" : "no answer: the process died first";
  if (!isAnswered(run)) return "…";
  const first = `response ${milliseconds(answeredAt(run))}`;
  if (!run.hasOutbox && !run.server) return first;
  const fate = mailFate(run, now);
  if (fate === "waiting") return `${first} · all done …`;
  if (fate === "lost") return `${first} · mail lost`;
  if (fate === "failed") return `${first} · mail failed`;
  if (fate === "none") return `${first} · ${run.duplicate ? "duplicate: no second mail" : "no mail"}`;
  if (run.mail > run.killed) return `${first} · mail survived, sent after ${milliseconds(run.mail)}`;
  return `${first} · all done ${milliseconds(lastOf(run, now))}`;
}

// Everything that is drawn of a run.
export function view(run, now) {
  const rows = rowsOf(run, now);
  const outliving = run.key === "sequential" ? 0 : rows.filter((row) => row.name.startsWith("↳")).length;
  const faults = (run.server?.rows ?? []).filter((row) => row.error && row.state !== "succeeded");
  const kind = { durable: "stored", "fire-and-forget": "let go" }[run.key] ?? "deferred";
  return {
    rows,
    answered: answeredAt(run),
    killed: run.killed,
    status: run.status,
    count: outliving ? `${outliving} ${kind}` : "",
    summary: summaryOf(run, now),
    fault: faults.map((row) => row.error).join(" · "),
  };
}
