// The page: presses a route, times the answer, watches the outbox, draws both on one axis.

const POLL = 40; // milliseconds between two looks into the outbox
const PATIENCE = 15000; // milliseconds to wait for a mail
const watchesOutbox = document.body.dataset.outbox === "yes";
const form = document.getElementById("form");
const message = document.getElementById("message");
const scale = document.getElementById("scale");
const runs = new Map(); // article id -> what is known of its last press, times in milliseconds
let busy = false;

const milliseconds = (time) => `${time < 10 ? time.toFixed(1) : Math.round(time)} ms`;
const pause = (time) => new Promise((resume) => setTimeout(resume, time));

function registration(fresh) {
  const data = Object.fromEntries(new FormData(form));
  const at = data.email.lastIndexOf("@");
  if (fresh && at > 0) {
    const tag = Array.from(crypto.getRandomValues(new Uint8Array(4)), (byte) => (byte % 36).toString(36)).join("");
    data.email = `${data.email.slice(0, at)}+${tag}${data.email.slice(at)}`;
  }
  return data;
}

// The outbox knows a recipient as it travelled: white space gone, the domain in punycode.
function recipient(email) {
  const address = email.trim().normalize("NFC");
  const at = address.lastIndexOf("@");
  try {
    return `${address.slice(0, at)}@${new URL(`http://${address.slice(at + 1)}`).hostname}`;
  } catch {
    return address;
  }
}

function showErrors(problem) {
  for (const input of form.querySelectorAll("[aria-describedby]")) {
    input.removeAttribute("aria-invalid");
    document.getElementById(`${input.name}-error`).textContent = "";
  }
  message.textContent = "";
  if (!problem) return;
  for (const { field, message: text } of problem.errors ?? []) {
    const input = document.getElementById(field);
    if (!input) continue;
    input.setAttribute("aria-invalid", "true");
    document.getElementById(`${field}-error`).textContent = text;
  }
  message.textContent = problem.detail ?? "";
  form.querySelector('[aria-invalid="true"]')?.focus();
}

// Look once into the outbox. The server's clock need not be ours: its offset is measured by the way.
async function look(run) {
  const before = performance.now();
  const response = await fetch(`/dev/outbox?to=${encodeURIComponent(run.recipient)}`);
  const mails = await response.json();
  const middle = (before + performance.now()) / 2;
  const offset = Date.parse(response.headers.get("Marathon-Now")) - middle;
  const mail = mails[run.mailsBefore];
  return mail ? Date.parse(mail.received_at.replace(/(\.\d{3})\d+/, "$1")) - offset - run.start : undefined;
}

async function watch(run) {
  while (performance.now() - run.start < PATIENCE) {
    const arrived = await look(run);
    if (arrived !== undefined) {
      run.mail = Math.max(arrived, 0);
      return;
    }
    if (run.failed || (run.duplicate && run.answer !== undefined && performance.now() - run.start > run.answer + 2000)) break;
    await pause(POLL);
  }
  run.missing = true;
}

async function answer(run, data) {
  const response = await fetch(run.path, {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify(data),
  });
  await response.clone().text();
  run.answer = performance.now() - run.start;
  run.status = response.status;
  if (response.ok) return;
  run.failed = true;
  showErrors(await response.json());
}

async function press(id) {
  const data = registration(document.getElementById("fresh").checked);
  const path = document.getElementById(id).dataset.path;
  const run = { path, recipient: recipient(data.email), duplicate: !document.getElementById("fresh").checked, mailsBefore: 0 };
  if (watchesOutbox) {
    const earlier = await fetch(`/dev/outbox?to=${encodeURIComponent(run.recipient)}`);
    run.mailsBefore = (await earlier.json()).length;
  }
  run.start = performance.now();
  runs.set(id, run);
  const drawing = setInterval(draw, 40);
  try {
    await Promise.all([answer(run, data), watchesOutbox ? watch(run) : undefined]);
  } catch (error) {
    run.failed = run.missing = true;
    message.textContent = `The server did not answer (${error.message}).`;
  } finally {
    clearInterval(drawing);
    draw();
  }
  return !run.failed;
}

async function pressAll(ids) {
  if (busy) return;
  busy = true;
  for (const button of document.querySelectorAll("button")) button.setAttribute("aria-disabled", "true");
  showErrors();
  try {
    for (const id of ids) if (!(await press(id))) break;
    await count();
  } catch (error) {
    message.textContent = `The server did not answer (${error.message}).`;
  } finally {
    busy = false;
    for (const button of document.querySelectorAll("button")) button.removeAttribute("aria-disabled");
  }
}

async function count() {
  const response = await fetch("/api/stats");
  if (response.ok) document.getElementById("runners").textContent = (await response.json()).runners;
}

// The axis ends at a round number beyond the longest time shown.
function axisEnd() {
  const now = performance.now();
  const longest = Math.max(
    100,
    ...Array.from(runs.values(), (run) => Math.max(run.answer ?? now - run.start, run.mail ?? (waits(run) ? now - run.start : 0))),
  );
  const step = [20, 50, 100, 200, 500, 1000, 2000, 5000].find((size) => longest / size <= 6) ?? 10000;
  return { step, end: Math.ceil((longest * 1.02) / step) * step };
}

const waits = (run) => watchesOutbox && run.mail === undefined && !run.missing;

function drawScale({ step, end }) {
  const wide = scale.clientWidth / (end / step) > 48 ? 1 : 2;
  const labels = [];
  for (let time = 0; time <= end; time += step * wide) {
    const label = document.createElement("span");
    label.textContent = time === 0 ? "0" : `${time} ms`;
    label.style.left = `${(100 * time) / end}%`;
    label.classList.toggle("last", time === end);
    labels.push(label);
  }
  scale.replaceChildren(...labels);
}

function place(bar, from, to, end) {
  bar.style.left = `${(100 * from) / end}%`;
  bar.style.width = `${(100 * Math.max(to - from, 0)) / end}%`;
}

function draw() {
  const axis = axisEnd();
  drawScale(axis);
  for (const [id, run] of runs) drawRun(document.getElementById(id), run, axis.end);
}

function drawRun(article, run, end) {
  const now = performance.now() - run.start;
  const answered = run.answer !== undefined;
  const [request, mail] = article.querySelectorAll(".bar");
  place(request, 0, run.answer ?? now, end);
  request.className = `bar request${run.failed ? " bad" : ""}`;

  const before = run.mail !== undefined && (!answered || run.mail <= run.answer);
  if (run.mail !== undefined) place(mail, before ? 0 : run.answer, run.mail, end);
  else if (waits(run)) place(mail, run.answer ?? 0, now, end);
  else place(mail, 0, 0, end);
  mail.className = `bar mail${before ? " before" : ""}${waits(run) ? " waiting" : ""}`;

  for (const mark of article.querySelectorAll(".mark")) {
    mark.classList.toggle("on", answered);
    mark.style.left = `${(100 * (run.answer ?? 0)) / end}%`;
  }
  article.querySelector('[data-time="request"]').textContent = answered ? milliseconds(run.answer) : "…";
  article.querySelector('[data-time="mail"]').textContent = mailText(run);
  const status = article.querySelector(".status");
  status.hidden = !answered;
  status.textContent = run.status ?? "";
  status.classList.toggle("bad", Boolean(run.failed));
  const summary = article.querySelector(".summary");
  const text = summaryText(run, answered);
  if (summary.textContent !== text) summary.textContent = text;
}

function mailText(run) {
  if (run.mail !== undefined) return milliseconds(run.mail);
  if (waits(run)) return "…";
  return watchesOutbox ? "no mail" : "–";
}

function summaryText(run, answered) {
  if (run.failed) return answered ? "refused" : "no answer";
  if (!answered) return "…";
  const first = `answer ${milliseconds(run.answer)}`;
  if (!watchesOutbox) return first;
  if (run.missing) return `${first} · ${run.duplicate ? "no second mail" : "no mail came"}`;
  return `${first} · mail ${mailText(run)}`;
}

form.addEventListener("submit", (event) => {
  event.preventDefault();
  pressAll(Array.from(document.querySelectorAll(".run"), (article) => article.id));
});
for (const button of document.querySelectorAll("[data-run]")) {
  button.addEventListener("click", () => pressAll([button.dataset.run]));
}
addEventListener("resize", draw);
drawScale(axisEnd());
count();
