// Statistics counts what happens in a Zulip organization, and keeps it in a key-value
// bucket for everybody who likes to look:
//
//   npm ci
//   node statistics.mjs &
//   nats kv get statistics acme --raw
//
// The counts, and the sequence of the stream up to which they count, are one value. So no
// event counts twice and none is passed over, whenever this is killed. If two run, each
// counts everything, and they write the same.
//
// It ends when something fails, and whoever has started it starts it again.
import { DeliverPolicy, jetstream, jetstreamManager } from "@nats-io/jetstream";
import { Kvm } from "@nats-io/kv";
import { Objm } from "@nats-io/obj";
import { connect } from "@nats-io/transport-node";

const { NATS_URL = "nats://127.0.0.1:4222", REALM = "acme" } = process.env;
const stream = `ZULIP_${REALM}`;

const nc = await connect({
  servers: NATS_URL,
  name: "statistics",
  inboxPrefix: "_INBOX_statistics",
  maxReconnectAttempts: -1,
});
const { created, state } = await (await jetstreamManager(nc)).streams.info(stream);
const bucket = await new Kvm(nc).create("statistics");

let counts = (await bucket.get(REALM))?.json();
if (counts?.stream !== created) {
  // None yet, or of another stream of that name, whose sequences say nothing here.
  counts = { stream: created, done: 0, messages: {}, reactions: {}, missing: [] };
}
if (counts.done > 0 && state.first_seq > counts.done + 1) {
  // The stream's limits took what was not read yet.
  counts.missing.push({ sequences: [counts.done + 1, state.first_seq - 1] });
  counts.done = state.first_seq - 1;
}

const consumer = await jetstream(nc).consumers.get(stream, {
  // Those with .> are for a stream by place.
  filter_subjects: ["message", "message.>", "reaction", "reaction.>", "bridge.gap"].map((kind) => `zulip.${REALM}.${kind}`),
  deliver_policy: DeliverPolicy.StartSequence,
  opt_start_seq: counts.done + 1,
});
let unsaved = 0;
for await (const m of await consumer.consume()) {
  // Without that header it is not the bridge's, but somebody's who may publish there.
  if (m.headers?.has("Bridge-Writer")) await count(m);
  counts.done = m.seq;
  unsaved++;
  if (m.info.pending === 0 || unsaved >= 500) await save();
}

async function save() {
  await bucket.put(REALM, JSON.stringify(counts));
  unsaved = 0;
}

async function count(m) {
  const event = await body(m);
  if (m.headers.get("Bridge-Record") === "gap-closed") {
    // Zulip's history has brought the messages of the gap, and nothing else.
    counts.missing.push({ since: event.since, until: event.closed, what: event.not_recoverable });
  } else if (event.type === "message") {
    // By the day on which it was sent: one from history is stored later.
    const day = new Date(event.message.timestamp * 1000).toISOString().slice(0, 10);
    const { display_recipient: to } = event.message; // a name, or the people of a direct message
    const place = typeof to === "string" ? `#${to}` : "direct";
    add((counts.messages[day] ??= {}), place, 1);
  } else if (event.type === "reaction") {
    add(counts.reactions, event.emoji_name, event.op === "add" ? 1 : -1);
  } else if (event.type === "lost") {
    counts.missing.push({ object: event.name });
  }
}

function add(to, name, n) {
  to[name] = (to[name] ?? 0) + n;
}

// The event or record of a message. An event that is too large for a message is in the
// object store, for as long as that keeps it.
async function body(m) {
  const name = m.headers.get("Zulip-Object");
  if (!name) return m.json();
  const objects = await new Objm(nc).open(`zulip_${REALM}`);
  const bytes = await objects.getBlob(name);
  return bytes ? JSON.parse(new TextDecoder().decode(bytes)) : { type: "lost", name };
}
