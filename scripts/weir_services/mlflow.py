# MLflow: tracking server and model registry on this instance's PostgreSQL, artifacts on the S3 server; and an old one.
import http.client
import json
import os

from . import install, places, ports
from .errors import ServiceError
from .postgres import Postgres
from .s3 import BUCKET, REGION, S3
from .server import NotReady, Server, bare_environment



class Mlflow(Server):
    """The current one: clients send and fetch artifacts through it."""

    name = "mlflow"
    port_names = ("mlflow",)
    needs = ("postgres", "s3")
    # The first start fills the database.
    ready_within = 180.0
    ask_every = 0.2

    def install(self):
        requirements = os.path.join(places.SCRIPTS, f"{self.name}-requirements.txt")
        self.program = os.path.join(install.python_environment(self.name, requirements), "bin", "mlflow")

    @property
    def artifacts(self):
        return f"s3://{BUCKET}/{self.name}-artifacts"

    @property
    def uri(self):
        return f"http://{ports.HOST}:{self.port}"

    def command(self):
        s3 = S3(self.instance)
        access, secret = s3.credentials
        environment = bare_environment(
            # In the environment instead of arguments, which all users of the machine can read.
            MLFLOW_BACKEND_STORE_URI=Postgres(self.instance).url(self.name, "postgresql+psycopg2"),
            MLFLOW_ARTIFACTS_DESTINATION=self.artifacts,
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
        return argv, environment, None, self.instance.make(self.name)

    def check(self):
        health = self._ask("GET", "/health")
        if health != b"OK":
            raise NotReady(f"/health answered {health[:200]!r}")
        # /health does not check the database.
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
        python = os.path.join(places.cache(), f"venv-{self.name}", "bin", "python")
        return {"tracking_uri": self.uri, "artifacts": self.artifacts, "python": python}

    def environment(self):
        return {"MLFLOW_TRACKING_URI": self.uri}


class Mlflow29(Mlflow):
    """An old version for tests: without an artifact proxy, clients access the S3 server directly."""

    name = "mlflow29"
    port_names = ("mlflow29",)

    def prepare(self):
        try:
            Postgres(self.instance).make_databases((self.name,))
        except NotReady as error:
            raise ServiceError(f"cannot make its database: {error}") from error

    def command(self):
        argv, environment, account, folder = super().command()
        argv += ["--no-serve-artifacts", "--default-artifact-root", self.artifacts]
        # With a destination it would serve artifacts anyway.
        del environment["MLFLOW_ARTIFACTS_DESTINATION"]
        return argv, environment, account, folder

    def environment(self):
        # The deployment's variables name the current one.
        return {}
