// What a Node program would be that stores the events of a Zulip account in JetStream.
//
//     node relay.mjs ZULIPRC NATS_URL SUBJECT
//
// It uses what npm has for the two sides, zulip-js and the clients of NATS, and publishes
// each event and waits for the acknowledgement. There has to be a stream for the subject.
// zulip-js has a loop of its own, callOnEachEvent, which waits a second after each answer;
// this one asks again at once. It is here to be measured (go run ./bench -only peers): a
// restart loses what happens meanwhile, and what is published is the event as JavaScript
// writes it.
import { jetstream } from "@nats-io/jetstream";
import { connect } from "@nats-io/transport-node";
import zulip from "zulip-js";

const [zuliprc, servers, subject] = process.argv.slice(2);
const stream = jetstream(await connect({ servers }));
const client = await zulip({ zuliprc });
const { queue_id } = await client.queues.register({});
for (let last_event_id = -1; ; ) {
  const { events } = await client.events.retrieve({ queue_id, last_event_id });
  for (const event of events) {
    await stream.publish(subject, JSON.stringify(event));
    last_event_id = event.id;
  }
}
