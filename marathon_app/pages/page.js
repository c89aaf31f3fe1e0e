// The page: presses every route at once, asks the server what happened, and has it drawn.

import { answeredAt, isOver, lastOf, mailFate, view } from "./runs.js";
import { axisOf, drawRun, drawScale, milliseconds } from "./waterfall.js";

const POLL = 60; // milliseconds between two questions while something runs
const IDLE = 3000; // and while nothing does
const SHOWN = 12; // mails in the mailbox view
const BUSY = 8000; // milliseconds that a press holds the buttons at most: a mail may be tried again for minutes
const AFTERMATH = 2.5; // times until the kill that the axis shows at most: the rest is waiting
const hasOutbox = document.body.dataset.outbox === "yes";
const hasControls = document.body.dataset.controls === "yes";
const restarts = document.body.dataset.restarts === "yes";
const byId = (id) => document.getElementById(id);
const form = byId("form");
const message = byId("message");
const articles = [...document.querySelectorAll(".run")];
const labels = { sequential: "Sequential", "fire-and-forget": "Fire and forget", concurrent: "Concurrent", waituntil: "Deferred", durable: "Durable" };
const runs = new Map(); // article id -> its last run; see runs.js
const senders = new Map(); // recipient -> execution, of every press
const mails = new Map(); // what was seen of the mailbox, also of one that is gone
let busy = false;
let latest = 0; // counts the presses; what an earlier one still waits for is no longer shown

const pause = (time) => new Promise((resume) => setTimeout(resume, time));
const tagOf = () => Array.from(crypto.getRandomValues(new Uint8Array(5)), (byte) => (byte % 36).toString(36)).join("");
const json = (body) => ({ method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body) });

const FIRST = ["Ada", "Bela", "Chidi", "Dunja", "Emre", "Freya", "Goro", "Hana", "Ines", "Juri"];
const LAST = ["Sprint", "Strider", "Pace", "Milestone", "Hill", "Stamina", "Tempo", "Finish", "Laces", "Medal"];
const oneOf = (list) => list[Math.floor(Math.random() * list.length)];

function makeUpRunner() {
  const [first, last] = [oneOf(FIRST), oneOf(LAST)];
  byId("firstName").value = first;
  byId("lastName").value = last;
  byId("email").value = `${first}.${last}@example.com`.toLowerCase();
  byId("address").value = "42 Starting Line";
  form.elements.distance.value = oneOf(["10", "half", "full"]);
  byId("fresh").checked = true;
}

function registration(key, tag) {
  const data = Object.fromEntries(new FormData(form));
  const at = data.email.lastIndexOf("@");
  if (tag && at > 0) data.email = `${data.email.slice(0, at)}+${key}-${tag}${data.email.slice(at)}`;
  return data;
}

// The outbox knows a recipient as it travelled: white space gone, the domain in punycode.
function recipientOf(email) {
  const address = email.trim().normalize("NFC");
  const at = address.lastIndexOf("@");
  try {
    return `${address.slice(0, at)}@${new URL(`http://${address.slice(at + 1)}`).hostname}`.toLowerCase();
  } catch {
    return address.toLowerCase();
  }
}

function showErrors(problem) {
  for (const input of form.querySelectorAll("[aria-describedby]")) {
    input.removeAttribute("aria-invalid");
    byId(`${input.name}-error`).textContent = "";
  }
  message.textContent = "";
  if (!problem) return;
  for (const { field, message: text } of problem.errors ?? []) {
    const input = byId(field);
    if (!input) continue;
    input.setAttribute("aria-invalid", "true");
    byId(`${field}-error`).textContent = text;
  }
  message.textContent = problem.detail ?? "";
  form.querySelector('[aria-invalid="true"]')?.focus();
}

// --- asking -----------------------------------------------------------------------------------

async function ask(path) {
  const response = await fetch(path, { cache: "no-store" });
  if (!response.ok) throw new Error(`${path} answered ${response.status}`);
  return response;
}

function learn(told) {
  for (const server of told) {
    const run = [...runs.values()].find((known) => known.id === server.id);
    if (!run || run.killed !== undefined) continue;
    server.answered ??= undefined;
    run.server = server;
    run.seen = performance.now();
  }
}

// The server's clock need not be ours: its offset is measured by the way.
async function lookIntoMailbox() {
  const before = performance.now();
  const response = await ask("/dev/outbox?last=100");
  const received = await response.json();
  const offset = Date.parse(response.headers.get("Marathon-Now")) - (before + performance.now()) / 2;
  for (const mail of received) {
    const time = Date.parse(mail.received_at.replace(/(\.\d{3})\d+/, "$1")) - offset;
    mails.set(`${mail.message_id} ${mail.to} ${mail.received_at}`, mail);
    for (const run of runs.values()) {
      if (run.mail === undefined && run.recipient === mail.to.toLowerCase() && time > run.start - 5) run.mail = Math.max(time - run.start, 0);
    }
  }
  while (mails.size > 500) mails.delete(mails.keys().next().value);
  showMails();
}

async function askAll() {
  const open = [...runs.values()].filter((run) => run.killed === undefined && !isOver(run, performance.now()));
  if (hasControls && open.length) learn((await (await ask(`/dev/timeline?ids=${open.map((run) => run.id)}`)).json()).runs);
  if (hasOutbox) await lookIntoMailbox();
}

// --- pressing ---------------------------------------------------------------------------------

async function send(run, data) {
  const { body, headers, method } = json(data);
  try {
    const response = await fetch(run.path, { method, body, headers: { ...headers, "Marathon-Run": run.id }, signal: run.patience.signal });
    const text = await response.text();
    run.answer = performance.now() - run.start;
    run.status = response.status;
    if (!response.ok) run.problem = JSON.parse(text);
  } catch {
    run.noAnswer = true;
    run.gaveUp = performance.now() - run.start;
  }
}

// Who has no answer now will have none; a browser whose connection breaks would ask the next process again.
async function kill() {
  const ids = [...runs.values()].map((run) => run.id);
  for (const run of runs.values()) if (run.status === undefined) run.patience.abort();
  const response = await fetch("/dev/kill", json({ ids }));
  if (!response.ok) throw new Error((await response.json()).detail);
  const { process, runs: told } = await response.json();
  learn(told);
  const now = performance.now();
  for (const run of runs.values()) run.killed = run.server?.now ?? now - run.start;
  live("killed", restarts ? "killed; it is being started again" : "killed; start it again: make run");
  await untilItIsBack(process);
  live("on", "live again");
}

async function untilItIsBack(process) {
  for (;;) {
    await pause(200);
    try {
      if ((await (await ask("/dev/timeline")).json()).process !== process) return;
    } catch {
      // nobody is there yet: that is what is waited for
    }
  }
}

async function press(withKill) {
  if (busy) return;
  const number = ++latest;
  setBusy(true);
  showErrors();
  const results = byId("results-title");
  if (results.getBoundingClientRect().top > innerHeight) results.scrollIntoView(); // on a phone they stand below
  const tag = byId("fresh").checked ? tagOf() : "";
  const answers = new Map();
  for (const article of articles) {
    const data = registration(article.id, tag);
    const run = { key: article.id, id: crypto.randomUUID?.() ?? `${tagOf()}${tagOf()}${tagOf()}`, path: article.dataset.path, recipient: recipientOf(data.email) };
    Object.assign(run, { duplicate: !tag, watches: hasControls, hasOutbox, patience: new AbortController(), start: performance.now() });
    runs.set(article.id, run);
    senders.set(run.recipient, tag ? article.id : "");
    answers.set(article.id, send(run, data));
  }
  showVerdict(); // the last one's is over
  let freed = 0;
  const free = () => { freed = setTimeout(() => { if (number === latest) setBusy(false); }, BUSY); };
  try {
    await Promise.all([watch(number, answers), withKill ? killAfter(answers).then(free) : free()]);
    if (number !== latest) return;
    const refused = [...runs.values()].find((run) => run.problem?.errors);
    if (refused) showErrors(refused.problem);
    await count();
  } catch (error) {
    if (number === latest) message.textContent = `The server did not answer (${error.message}).`;
  } finally {
    clearTimeout(freed);
    if (number === latest) {
      setBusy(false);
      draw();
      showVerdict();
    }
  }
}

// Those that promised nothing before their work was done are not waited for.
async function killAfter(answers) {
  await Promise.all([...answers].filter(([key]) => key !== "sequential").map(([, answer]) => answer));
  if ([...runs.values()].every((run) => run.problem || run.key === "sequential")) return;
  await kill();
}

async function watch(number, answers) {
  let isDrawing = true;
  const frame = () => {
    if (!isDrawing || number !== latest) return;
    draw();
    showVerdict();
    requestAnimationFrame(frame);
  };
  frame();
  try {
    for (;;) {
      await pause(POLL);
      if (number !== latest) return;
      await askAll().catch((error) => live("off", `no answer: ${error.message}`));
      if ([...runs.values()].every((run) => isOver(run, performance.now()))) break;
    }
    await Promise.all(answers.values());
  } finally {
    isDrawing = false;
  }
}

function setBusy(value) {
  busy = value;
  for (const button of document.querySelectorAll("button")) button.setAttribute("aria-disabled", String(value));
}

// --- showing ----------------------------------------------------------------------------------

function live(state, text) {
  const shown = byId("live");
  shown.dataset.state = state;
  if (shown.textContent !== text) shown.textContent = text;
}

function draw() {
  const now = performance.now();
  const longest = Math.max(0, ...Array.from(runs.values(), (run) => lastOf(run, now)));
  const killed = Math.max(0, ...Array.from(runs.values(), (run) => run.killed ?? 0));
  const axis = axisOf(killed ? Math.min(longest, AFTERMATH * killed) : longest);
  drawScale(byId("scale"), axis);
  for (const [id, run] of runs) drawRun(byId(id), view(run, now), axis.end);
}

function showVerdict() {
  const now = performance.now();
  const all = [...runs.values()];
  const named = (fate) => all.filter((run) => mailFate(run, now) === fate).map((run) => labels[run.key]).join(", ");
  const parts = [];
  const killed = all.find((run) => run.killed !== undefined);
  if (killed) parts.push(`Killed after ${milliseconds(killed.killed)}.`);
  const answered = all.filter((run) => run.status < 400 && !run.noAnswer).sort((a, b) => answeredAt(a) - answeredAt(b));
  if (!killed && answered.length) {
    const [first, last] = [answered[0], answered[answered.length - 1]];
    parts.push(`First answer: ${labels[first.key]}, ${milliseconds(answeredAt(first))}. Last: ${labels[last.key]}, ${milliseconds(answeredAt(last))}.`);
  }
  const unanswered = all.filter((run) => run.noAnswer || run.status >= 400).map((run) => labels[run.key]);
  if (unanswered.length) parts.push(`Answered with an error, or not at all: ${unanswered.join(", ")}.`);
  for (const [fate, text] of [["sent", "Mail sent"], ["failed", "Mail failed"], ["lost", "Mail lost with the process"]]) {
    if (named(fate)) parts.push(`${text}: ${named(fate)}.`);
  }
  const open = all.filter((run) => !isOver(run, now)).map((run) => labels[run.key]);
  const text = open.length ? [`Under way: ${open.join(", ")}.`, ...parts.slice(0, killed ? 1 : 0)].join(" ") : parts.join(" ");
  const verdict = byId("verdict");
  verdict.hidden = !text;
  if (verdict.textContent !== text) verdict.textContent = text; // read out when it changes, and not with every frame
}

function showMails() {
  const list = [...mails.values()].sort((a, b) => (a.received_at < b.received_at ? 1 : -1));
  byId("mail-count").textContent = list.length ? `${list.length}` : "";
  byId("no-mail").hidden = list.length > 0;
  byId("mails").replaceChildren(
    ...list.slice(0, SHOWN).map((mail) => {
      const item = document.createElement("li");
      const texts = [
        ["when", new Date(mail.received_at).toLocaleTimeString()],
        ["to", mail.to],
        ["subject", mail.subject],
        ["chip", labels[senders.get(mail.to.toLowerCase())] ?? ""],
      ];
      for (const [className, text] of texts) {
        const part = document.createElement("span");
        part.className = className;
        part.textContent = text;
        item.append(part);
      }
      return item;
    }),
  );
}

async function count() {
  byId("runners").textContent = (await (await ask("/api/stats")).json()).runners;
}

async function idle() {
  for (;;) {
    if (!busy && !document.hidden) {
      try {
        await count();
        if (hasOutbox) await lookIntoMailbox();
        live("on", "live");
      } catch {
        live("off", "the server does not answer");
      }
    }
    await pause(IDLE);
  }
}

async function switchMailServer(input) {
  const response = await fetch("/dev/mail-server", json({ mode: input.value })).catch(() => undefined);
  if (!response?.ok) message.textContent = "The mail server could not be switched.";
  await showMailServer();
}

async function showMailServer() {
  const { mode } = await (await ask("/dev/mail-server")).json();
  for (const input of byId("mail-server").querySelectorAll("input")) input.checked = input.value === mode;
}

form.addEventListener("submit", (event) => {
  event.preventDefault();
  press(false);
});
byId("one-click").addEventListener("click", () => {
  if (busy) return;
  makeUpRunner();
  press(false);
});
if (hasControls) {
  byId("kill").addEventListener("click", async () => {
    await press(true);
    await showMailServer();
  });
  byId("mail-server").addEventListener("change", (event) => switchMailServer(event.target));
  showMailServer();
}
addEventListener("resize", draw);
draw();
idle();
