// The page asks page.json every few seconds and puts what that says into its place, as
// text: nothing that came from elsewhere is ever taken for markup. What stays the same is
// not touched, so that neither the keyboard nor a screen reader loses its place.
"use strict";

const every = 3000; // ms between an answer and the next question
const patience = 10000; // ms that an answer may take

// What the states are called, and how they look.
const states = {
  "standby": ["Standing by", "idle"],
  "following": ["Following", "good"],
  "refilling": ["Reading back", "busy"],
  "starting": ["Starting", "busy"],
  "registering": ["Registering", "busy"],
  "waiting-zulip": ["Waiting for Zulip", "bad"],
  "waiting-nats": ["Waiting for NATS", "bad"],
  "stopped": ["Stopped", "bad"],
  "needs-operator": ["Needs an operator", "bad"],
  "wedged": ["Hangs", "bad"],
};
const called = (state) => (states[state] || [state, "bad"])[0];
const tone = (state) => (states[state] || [state, "bad"])[1];

const kinds = { "refilled": "message, read back", "rejected": "rejected, not carried", "skipped": "message already there" };
const sides = { "nats": "NATS", "zulip": "Zulip", "lease": "Lease", "object store": "Object store", "operator": "Operator" };
const causes = {
  "dropped": "Zulip dropped the queue",
  "account": "another account",
  "tail": "the stream lost its end",
  "past": "the stream lost all",
  "retired": "ended by --delete-queue",
};

const $ = (id) => document.getElementById(id);
const numbers = new Intl.NumberFormat("en");
const clock = new Intl.DateTimeFormat("en", { hour: "2-digit", minute: "2-digit", second: "2-digit", hourCycle: "h23" });
const minutes = new Intl.DateTimeFormat("en", { hour: "2-digit", minute: "2-digit", hourCycle: "h23" });
const days = new Intl.DateTimeFormat("en", { day: "numeric", month: "short" });

const count = (n, one, many) => numbers.format(n) + " " + (n === 1 ? one : many);

function size(bytes) {
  let unit = 0;
  while (bytes >= 999.5 && unit < 4) {
    bytes /= 1000;
    unit++;
  }
  return (unit && bytes < 9.95 ? bytes.toFixed(1) : String(Math.round(bytes))) + " " + ["B", "kB", "MB", "GB", "TB"][unit];
}

function lasts(ms) {
  const s = Math.max(0, Math.round(ms / 1000));
  if (s < 60) return s + " s";
  if (s < 3600) return Math.floor(s / 60) + " min" + (s < 600 && s % 60 ? " " + (s % 60) + " s" : "");
  if (s < 172800) return Math.floor(s / 3600) + " h" + (s % 3600 >= 60 ? " " + Math.floor(s % 3600 / 60) + " min" : "");
  return Math.floor(s / 86400) + " days";
}

// when is a time of the day, with the date if that could be another day's.
function when(at, now) {
  return (Math.abs(now - at) < 12 * 3600000 ? "" : days.format(at) + ", ") + clock.format(at);
}

function put(node, text) {
  if (node.textContent !== text) node.textContent = text;
}

function set(node, name, value) {
  if (node.getAttribute(name) !== value) node.setAttribute(name, value);
}

function make(name, text) {
  const node = document.createElement(name);
  node.textContent = text;
  return node;
}

// rows makes the children of a list or table what they have to be. all has the texts of
// the parts of each, names the names of the child and of its parts.
function rows(parent, all, names) {
  while (parent.children.length > all.length) parent.lastElementChild.remove();
  all.forEach((texts, i) => {
    let row = parent.children[i];
    if (!row) {
      row = document.createElement(names[0]);
      names.slice(1).forEach((name) => row.append(document.createElement(name)));
      parent.append(row);
    }
    texts.forEach((text, j) => put(row.children[j], text));
  });
}

const pairs = (dl, all) => rows(dl, all, ["div", "dt", "dd"]);

function path(svg, name, d) {
  let node = svg.querySelector("." + name);
  if (!node) {
    node = document.createElementNS("http://www.w3.org/2000/svg", "path");
    node.setAttribute("class", name);
    svg.append(node);
  }
  set(node, "d", d);
}

const box = (i, y, height, inset) => `M${i + inset} ${y}h${1 - 2 * inset}v${height}h${2 * inset - 1}z`;

// bars draws one bar for each minute; the last one is not over yet, and where nobody
// looked there is a grey ground instead.
function bars(svg, values, known) {
  const most = Math.max(1, ...values);
  let full = "", open = "", none = "";
  values.forEach((value, i) => {
    const height = value ? Math.max(0.8, value / most * 29) : 0;
    const bar = box(i, 30 - height, height, 0.1);
    if (!known[i]) none += box(i, 0, 30, 0);
    else if (i === values.length - 1) open = bar;
    else if (value) full += bar;
  });
  path(svg, "none", none);
  path(svg, "full", full);
  path(svg, "open", open);
}

// strip draws the state of each minute. It is told by its height too, not by colour alone.
function strip(svg, all, gaps) {
  const tones = { idle: "", good: "", busy: "", bad: "", none: "" };
  const height = { idle: 3, good: 5, busy: 8, bad: 12 };
  let marks = "";
  all.forEach((state, i) => {
    const is = state ? tone(state) : "none";
    const high = height[is] || 12;
    tones[is] += box(i, 12 - high, high, is === "none" ? 0 : 0.04);
    if (gaps[i]) marks += `M${i} 0h1l-.5 5z`;
  });
  for (const is in tones) path(svg, is, tones[is]);
  path(svg, "gap", marks);
}

// stretches says in words which states there were, but for the one that there was most.
function stretches(all, at) {
  const n = {}, said = [];
  all.forEach((state) => { if (state) n[state] = (n[state] || 0) + 1; });
  const most = Object.keys(n).sort((a, b) => n[b] - n[a] || all.lastIndexOf(b) - all.lastIndexOf(a))[0];
  for (let i = 0; i < all.length; i++) {
    let end = i;
    while (end + 1 < all.length && all[end + 1] === all[i]) end++;
    if (all[i] && all[i] !== most) {
      said.push(`${called(all[i])} ${minutes.format(at(i))}` + (end > i ? ` to ${minutes.format(at(end))}` : ""));
    }
    i = end;
  }
  return [most, n[most] || 0, said];
}

function hour(part, realm) {
  const h = realm.hour;
  const begins = Date.parse(h.begins);
  const at = (i) => begins + i * 60000;
  const known = h.states.map((state) => state !== "");
  const seen = known.filter(Boolean).length;
  const sum = (values) => values.reduce((a, b) => a + b, 0);
  const told = (name, values, text) => {
    const most = Math.max(...values);
    const peak = most ? `most ${text(most)} at ${minutes.format(at(values.indexOf(most)))}` : "none";
    bars(part["plot-" + name], values, known);
    put(part["most-" + name], peak);
    return peak + `, ${text(sum(values))} in all`;
  };
  const span = seen < 60 ? `in the ${seen} minutes known of the last hour` : "in the last hour";
  set(part["plot-stored"], "aria-label", `Events stored a minute ${span}: ` + told("stored", h.stored, (n) => numbers.format(n)));
  set(part["plot-bytes"], "aria-label", `Bytes stored a minute ${span}: ` + told("bytes", h.bytes, size));

  const [most, n, others] = stretches(h.states, at);
  const opened = sum(h.gaps);
  const gaps = opened ? [count(opened, "gap", "gaps") + " opened"] : [];
  strip(part["plot-state"], h.states, h.gaps);
  set(part["plot-state"], "aria-label", most ? `State ${span}: ` +
    [`${called(most)} for ${count(n, "minute", "minutes")}`, ...others, ...gaps].join("; ") : "State: not known yet");
  put(part["well"], [others.length ? `${called(most)} ${n} of ${seen} min` : most ? called(most) : "", ...gaps].join(", "));
  put(part["known"], seen < 60 && seen ? "watched since " + minutes.format(at(known.indexOf(true))) : "");
  put(part["begins"], minutes.format(begins));
  put(part["middle"], minutes.format(at(30)));

  const figures = [];
  for (let i = h.states.length - 2; i >= 0; i--) {
    if (known[i]) {
      figures.push([minutes.format(at(i)), numbers.format(h.stored[i]), numbers.format(h.bytes[i]),
        called(h.states[i]) + (h.gaps[i] ? ", gap opened" : "")]);
    }
  }
  rows(part["figures"], figures, ["tr", "td", "td", "td", "td"]);
}

const eventsOf = (realm) => Object.values(realm.counters.events_stored).reduce((a, b) => a + b, 0);

function stored(realm, now) {
  const c = realm.counters;
  const all = [
    ["Last minute", `${count(realm.minute.stored, "event", "events")}, ${size(realm.minute.bytes)}`],
    ["Since the start", `${count(eventsOf(realm), "event", "events")}, ${size(c.bytes_stored)}`],
  ];
  if (realm.last_stored) all.push(["Last stored", lasts(now - Date.parse(realm.last_stored)) + " ago"]);
  if (realm.last_poll) all.push(["Last poll answered", lasts(now - Date.parse(realm.last_poll)) + " ago"]);
  for (const [n, what] of [[c.messages_refilled, "Messages read back"], [c.events_oversize, "In the object store"],
    [c.events_rejected, "Rejected"], [c.rate_limited, "Told to wait (429)"], [c.polls.failed, "Polls that failed"]]) {
    if (n) all.push([what, numbers.format(n)]);
  }
  return all;
}

function waiting(realm, now) {
  if (realm.state === "standby") return [["Nothing here", "another instance leads"]];
  if (realm.state === "stopped" || realm.state === "needs-operator") return [["Nothing here", "it has ended"]];
  const all = [];
  if (realm.queue_expires) {
    const until = Date.parse(realm.queue_expires);
    all.push(["Zulip keeps the queue", until > now ? lasts(until - now) + " more" : "no longer, perhaps"],
      [until > now ? "At least until" : "It was safe until", when(until, now)]);
  } else {
    all.push(["Zulip keeps the queue", realm.queue ? "time not known yet" : "there is none yet"]);
  }
  const nats = realm.reasons.find((r) => r.side === "nats");
  if (nats) all.push(["To be stored", "what came since " + when(Date.parse(nats.since), now)]);
  const zulip = realm.reasons.find((r) => r.side === "zulip");
  if (zulip) all.push(["To be fetched", "what came since " + when(Date.parse(realm.last_poll || zulip.since), now)]);
  if (realm.gap) all.push(["To be read back", "the messages of the gap"]);
  return all;
}

function gaps(realm, now) {
  const all = [];
  if (realm.gap) {
    all.push([realm.gap.since ? "Open since " + when(Date.parse(realm.gap.since), now) : "Open",
      realm.gap.cause || "its record does not say why"]);
  }
  for (const [cause, n] of Object.entries(realm.counters.gaps)) {
    if (n) all.push([causes[cause] || cause, numbers.format(n)]);
  }
  return all.length ? all : [["None", ""]];
}

function recent(realm, now) {
  return realm.recent.map((run) => {
    const first = when(Date.parse(run.first), now), last = when(Date.parse(run.last), now);
    return [kinds[run.type] || run.type, numbers.format(run.count), first === last ? last : `${first}–${last}`];
  });
}

// A look of its own for each realm, made once.
const cards = new Map();
let made = 0;

function cardOf(name) {
  let card = cards.get(name);
  if (card) return card;
  const parts = (id) => {
    const root = $(id).content.firstElementChild.cloneNode(true);
    const part = { root };
    root.querySelectorAll("[data-is]").forEach((node) => { part[node.dataset.is] = node; });
    return part;
  };
  card = { name, part: parts("realm"), link: parts("link"), was: "" };
  made++;
  const id = "realm-" + made;
  card.part.root.id = id;
  card.part["name"].id = id + "-name";
  card.part.root.setAttribute("aria-labelledby", id + "-name");
  card.part["name"].textContent = card.link["name"].textContent = name;
  card.part["of"].textContent = " of " + name;
  card.link.root.firstElementChild.href = "#" + id;
  cards.set(name, card);
  return card;
}

function show(realm, now) {
  const card = cardOf(realm.realm);
  const part = card.part;
  const look = realm.ok && realm.reasons.length ? "busy" : realm.ok || tone(realm.state) !== "good" ? tone(realm.state) : "bad";
  if (!part.root.isConnected) {
    $("realms").append(part.root);
    $("index").append(card.link.root);
  }
  set(part.root, "data-tone", look);
  set(card.link.root, "data-tone", look);
  put(part["word"], called(realm.state));
  put(card.link["word"], called(realm.state));
  put(part["says"], realm.says[0].toUpperCase() + realm.says.slice(1) + ".");
  put(part["since"], `For ${lasts(now - Date.parse(realm.since))}, since ${when(Date.parse(realm.since), now)}.`);
  rows(part["reasons"], realm.reasons.map((r) => [(sides[r.side] || r.side) + ":", r.says,
    `(${count(r.tries, "try", "tries")} in ${lasts(now - Date.parse(r.since))})`]), ["li", "strong", "span", "span"]);
  part["reasons"].hidden = realm.reasons.length === 0;
  pairs(part["stored"], stored(realm, now));
  pairs(part["waiting"], waiting(realm, now));
  pairs(part["gaps"], gaps(realm, now));
  hour(part, realm);
  // Who stands by and has never led has nothing to show but that.
  part.root.classList.toggle("idle", realm.state === "standby" && eventsOf(realm) === 0);
  const events = recent(realm, now);
  rows(part["events"], events, ["tr", "td", "td", "td"]);
  part["events"].parentElement.hidden = events.length === 0;
  part["no-events"].hidden = events.length > 0;

  const is = realm.state + " " + realm.ok;
  const news = card.was && card.was !== is ? `${realm.realm}: ${called(realm.state)}, ${realm.says}.` : "";
  card.was = is;
  return news;
}

let lostAt = 0; // since when there is no answer
let title = "zulip-nats";

function tell(sentences) {
  if (sentences.length) $("news").textContent = sentences.join(" ");
}

// named are some names of many.
const named = (all, n) => all.slice(0, 5).join(", ") + (n > 5 ? ` and ${numbers.format(n - 5)} more` : "");

// inOrder puts the cards in the order of the report, and moves none that stands right.
function inOrder(report) {
  for (const [parent, of] of [[$("realms"), (card) => card.part.root], [$("index"), (card) => card.link.root]]) {
    report.realms.forEach((realm, i) => {
      const node = of(cards.get(realm.realm));
      if (parent.children[i] !== node) parent.insertBefore(node, parent.children[i]);
    });
  }
}

function render(report) {
  const now = Date.parse(report.time);
  const news = report.realms.map((realm) => show(realm, now)).filter(Boolean);
  const shown = new Set(report.realms.map((realm) => realm.realm));
  for (const [name, card] of cards) {
    if (shown.has(name)) continue;
    card.part.root.remove();
    card.link.root.remove();
    cards.delete(name);
  }
  inOrder(report);
  const n = report.total;
  document.querySelector("nav").hidden = n < 2;
  $("search").hidden = n < 8;
  put($("left"), report.found > report.realms.length ?
    `${numbers.format(report.realms.length)} of ${numbers.format(report.found)} are shown, those that need somebody first.` :
    report.found === 0 && n ? "None is called so." : "");
  const bad = report.realms.filter((realm) => !realm.ok).map((realm) => realm.realm);
  const which = bad.length ? `: ${named(bad, report.bad)}` : "";
  put($("verdict"), report.bad === 0 ? (n === 1 ? "The realm does its job." : `All ${numbers.format(n)} realms do their job.`) :
    n === 1 ? "The realm does not do its job." :
      `${numbers.format(report.bad)} of ${numbers.format(n)} realms ${report.bad === 1 ? "does" : "do"} not do the job${which}.`);
  set($("verdict"), "data-tone", report.bad ? "bad" : "good");
  title = report.bad ? `${numbers.format(report.bad)} not well${which} – zulip-nats` : "All well – zulip-nats";
  document.title = title;
  put($("asof"), "as of " + clock.format(now));
  put($("version"), `Version ${report.version}. Times are of the zone ${Intl.DateTimeFormat().resolvedOptions().timeZone}.`);
  if (lostAt) news.unshift("The bridge answers again.");
  lostAt = 0;
  $("lost").hidden = true;
  document.body.classList.remove("stale");
  tell(news);
}

function lose() {
  if (!lostAt) {
    lostAt = Date.now();
    tell(["The bridge does not answer."]);
  }
  document.title = "No answer – zulip-nats";
  put($("lost"), `The bridge does not answer since ${clock.format(lostAt)}. What is shown is how it was then; it is asked again every ${every / 1000} s.`);
  $("lost").hidden = false;
  document.body.classList.add("stale");
}

// The loop: one question at a time, none while nobody looks or the page is paused.
let paused = false, asking = false, timer = 0;

async function question() {
  try {
    const name = $("find").value.trim();
    const answer = await fetch("page.json" + (name && "?name=" + encodeURIComponent(name)), { cache: "no-store", signal: AbortSignal.timeout(patience) });
    return answer.ok ? await answer.json() : null;
  } catch {
    return null; // nobody is there, or it took too long, or the answer broke off
  }
}

async function ask() {
  clearTimeout(timer);
  if (paused || document.hidden || asking) return;
  asking = true;
  const report = await question();
  asking = false;
  timer = setTimeout(ask, every);
  if (report) render(report);
  else lose();
}

$("pause").addEventListener("click", () => {
  paused = !paused;
  set($("pause"), "aria-pressed", String(paused));
  ask();
});

$("find").addEventListener("input", () => ask());

document.addEventListener("visibilitychange", () => {
  document.title = document.hidden ? "zulip-nats" : title; // what is not asked for is not claimed
  ask();
});

ask();
