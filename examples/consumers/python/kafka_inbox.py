"""Takes events from a topic of Kafka. `INBOX_FILE`, `KAFKA_BROKERS` (`host:9092,host:9092`), `KAFKA_TOPIC`.

The consumer's own database is SQLite, in `INBOX_FILE`: the ids that were seen and the effect (here: how many events of
each type there were) are written in one transaction, and the offset is committed after it.

It ends at the first error, and whatever runs it starts it again: it goes on where its group has committed.
"""

from __future__ import annotations

import os
import sqlite3

from confluent_kafka import Consumer, KafkaException, Message

SCHEMA = """
CREATE TABLE IF NOT EXISTS inbox (event_id TEXT PRIMARY KEY, seen_at TEXT NOT NULL DEFAULT CURRENT_TIMESTAMP);
CREATE TABLE IF NOT EXISTS totals (event_type TEXT PRIMARY KEY, events INTEGER NOT NULL);
"""
SEEN = "INSERT INTO inbox (event_id) VALUES (?) ON CONFLICT DO NOTHING"
EFFECT = "INSERT INTO totals VALUES (?, 1) ON CONFLICT (event_type) DO UPDATE SET events = events + 1"


def take(db: sqlite3.Connection, event_id: str, event_type: str) -> None:
    """Does the work for an event, unless it was done before. When this returns, its offset may be committed."""
    with db:  # One transaction: committed at its end, rolled back by an exception.
        if db.execute(SEEN, (event_id,)).rowcount == 1:
            db.execute(EFFECT, (event_type,))


def header(message: Message, name: str) -> str | None:
    """The first header of this name."""
    return next((value.decode() for key, value in message.headers() or [] if key == name), None)


def main() -> None:
    db = sqlite3.connect(os.environ["INBOX_FILE"])
    db.executescript(SCHEMA)
    consumer = Consumer({
        "bootstrap.servers": os.environ["KAFKA_BROKERS"],
        "group.id": "totals-sqlite",
        # A new group begins with the oldest event.
        "auto.offset.reset": "earliest",
        # By itself the library would commit what it has handed out, done or not.
        "enable.auto.commit": False,
        # The partitions of a consumer that died go to another after this time.
        "session.timeout.ms": 6000,
    })
    consumer.subscribe([os.environ["KAFKA_TOPIC"]])
    while True:
        message = consumer.poll(1.0)
        if message is None:
            continue
        if message.error():
            raise KafkaException(message.error())
        event_id = header(message, "id")
        if event_id is None:
            raise ValueError("a record without an id is none of walgate's")
        take(db, event_id, header(message, "walgate-event-type") or "")
        # Not waited for: a commit that is lost only lets events come again.
        consumer.commit(message=message, asynchronous=True)


if __name__ == "__main__":
    main()
