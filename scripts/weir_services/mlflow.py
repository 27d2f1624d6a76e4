# MLflow: tracking server and model registry on this instance's PostgreSQL, artifacts through it on the S3 server.
import http.client
import json
import os

from . import install, places, ports
from .postgres import Postgres
from .s3 import BUCKET, REGION, S3
from .server import NotReady, Server, bare_environment

ARTIFACTS = f"s3://{BUCKET}/mlflow-artifacts"


class Mlflow(Server):
    name = "mlflow"
    port_names = ("mlflow",)
    needs = ("postgres", "s3")
    # The first start fills the database.
    ready_within = 180.0
    ask_every = 0.2

    def install(self):
        requirements = os.path.join(places.SCRIPTS, "mlflow-requirements.txt")
        self.program = os.path.join(install.python_environment("mlflow", requirements), "bin", "mlflow")

    @property
    def uri(self):
        return f"http://{ports.HOST}:{self.port}"

    def command(self):
        s3 = S3(self.instance)
        access, secret = s3.credentials
        environment = bare_environment(
            # In the environment, not in arguments, which everyone on the machine can read.
            MLFLOW_BACKEND_STORE_URI=Postgres(self.instance).url("mlflow", "postgresql+psycopg2"),
            MLFLOW_ARTIFACTS_DESTINATION=ARTIFACTS,
            MLFLOW_S3_ENDPOINT_URL=s3.endpoint,
            AWS_ACCESS_KEY_ID=access,
            AWS_SECRET_ACCESS_KEY=secret,
            AWS_REGION=REGION,
            AWS_DEFAULT_REGION=REGION,
            MLFLOW_DISABLE_TELEMETRY="true",
            # Background jobs would be four more processes.
            MLFLOW_SERVER_ENABLE_JOB_EXECUTION="false",
        )
        argv = [self.program, "server", "--host", ports.HOST, "--port", str(self.port), "--workers", "1"]
        return argv, environment, None, self.instance.make("mlflow")

    def check(self):
        health = self._ask("GET", "/health")
        if health != b"OK":
            raise NotReady(f"/health answered {health[:200]!r}")
        # /health says nothing of the database.
        self._ask("POST", "/api/2.0/mlflow/experiments/search", json.dumps({"max_results": 1}))

    def _ask(self, method, path, body=None):
        connection = http.client.HTTPConnection(ports.HOST, self.port, timeout=30)
        try:
            connection.request(method, path, body, {"Content-Type": "application/json"})
            answer = connection.getresponse()
            text = answer.read()
        except (OSError, http.client.HTTPException) as error:
            raise NotReady(f"{path}: {error}") from error
        finally:
            connection.close()
        if answer.status != 200:
            raise NotReady(f"{path} answered {answer.status}: {text[:300]!r}")
        return text

    def describe(self):
        return {"tracking_uri": self.uri, "artifacts": ARTIFACTS}

    def environment(self):
        return {"MLFLOW_TRACKING_URI": self.uri}
