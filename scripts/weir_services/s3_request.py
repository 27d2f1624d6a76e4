# One signed request to an S3 server (AWS Signature Version 4), sufficient to check readiness and to create the bucket.
import datetime
import hashlib
import hmac
import http.client
import urllib.parse


def send(endpoint, region, credentials, method, path, query):
    """Sends a request without a body; returns the status and the answer's body."""
    access, secret = credentials
    host = urllib.parse.urlsplit(endpoint).netloc
    moment = datetime.datetime.now(datetime.timezone.utc).strftime("%Y%m%dT%H%M%SZ")
    scope = f"{moment[:8]}/{region}/s3/aws4_request"
    digest = hashlib.sha256(b"").hexdigest()
    headers = {"host": host, "x-amz-content-sha256": digest, "x-amz-date": moment}
    signed = ";".join(sorted(headers))
    line = urllib.parse.urlencode(sorted(query.items()), quote_via=urllib.parse.quote)
    canonical = [method, urllib.parse.quote(path), line]
    canonical += [f"{name}:{headers[name]}" for name in sorted(headers)] + ["", signed, digest]
    to_sign = "\n".join(("AWS4-HMAC-SHA256", moment, scope, _sha256("\n".join(canonical))))
    key = f"AWS4{secret}".encode()
    for part in scope.split("/"):
        key = hmac.new(key, part.encode(), hashlib.sha256).digest()
    signature = hmac.new(key, to_sign.encode(), hashlib.sha256).hexdigest()
    proof = f"Credential={access}/{scope},SignedHeaders={signed},Signature={signature}"
    headers["authorization"] = f"AWS4-HMAC-SHA256 {proof}"
    connection = http.client.HTTPConnection(host, timeout=10)
    try:
        connection.request(method, f"{path}?{line}" if line else path, headers=headers)
        answer = connection.getresponse()
        return answer.status, answer.read()
    except http.client.HTTPException as error:
        raise ConnectionError(f"no HTTP answer: {error!r}") from error
    finally:
        connection.close()


def _sha256(text):
    return hashlib.sha256(text.encode()).hexdigest()
