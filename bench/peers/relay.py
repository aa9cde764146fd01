"""What a Python program would be that stores the events of a Zulip account in JetStream.

    relay.py ZULIPRC NATS_URL SUBJECT

It uses what PyPI has for the two sides: zulip follows the queue, in a thread of its own,
and nats-py publishes each event and waits for the acknowledgement. There has to be a stream
for the subject. It is here to be measured (go run ./bench -only peers): a restart loses
what happens meanwhile, and what is published is the event as Python writes it.
"""

import asyncio
import json
import sys

import nats
import zulip


async def main(zuliprc: str, nats_url: str, subject: str) -> None:
    connection = await nats.connect(nats_url)
    jetstream = connection.jetstream()
    loop = asyncio.get_running_loop()

    def store(event: dict) -> None:
        body = json.dumps(event, ensure_ascii=False).encode()
        asyncio.run_coroutine_threadsafe(jetstream.publish(subject, body), loop).result()

    client = zulip.Client(config_file=zuliprc)
    await asyncio.to_thread(client.call_on_each_event, store)


asyncio.run(main(*sys.argv[1:]))
