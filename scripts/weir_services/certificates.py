# The instance's own certificate authority and the one server certificate of its loopback servers, made by openssl.
import os
import shutil

from . import install

DAYS = "3650"
NAMES = "DNS:localhost,IP:127.0.0.1,IP:::1"


def ensure(instance):
    """Creates them if they do not exist. Files: ca.pem, server.pem, server.key, and keystore.pem (both, for Kafka)."""
    folder = instance.path("certificates")
    if os.path.exists(os.path.join(folder, "keystore.pem")):
        return
    openssl = install.tool("openssl", "openssl")
    scratch = instance.path("certificates.new")
    shutil.rmtree(scratch, ignore_errors=True)
    os.makedirs(scratch, mode=0o700)

    def run(*arguments):
        install.run([openssl, *arguments], "openssl cannot make the certificates", cwd=scratch)

    # Without this configuration the machine's openssl.cnf would add extensions.
    _write(scratch, "openssl.cnf", "[req]\ndistinguished_name = name\n[name]\n")
    _write(
        scratch,
        "server.ext",
        "basicConstraints = critical,CA:FALSE\nkeyUsage = critical,digitalSignature\n"
        # Kafka's broker is also the client of its own controller.
        "extendedKeyUsage = serverAuth,clientAuth\nsubjectKeyIdentifier = hash\nauthorityKeyIdentifier = keyid\n"
        f"subjectAltName = {NAMES}\n",
    )
    for key in ("ca.key", "server.key"):
        run("genpkey", "-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256", "-out", key)
    run(
        "req", "-x509", "-new", "-config", "openssl.cnf", "-key", "ca.key", "-sha256", "-days", DAYS, "-out", "ca.pem",
        "-subj", "/CN=Weir development CA", "-addext", "basicConstraints=critical,CA:TRUE,pathlen:0",
        "-addext", "keyUsage=critical,keyCertSign,cRLSign", "-addext", "subjectKeyIdentifier=hash",
    )  # fmt: skip
    run("req", "-new", "-config", "openssl.cnf", "-key", "server.key", "-subj", "/CN=localhost", "-out", "server.csr")
    run(
        "x509", "-req", "-in", "server.csr", "-CA", "ca.pem", "-CAkey", "ca.key", "-set_serial", "1", "-sha256",
        "-days", DAYS, "-extfile", "server.ext", "-out", "server.pem",
    )  # fmt: skip
    _write(
        scratch, "keystore.pem", _read(scratch, "server.key") + _read(scratch, "server.pem") + _read(scratch, "ca.pem")
    )
    # No further certificate must be signed with it.
    for name in ("ca.key", "server.csr", "server.ext", "openssl.cnf"):
        os.remove(os.path.join(scratch, name))
    for name in ("server.key", "keystore.pem"):
        os.chmod(os.path.join(scratch, name), 0o600)
    os.rename(scratch, folder)


def file(instance, name):
    return instance.path("certificates", name)


def _write(folder, name, text):
    with open(os.path.join(folder, name), "w", encoding="ascii") as target:
        target.write(text)


def _read(folder, name):
    with open(os.path.join(folder, name), encoding="ascii") as source:
        return source.read()
