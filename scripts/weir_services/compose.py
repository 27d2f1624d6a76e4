# Files for compose.yaml: variables with its credentials, and the configuration of Kafka's container.
import shlex

from . import certificates, places
from .kafka import TOPICS, Kafka, properties
from .postgres import DATABASES, SUPERUSER, password_name
from .redis import PASSWORD as REDIS_PASSWORD
from .s3 import BUCKET, REGION, S3

# Where compose.yaml mounts Kafka's part of the instance, where it keeps the data, and where the image has the tools.
MOUNTED = "/weir"
DATA = "/var/lib/kafka/data"
TOOLS = "/opt/kafka/bin"

START = """#!/bin/bash
# Written by scripts/services compose-files: formats the storage once, starts the broker, makes the topics.
set -eu
storage() {{
    {tools}/kafka-storage.sh "$@"
}}
topics() {{
    until {tools}/kafka-topics.sh --bootstrap-server {bootstrap} --command-config {mounted}/client.properties "$@"; do
        sleep 1
    done
}}
storage {format}
(
{topics}) &
exec {tools}/kafka-server-start.sh {mounted}/server.properties
"""


class KafkaInContainer(Kafka):
    """The same broker with a container's addresses and paths."""

    listen = "0.0.0.0"

    def at(self, *parts):
        return DATA if parts == ("kafka", "data") else f"{MOUNTED}/{parts[-1]}"


def write(instance):
    """Writes all files; returns the path of the variables."""
    certificates.ensure(instance)
    _write_kafka(KafkaInContainer(instance))
    # The clients of this machine use the same files as with native servers.
    client = Kafka(instance)
    instance.write("secrets/kafka-client.properties", properties(client.client_settings()))
    S3(instance).prepare()
    access, secret = S3(instance).credentials
    variables = {
        "WEIR_KAFKA_FILES": instance.path("compose", "kafka"),
        "WEIR_KAFKA_VERSION": places.pins("kafka")["version"],
        "WEIR_VERSITYGW_VERSION": places.pins("s3")["version"],
        "REDIS_PASSWORD": instance.secret(REDIS_PASSWORD),
        "AWS_ACCESS_KEY_ID": access,
        "AWS_SECRET_ACCESS_KEY": secret,
        "AWS_REGION": REGION,
        "S3_BUCKET": BUCKET,
        "POSTGRES_PASSWORD": instance.secret(password_name(SUPERUSER)),
    }
    for name in DATABASES:
        variables[f"POSTGRES_{name.upper()}_PASSWORD"] = instance.secret(password_name(name))
    text = "".join(f"{name}='{value}'\n" for name, value in variables.items())
    return instance.write("compose/variables.env", text)


def _write_kafka(broker):
    """The folder that is mounted: configurations, certificates, and the script that starts the broker."""
    instance = broker.instance
    instance.write("compose/kafka/server.properties", properties(broker.settings()))
    instance.write("compose/kafka/client.properties", properties(broker.client_settings()))
    for name in ("ca.pem", "keystore.pem"):
        with open(certificates.file(instance, name), encoding="ascii") as file:
            instance.write(f"compose/kafka/{name}", file.read())
    start = START.format(
        tools=TOOLS,
        mounted=MOUNTED,
        bootstrap=broker.bootstrap,
        format=shlex.join(broker.format_arguments(f"{MOUNTED}/server.properties")),
        topics="".join(f"    topics {shlex.join(broker.create_arguments(topic))}\n" for topic in TOPICS),
    )
    instance.write("compose/kafka/start.sh", start)
