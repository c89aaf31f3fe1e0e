// The page: which view is shown, what the keys do, whether it is live.

import { attempt, session, start, Stream } from "./api.js";
import { Dead } from "./dead.js";
import { Detail } from "./detail.js";
import { $, h, notify } from "./dom.js";
import { Now } from "./now.js";
import { Requests } from "./requests.js";
import { Tasks } from "./tasks.js";

const THEMES = ["auto", "light", "dark"];
const KEYS = [["j, k", "next, previous"], ["Enter", "details"], ["Esc", "close, or clear the filter"], ["/", "search"],
  ["1 to 4", "the views"], ["p", "pause"], ["t", "theme"], ["?", "this"]];

const views = {};
const makers = { requests: Requests, tasks: Tasks, dead: Dead, now: Now };
const detail = new Detail($("detail"));
let current = null;
let route = { view: "requests", id: null, task: null };
let stream = null;

function view(name) {
  views[name] ??= new makers[name]();
  return views[name];
}

function parse() {
  const [path, search = ""] = location.hash.replace(/^#\/?/, "").split("?");
  const [name, id, task] = path.split("/").map(decodeURIComponent);
  return { view: makers[name] ? name : "requests", id: name === "requests" && id ? id : null, task: task || null, search };
}

async function go() {
  if (location.hash && !location.hash.startsWith("#/")) return; // a place within the page
  const before = route;
  route = parse();
  const next = view(route.view);
  if (next !== current) {
    current = next;
    $("main").replaceChildren(next.element);
    for (const link of document.querySelectorAll(".tabs a")) {
      if (link.hash === `#/${route.view}`) link.setAttribute("aria-current", "page");
      else link.removeAttribute("aria-current");
    }
    if (next.arrive) next.arrive(new URLSearchParams(route.search));
    const loaded = attempt(() => next.load());
    if (route.view === "requests" && stream === null) stream = opened(await loaded);
    else await loaded;
    if (!route.id) scrollTo(0, 0);
  }
  stream ??= opened(0);
  current.select(route.id);
  if (route.id) {
    detail.home = view("requests").address;
    await detail.open(route.id, route.task);
    if (before.id === null) document.querySelector(".card.chosen")?.scrollIntoView({ block: "nearest" }); // cards are taller beside it
    if (before.id !== route.id) $("detail").querySelector(".close")?.focus({ preventScroll: true });
  } else if (detail.id) {
    const left = detail.id;
    detail.close();
    (document.querySelector(`.card[data-id="${CSS.escape(left)}"] a.go`) ?? $("main")).focus({ preventScroll: true });
  }
}

function opened(change) {
  const made = new Stream(take, tell);
  made.change = change ?? 0;
  made.look();
  return made;
}

function take(batch, restarted) {
  const seen = performance.now();
  for (const each of batch.requests) each.seen = seen;
  if (batch.now) counts(batch.now);
  if (restarted) {
    for (const each of Object.values(views)) attempt(() => each.load());
    return;
  }
  for (const name of new Set(["requests", route.view])) views[name]?.change(batch);
  if (batch.skipped) notify("More happens than can be shown live; reload to see the rest.");
  if (detail.id && batch.requests.some((each) => each.id === detail.id)) detail.refresh(route.task);
}

function counts({ stats, requests, draining }) {
  const one = (number, word, kind = "") => h("span", { className: number ? kind : "" }, h("strong", {}, String(number)), ` ${word}`);
  $("counts").replaceChildren(
    one(requests, requests === 1 ? "request" : "requests"), one(stats.running, "running", "busy"),
    one(stats.pending, "pending"), one(stats.failed, "failed", "bad"));
  if (draining) tell("draining");
}

function tell(state) {
  const words = { live: "live", paused: "paused", away: "reconnecting", draining: "draining" };
  $("live").dataset.state = state;
  $("live").setAttribute("aria-pressed", String(state === "live"));
  $("live-text").textContent = words[state];
}

function theme(next) {
  const chosen = next ?? localStorage.getItem("deferred-theme") ?? "auto";
  if (next) localStorage.setItem("deferred-theme", next);
  if (chosen === "auto") delete document.documentElement.dataset.theme;
  else document.documentElement.dataset.theme = chosen;
  $("theme").textContent = `Theme: ${chosen}`;
  $("theme").dataset.chosen = chosen;
}

function nextTheme() {
  theme(THEMES[(THEMES.indexOf($("theme").dataset.chosen) + 1) % THEMES.length]);
}

function help() {
  const dialog = h("dialog.ask", { "aria-label": "Keyboard shortcuts" },
    h("form", { method: "dialog" }, h("h2", {}, "Keyboard"),
      h("dl.facts", {}, ...KEYS.flatMap(([key, does]) => [h("dt", {}, h("kbd", {}, key)), h("dd", {}, does)])),
      h("p.hint", {}, session.name ? `You are ${session.name}, ${session.role}.` : ""),
      h("div.buttons", {}, h("button", { type: "submit" }, "Close"))));
  dialog.addEventListener("close", () => dialog.remove());
  document.body.append(dialog);
  dialog.showModal();
}

function escape() {
  if (route.id) location.hash = view("requests").address;
  else if (document.activeElement?.id === "search" && !document.activeElement.value) document.activeElement.blur();
  else current.escape();
}

function step(by) {
  const id = current.step(by);
  if (route.id && id) location.replace(`#/requests/${id}`);
}

const KEYMAP = {
  j: () => step(1), k: () => step(-1), ArrowDown: null, Escape: escape,
  "/": () => current.element.querySelector("#search")?.focus(),
  p: () => stream?.toggle(), t: nextTheme, "?": help,
  1: () => { location.hash = "#/requests"; }, 2: () => { location.hash = "#/tasks"; },
  3: () => { if (session.engine) location.hash = "#/dead"; }, 4: () => { location.hash = "#/now"; },
};

addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || document.querySelector("dialog[open]")) return;
  const typing = event.target.closest?.("input:not([type=checkbox]), select, textarea");
  if (typing && event.key !== "Escape") return;
  const does = KEYMAP[event.key];
  if (!does || !current) return;
  event.preventDefault();
  does();
});

theme();
$("theme").addEventListener("click", nextTheme);
$("help").addEventListener("click", help);
$("live").addEventListener("click", () => stream?.toggle());
addEventListener("hashchange", () => attempt(go));

attempt(async () => {
  const arrived = start(); // asked at the same time as the first view
  arrived.then(() => { $("dead-tab").hidden = !session.engine; }, () => {});
  if (parse().view !== "requests") await arrived;
  await go();
  await arrived;
}).then(() => { if (!current) $("main").replaceChildren(h("div.empty", {}, h("p.big", {}, "The inspector does not answer."))); });
