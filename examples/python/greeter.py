"""Greeter is a bot that greets whoever writes in a channel for the first time, once.

    pip install -r requirements.txt
    ZULIPRC=~/greeter-zuliprc python greeter.py

It hears of messages by the stream that zulip-nats keeps, and answers by Zulip's own API,
as the bot whose zuliprc it has. The bot need not be the account that zulip-nats runs as.

What it has done with whom stands in a key-value bucket, by the person's id:

    greeting   a greeting may be on its way
    greeted    it has arrived
    known      no greeting was due any more when we heard of the person

It ends when something fails that does not pass by itself. Whoever has started it
(systemd, Docker) starts it again, and it goes on with the message that it was at.
"""

import asyncio
import base64
import configparser
import json
import os
import time
import urllib.parse
import urllib.request

import nats
from nats.js.api import AckPolicy, ConsumerConfig
from nats.js.errors import KeyNotFoundError

URL = os.environ.get("NATS_URL", "nats://127.0.0.1:4222")
REALM = os.environ.get("REALM", "acme")
CHANNEL = os.environ.get("CHANNEL", "welcome")
LATE = 3600  # seconds: nobody waits for longer to be greeted
PATIENCE = 10  # seconds that an answer may take


async def main():
    zulip = Zulip(os.environ.get("ZULIPRC", os.path.expanduser("~/.zuliprc")))
    nc = await nats.connect(
        URL, name="greeter", inbox_prefix="_INBOX_greeter", max_reconnect_attempts=-1
    )
    js = nc.jetstream()
    people = await js.create_key_value(bucket="greeter")
    # The consumer is durable: the server keeps how far we are. One message is under way
    # at a time, so they come in order, and two greeters never work on the same person.
    await js.add_consumer(
        f"ZULIP_{REALM}",
        ConsumerConfig(
            durable_name="greeter",
            # In a stream by type, and in one by place: there is no need to see direct ones.
            filter_subjects=[f"zulip.{REALM}.message", f"zulip.{REALM}.message.channel.*"],
            ack_policy=AckPolicy.EXPLICIT,
            ack_wait=4 * PATIENCE,  # a message takes three answers, at most
            max_ack_pending=1,
        ),
    )
    messages = await js.pull_subscribe_bind("greeter", f"ZULIP_{REALM}")
    while True:
        try:
            [msg] = await messages.fetch(1, timeout=5)
        except nats.errors.TimeoutError:
            continue  # nothing happens, or NATS is away and comes back
        if event := await body(js, msg):
            await hear(zulip, people, event["message"], msg.headers["Zulip-Origin"])
        await msg.ack()  # if that is lost, the message comes again, and finds the person greeted


async def body(js, msg):
    """The event, or None where there is none: somebody else published it, or it was too
    large for a message and is no longer in the object store either."""
    if "Zulip-Queue-Id" not in (msg.headers or {}):
        return None
    data = msg.data
    if name := msg.headers.get("Zulip-Object"):
        objects = await js.object_store(f"zulip_{REALM}")
        try:
            data = (await asyncio.wait_for(objects.get(name), PATIENCE)).data
        except nats.js.errors.NotFoundError:
            print("the large message", name, "is gone", flush=True)
            return None
    return json.loads(data)


async def hear(zulip, people, message, origin):
    """Does with one message what is left to be done."""
    if message.get("display_recipient") != CHANNEL or message["sender_email"] == zulip.email:
        return
    person = str(message["sender_id"])
    try:
        state = (await people.get(person)).value
    except KeyNotFoundError:
        state = b""
    if state in (b"greeted", b"known"):
        return
    if state == b"greeting" and await asyncio.to_thread(zulip.has_greeted, message):
        await people.put(person, b"greeted")
        return
    # Messages of a gap come from Zulip's history, later than they were sent. And we may
    # have been away ourselves.
    if origin == "backfill" or time.time() - message["timestamp"] > LATE:
        await people.put(person, b"known")
        return
    await people.put(person, b"greeting")
    await asyncio.to_thread(zulip.greet, message)
    await people.put(person, b"greeted")
    print("greeted", person, flush=True)


class Zulip:
    """What the bot needs of Zulip's API: https://zulip.com/api/rest"""

    def __init__(self, zuliprc):
        config = configparser.ConfigParser()
        with open(zuliprc) as f:
            config.read_file(f)
        api = config["api"]
        self.email, self.site = api["email"], api["site"]
        self.login = base64.b64encode(f"{api['email']}:{api['key']}".encode()).decode()

    def greet(self, message):
        name = f"{message['sender_full_name']}|{message['sender_id']}"
        self.ask(
            "POST",
            type="channel",
            to=json.dumps(message["stream_id"]),
            topic=message["subject"],
            content=f"Welcome, @**{name}**!",
        )

    def has_greeted(self, message):
        """Whether a greeting left before we were stopped. We did not live to see the
        answer, and Zulip alone can tell."""
        time.sleep(2)  # it may have been on its way just then
        answer = self.ask(
            "GET",
            anchor=message["id"],
            num_before=0,
            num_after=1000,
            apply_markdown="false",
            narrow=json.dumps(
                [
                    {"operator": "channel", "operand": CHANNEL},
                    {"operator": "sender", "operand": self.email},
                ]
            ),
        )
        return any(f"|{message['sender_id']}**" in m["content"] for m in answer["messages"])

    def ask(self, method, **arguments):
        query = urllib.parse.urlencode(arguments)
        request = urllib.request.Request(
            f"{self.site}/api/v1/messages" + (f"?{query}" if method == "GET" else ""),
            data=query.encode() if method == "POST" else None,
            method=method,
            headers={"Authorization": f"Basic {self.login}", "User-Agent": "greeter"},
        )
        with urllib.request.urlopen(request, timeout=PATIENCE) as answer:
            return json.load(answer)


if __name__ == "__main__":
    asyncio.run(main())
