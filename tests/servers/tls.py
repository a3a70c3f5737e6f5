"""Certificates of the tests' own, and TLS for a server that was built without it."""

from __future__ import annotations

import contextlib
import datetime
import ipaddress
import select
import socket
import socketserver
import ssl
import threading
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

TICK = 100  # milliseconds between looks whether it is over
PATIENCE = 5.0  # seconds for the other side
POSTGRES_ASKS = b"\x00\x00\x00\x08\x04\xd2\x16\x2f"  # SSLRequest


KEY_USAGES = (
    "digital_signature",
    "content_commitment",
    "key_encipherment",
    "data_encipherment",
    "key_agreement",
    "key_cert_sign",
    "crl_sign",
    "encipher_only",
    "decipher_only",
)


class Authority:
    """A certificate authority.

    Args:
        folder: where it keeps its files; made if there is none.

    Attributes:
        file: its own certificate, which clients verify with.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir(exist_ok=True)
        self.folder = folder
        self.file = folder / "ca.pem"
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"authority {folder.name}")])
        certificate = self._certificate(self._name, self._key.public_key(), None)
        self.file.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))

    def issue(self, address: str) -> Path:
        """A file with a certificate for an IP address, by no name, and its key."""
        key = ec.generate_private_key(ec.SECP256R1())
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "a server")])
        certificate = self._certificate(name, key.public_key(), address)
        secret = key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        file = self.folder / f"{address}.pem"
        file.write_bytes(certificate.public_bytes(serialization.Encoding.PEM) + secret)
        return file

    def _certificate(self, name: x509.Name, key: ec.EllipticCurvePublicKey, address: str | None) -> x509.Certificate:
        now = datetime.datetime.now(datetime.UTC)
        builder = (
            x509.CertificateBuilder()
            .subject_name(name)
            .issuer_name(self._name)
            .public_key(key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(hours=1))
            .not_valid_after(now + datetime.timedelta(days=1))
            .add_extension(x509.BasicConstraints(ca=address is None, path_length=None), critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key()), critical=False)
        )
        if address is None:  # from Python 3.13 on an authority has to say that it is one
            signs = {name: name in ("key_cert_sign", "crl_sign") for name in KEY_USAGES}
            builder = builder.add_extension(x509.KeyUsage(**signs), critical=True)
        else:
            names = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address(address))])
            builder = builder.add_extension(names, critical=False)
        return builder.sign(self._key, hashes.SHA256())


@contextlib.contextmanager
def terminated(url: str, certificate: Path, *, asked: bytes = b"", known: Path | None = None) -> Iterator[str]:
    """Speak TLS before a server that can't, and pass on to it what clients say.

    Args:
        url: of the server.
        certificate: a file with the certificate and its key.
        asked: what clients of the server send before they speak TLS, to be answered with "S"; whoever sends anything
            else, or does not speak TLS, is hung up on.
        known: the authority that has to have signed the certificates of clients; None: they need none.

    Yields:
        The URL with the address that TLS is spoken at.
    """
    parts = urlsplit(url)
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificate)
    if known:
        context.load_verify_locations(known)
        context.verify_mode = ssl.CERT_REQUIRED
    stopped = threading.Event()

    class Connection(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            client: socket.socket = self.request
            client.settimeout(PATIENCE)
            with contextlib.suppress(OSError):  # whoever does not like the certificate hangs up
                if asked:
                    if client.recv(len(asked), socket.MSG_WAITALL) != asked:
                        return
                    client.sendall(b"S")
                with (
                    context.wrap_socket(client, server_side=True) as secure,
                    socket.create_connection((parts.hostname, parts.port), PATIENCE) as plain,
                ):
                    self.pass_on(secure, plain)

        def pass_on(self, secure: ssl.SSLSocket, plain: socket.socket) -> None:
            poll = select.poll()
            ways = {secure.fileno(): (secure, plain), plain.fileno(): (plain, secure)}
            for number in ways:
                poll.register(number, select.POLLIN)
            while not stopped.is_set():
                # What is decrypted already can't be seen on the socket.
                for number in [secure.fileno()] if secure.pending() else [number for number, _ in poll.poll(TICK)]:
                    source, target = ways[number]
                    data = source.recv(65536)
                    if not data:
                        return
                    target.sendall(data)

    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Connection) as server:  # which waits for its threads
        threading.Thread(target=server.serve_forever, args=(TICK / 1000,), name="terminator").start()
        try:
            login, at, _ = parts.netloc.rpartition("@")
            yield parts._replace(netloc=f"{login}{at}127.0.0.1:{server.server_address[1]}").geturl()
        finally:
            stopped.set()
            server.shutdown()
