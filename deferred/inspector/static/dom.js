// Elements, built by hand: whatever a name or an error says, it is text and never markup.

const SVG = "http://www.w3.org/2000/svg";

/** Make an element: `h("a.chip", {href: "#/"}, "text", child)`. Text is set as text. */
export function h(what, props = {}, ...children) {
  const [tag, ...classes] = what.split(".");
  const element = document.createElement(tag || "div");
  if (classes.length) element.className = classes.join(" ");
  for (const [name, value] of Object.entries(props)) {
    if (value === undefined || value === null || value === false) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (name in element && !name.includes("-") && name !== "list") element[name] = value;
    else element.setAttribute(name, value === true ? "" : String(value));
  }
  element.append(...children.flat().filter((child) => child !== null && child !== undefined && child !== false));
  return element;
}

export function svg(tag, props = {}, ...children) {
  const element = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(props)) element.setAttribute(name, String(value));
  element.append(...children);
  return element;
}

export const $ = (id) => document.getElementById(id);

/** A time as people read it; the same words as in the terminal. */
export function duration(seconds) {
  if (seconds === undefined || seconds === null) return "…";
  const ms = seconds * 1000;
  if (ms === 0) return "< 1 ms"; // a loop's clock may tick in whole milliseconds
  if (ms < 0.05) return "< 0.1 ms";
  if (ms < 9.95) return `${ms.toFixed(1)} ms`;
  if (ms < 999.5) return `${ms.toFixed(0)} ms`;
  if (seconds < 59.95) return `${seconds.toFixed(1)} s`;
  const whole = Math.round(seconds);
  return `${Math.floor(whole / 60)} min ${whole % 60} s`;
}

/** The time of day of a moment in seconds since the epoch. */
export function clock(epoch) {
  const date = new Date(epoch * 1000);
  const time = date.toLocaleTimeString(undefined, { hour12: false });
  return Date.now() - date.getTime() < 20 * 3600 * 1000 ? time : `${date.toLocaleDateString()} ${time}`;
}

/** Text without what turns the writing around or moves a cursor, for names of anybody's choice. */
export function clean(text) {
  return String(text).replace(/[\u0000-\u0008\u000b-\u001f\u007f-\u009f\u200b-\u200f\u2028-\u202e\u2066-\u2069\ufeff]/g, "\ufffd");
}

export const words = (name) => String(name || "").replaceAll("_", " ");

export function count(number, one, many = `${one}s`) {
  return `${number} ${number === 1 ? one : many}`;
}

let timer = 0;

/** Tell something, for a moment; also to who listens. */
export function notify(text) {
  const notice = $("notice");
  notice.textContent = text;
  notice.hidden = false;
  clearTimeout(timer);
  timer = setTimeout(() => { notice.hidden = true; }, 6000);
}

/** Ask before something that cannot be undone; resolves to whether it is wanted. */
export function confirmed(question, verb) {
  return new Promise((resolve) => {
    const dialog = h("dialog.ask", { "aria-label": question },
      h("form", { method: "dialog" },
        h("p", {}, question),
        h("div.buttons", {},
          h("button", { value: "", type: "submit" }, "Cancel"),
          h("button.danger", { value: "yes", type: "submit" }, verb))));
    dialog.addEventListener("close", () => { dialog.remove(); resolve(dialog.returnValue === "yes"); });
    document.body.append(dialog);
    dialog.showModal();
  });
}

export async function copy(text) {
  try {
    await navigator.clipboard.writeText(text);
  } catch {
    // Without a secure origin there is no clipboard: the old way is left.
    const area = h("textarea.away", { value: text, "aria-hidden": "true" });
    document.body.append(area);
    area.select();
    document.execCommand("copy");
    area.remove();
  }
  notify("Copied");
}
