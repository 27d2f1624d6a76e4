#!/usr/bin/env python3
# Sends image URLs to Weir through Kafka and prints the results as they arrive in the results topic.
"""Usage: produce.py [--request-id ID] [--no-wait] URL...

The broker and the login come from the environment, under the deployment's names:
  KAFKA_BOOTSTRAP_SERVERS, KAFKA_USER, KAFKA_PASSWORD, KAFKA_CA_FILE (the authority that signed the broker's certificate),
  KAFKA_TOPIC (fish-classification-requests), KAFKA_RESULTS_TOPIC (fish-classification-results)

pip install -r requirements.txt
"""

import argparse
import json
import os
import sys
import time
import uuid

from confluent_kafka import Consumer, KafkaException, Producer, TopicPartition

WAIT_SECONDS = 60


def login():
    """Settings of every client of this broker."""
    settings = {
        "bootstrap.servers": os.environ["KAFKA_BOOTSTRAP_SERVERS"],
        "security.protocol": "SASL_SSL",
        "sasl.mechanism": "SCRAM-SHA-512",
        "sasl.username": os.environ["KAFKA_USER"],
        "sasl.password": os.environ["KAFKA_PASSWORD"],
    }
    if os.environ.get("KAFKA_CA_FILE"):
        settings["ssl.ca.location"] = os.environ["KAFKA_CA_FILE"]
    return settings


def reader_at_the_end(topic):
    """A consumer of records committed from now on. Results of aborted transactions are not visible."""
    consumer = Consumer(login() | {"group.id": f"sample-{uuid.uuid4()}", "isolation.level": "read_committed"})
    partitions = consumer.list_topics(topic, timeout=30).topics[topic].partitions
    ends = [consumer.get_watermark_offsets(TopicPartition(topic, n), timeout=30)[1] for n in partitions]
    consumer.assign([TopicPartition(topic, n, end) for n, end in zip(partitions, ends)])
    return consumer


def send(topic, message):
    """Sends one message and waits until the broker has stored it."""
    failures = []
    producer = Producer(login() | {"compression.type": "gzip", "enable.idempotence": True})
    producer.produce(topic, json.dumps(message).encode(), on_delivery=lambda error, _: error and failures.append(error))
    left = producer.flush(30)
    if failures or left:
        raise KafkaException(failures[0]) if failures else TimeoutError(f"the broker did not take it in 30 s: {topic}")


def main():
    parser = argparse.ArgumentParser(description="Send image URLs to Weir through Kafka.")
    parser.add_argument("urls", nargs="+", metavar="URL")
    parser.add_argument("--request-id", default=str(uuid.uuid4()))
    parser.add_argument("--no-wait", action="store_true", help="do not wait for the results")
    arguments = parser.parse_args()

    requests = os.environ.get("KAFKA_TOPIC", "fish-classification-requests")
    results = os.environ.get("KAFKA_RESULTS_TOPIC", "fish-classification-results")
    consumer = None if arguments.no_wait else reader_at_the_end(results)
    send(requests, {"request_id": arguments.request_id, "image_urls": arguments.urls})
    print(f"sent {arguments.request_id}: {len(arguments.urls)} images", file=sys.stderr)

    waiting = set(range(len(arguments.urls))) if consumer else set()
    until = time.monotonic() + WAIT_SECONDS
    while waiting and time.monotonic() < until:
        record = consumer.poll(1.0)
        if record is None:
            continue
        if record.error():
            raise KafkaException(record.error())
        event = json.loads(record.value())
        if event.get("kind") == "batch_item" and event.get("request_id") == arguments.request_id:
            waiting.discard(event["index"])
            print(json.dumps(event))
    if consumer:
        consumer.close()
    if waiting:
        sys.exit(f"no result for {len(waiting)} of {len(arguments.urls)} images within {WAIT_SECONDS} s")


if __name__ == "__main__":
    main()
