# Apache Kafka: one node in KRaft mode, one client listener (SASL_SSL, SCRAM-SHA-512), both topics of the deployment.
import base64
import hashlib
import os
import secrets
import subprocess

from . import certificates, install, ports
from .errors import ServiceError
from .kafka_jars import Java
from .server import NotReady, Server

USER = "kafka_user"
PASSWORD = "kafka-password"
# The broker is a client of itself for the markers that end a transaction.
BROKER_USER = "broker"
BROKER_PASSWORD = "kafka-broker-password"
REQUESTS = "fish-classification-requests"
RESULTS = "fish-classification-results"
TOPICS = (REQUESTS, RESULTS)
GROUP = "ml-workers"
PARTITIONS = 3
TOPIC_SETTINGS = {
    "compression.type": "gzip",
    "retention.ms": str(7 * 24 * 3600 * 1000),
    # A partition: 1 GB a topic over 3 partitions.
    "retention.bytes": "357913941",
}
SCRAM_ITERATIONS = 4096


class Kafka(Server):
    name = "kafka"
    port_names = ("kafka", "kafka_controller")
    listen = ports.HOST

    def install(self):
        self.java = Java()

    def at(self, *parts):
        """The broker's path of a file of the instance, which differs in a container."""
        return self.instance.path(*parts)

    @property
    def bootstrap(self):
        return f"{ports.HOST}:{self.port}"

    @property
    def client_properties(self):
        return self.instance.path("secrets", "kafka-client.properties")

    def prepare(self):
        config = self.instance.write("kafka/server.properties", properties(self.settings()))
        self.instance.write("secrets/kafka-client.properties", properties(self.client_settings()))
        if not os.path.exists(self.instance.path("kafka", "data", "meta.properties")):
            storage = self.java.tool("kafka.tools.StorageTool", *self.format_arguments(config))
            install.run(storage, "cannot format Kafka's storage", timeout=60)

    def format_arguments(self, config):
        """Arguments of the storage tool. Passwords are salted, since arguments are visible in the process list."""
        arguments = ["format", "--ignore-formatted", "--config", config, "--cluster-id", _cluster_id()]
        for user, password in ((USER, PASSWORD), (BROKER_USER, BROKER_PASSWORD)):
            arguments += ["--add-scram", _scram(user, self.instance.secret(password))]
        return arguments

    def settings(self):
        controller = f"{ports.HOST}:{self.instance.ports['kafka_controller']}"
        return {
            "process.roles": "broker,controller",
            "node.id": "1",
            "controller.quorum.voters": f"1@{controller}",
            "listeners": f"SASL_SSL://{self.listen}:{self.port},CONTROLLER://{controller}",
            "advertised.listeners": f"SASL_SSL://{self.bootstrap}",
            "listener.security.protocol.map": "SASL_SSL:SASL_SSL,CONTROLLER:SSL",
            "controller.listener.names": "CONTROLLER",
            "inter.broker.listener.name": "SASL_SSL",
            "sasl.enabled.mechanisms": "SCRAM-SHA-512",
            "sasl.mechanism.inter.broker.protocol": "SCRAM-SHA-512",
            "listener.name.sasl_ssl.scram-sha-512.sasl.jaas.config": _jaas(
                BROKER_USER, self.instance.secret(BROKER_PASSWORD)
            ),
            # Only the broker itself, which has the certificate, reaches the controller.
            "listener.name.controller.ssl.client.auth": "required",
            "ssl.keystore.type": "PEM",
            "ssl.keystore.location": self.at("certificates", "keystore.pem"),
            "ssl.truststore.type": "PEM",
            "ssl.truststore.location": self.at("certificates", "ca.pem"),
            "log.dirs": self.at("kafka", "data"),
            "auto.create.topics.enable": "false",
            "num.partitions": str(PARTITIONS),
            "group.initial.rebalance.delay.ms": "0",
            # There is one node for the internal topics.
            "offsets.topic.replication.factor": "1",
            "offsets.topic.num.partitions": "3",
            "transaction.state.log.replication.factor": "1",
            "transaction.state.log.min.isr": "1",
            "transaction.state.log.num.partitions": "3",
            "share.coordinator.state.topic.replication.factor": "1",
            "share.coordinator.state.topic.min.isr": "1",
            "share.coordinator.state.topic.num.partitions": "3",
            # A killed broker can register again only after its last session has expired: 9 s by default.
            "broker.session.timeout.ms": "5000",
            "broker.heartbeat.interval.ms": "1000",
            # Light enough for a developer's machine.
            "num.network.threads": "2",
            "num.io.threads": "4",
            "background.threads": "2",
            "log.cleaner.dedupe.buffer.size": str(4 << 20),
            "log.segment.bytes": str(64 << 20),
        }

    def client_settings(self):
        return {
            "bootstrap.servers": self.bootstrap,
            "security.protocol": "SASL_SSL",
            "sasl.mechanism": "SCRAM-SHA-512",
            "sasl.jaas.config": _jaas(USER, self.instance.secret(PASSWORD)),
            "ssl.truststore.type": "PEM",
            "ssl.truststore.location": self.at("certificates", "ca.pem"),
        }

    def command(self):
        argv, environment = self.java.broker(self.instance.path("kafka", "server.properties"))
        return argv, environment, None, self.instance.make("kafka")

    def check(self):
        # A tool takes a second of CPU time: it is not started before the port is open.
        if not ports.answers(self.port):
            raise NotReady(f"nothing listens on {self.bootstrap}")
        running = [(topic, self._create(topic)) for topic in TOPICS]
        failures = []
        for topic, child in running:
            try:
                output = child.communicate(timeout=30)[0]
            except subprocess.TimeoutExpired:
                child.kill()
                output = child.communicate()[0] + "no answer within 30 s"
            if child.returncode != 0:
                failures.append(f"topic {topic}: {output.strip()[-500:]}")
        if failures:
            raise NotReady("; ".join(failures))
        self._settle_message_size()

    def _create(self, topic):
        command = self.admin("org.apache.kafka.tools.TopicCommand", *self.create_arguments(topic))
        streams = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
        return subprocess.Popen(command, text=True, **streams)

    def create_arguments(self, topic):
        """Arguments of the topic tool that create a topic of the deployment if it does not exist."""
        arguments = ["--create", "--if-not-exists", "--topic", topic]
        arguments += ["--partitions", str(PARTITIONS), "--replication-factor", "1"]
        settings = dict(TOPIC_SETTINGS)
        if topic == REQUESTS:
            settings["max.message.bytes"] = str(self.instance.options["max_message_bytes"])
        for name, value in settings.items():
            arguments += ["--config", f"{name}={value}"]
        return arguments

    def _settle_message_size(self):
        """Alters the requests topic if it was created with another limit."""
        wanted = self.instance.options["max_message_bytes"]
        if self.instance.options.get("max_message_bytes_made", wanted) != wanted:
            arguments = ["--alter", "--entity-type", "topics", "--entity-name", REQUESTS]
            arguments += ["--add-config", f"max.message.bytes={wanted}"]
            command = self.admin("kafka.admin.ConfigCommand", *arguments)
            install.run(command, f"cannot set max.message.bytes of {REQUESTS}", timeout=30)
        self.instance.set_option("max_message_bytes_made", wanted)

    def admin(self, tool, *arguments):
        """The command line of one of Kafka's tools, as the deployment's user."""
        connection = ["--bootstrap-server", self.bootstrap, "--command-config", self.client_properties]
        return self.java.tool(tool, *connection, *arguments)

    def describe(self):
        return {
            "bootstrap": self.bootstrap,
            "user": USER,
            "password_file": self.instance.secret_file(PASSWORD),
            "ca_file": certificates.file(self.instance, "ca.pem"),
            "requests_topic": REQUESTS,
            "results_topic": RESULTS,
            "group_id": GROUP,
            "partitions": PARTITIONS,
            "max_message_bytes": self.instance.options["max_message_bytes"],
            "client_properties": self.client_properties,
        }

    def environment(self):
        return {
            "KAFKA_BOOTSTRAP_SERVERS": self.bootstrap,
            "KAFKA_USER": USER,
            "KAFKA_PASSWORD": self.instance.secret(PASSWORD),
            "KAFKA_CA_FILE": certificates.file(self.instance, "ca.pem"),
            "KAFKA_TOPIC": REQUESTS,
            "KAFKA_RESULTS_TOPIC": RESULTS,
            "KAFKA_GROUP_ID": GROUP,
        }


def message_bytes(text):
    """A message size limit from the command line, within the broker's request size of 100 MiB."""
    low, high = 1024, 100 << 20
    value = int(text) if text.isdigit() else 0
    if not low <= value <= high:
        raise ServiceError(f"--max-message-bytes {text}: a number from {low} to {high} is expected")
    return value


def _cluster_id():
    """A random id in Kafka's form: 16 bytes in base64url."""
    while True:
        name = base64.urlsafe_b64encode(secrets.token_bytes(16)).decode().rstrip("=")
        # The storage tool would interpret it as an option.
        if not name.startswith("-"):
            return name


def _jaas(user, password):
    login = "org.apache.kafka.common.security.scram.ScramLoginModule"
    return f'{login} required username="{user}" password="{password}";'


def _scram(user, password):
    """A credential in the format of the storage tool (RFC 5802: SaltedPassword)."""
    salt = secrets.token_bytes(16)
    salted = hashlib.pbkdf2_hmac("sha512", password.encode(), salt, SCRAM_ITERATIONS)
    parts = f'name={user},iterations={SCRAM_ITERATIONS},salt="{base64.b64encode(salt).decode()}"'
    return f'SCRAM-SHA-512=[{parts},saltedpassword="{base64.b64encode(salted).decode()}"]'


def properties(settings):
    # Backslashes in paths have to be escaped in this format.
    return "".join(f"{name}={value}\n".replace("\\", "\\\\") for name, value in settings.items())
