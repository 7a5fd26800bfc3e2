"""Certificates for SeaweedFS' inner connections.

Its S3 door asks for keys, but its master, volume and filer also listen for gRPC, where anyone on the
machine could list, read and write without a key. With mutual TLS only the server itself gets in.
"""

from __future__ import annotations

import datetime
import ipaddress
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from infra.local.layout import HOST
from infra.local.secrets import Secrets, write_private

_YEARS = 10
_PEERS = ("volume", "master", "filer", "s3", "msg_broker", "msg_agent", "admin", "worker", "mq", "client")


def write_security(folder: Path, keys: Secrets) -> None:
    """Write ``security.toml`` with certificates into ``folder``, once."""
    target = folder / "security.toml"
    if target.exists():
        return
    _write_certificates(folder)
    names = ("jwt.signing", "jwt.signing.read", "jwt.filer_signing", "jwt.filer_signing.read")
    lines = [f'[{name}]\nkey = "{key}"' for name, key in zip(names, keys.seaweed_signing_keys, strict=True)]
    lines.append(f'[grpc]\nca = "{folder / "ca.crt"}"')
    lines += [
        f'[grpc.{peer}]\ncert = "{folder / "peer.crt"}"\nkey = "{folder / "peer.key"}"' for peer in _PEERS
    ]
    write_private(target, "\n\n".join(lines) + "\n")


def _write_certificates(folder: Path) -> None:
    now = datetime.datetime.now(datetime.UTC)
    authority_key = ec.generate_private_key(ec.SECP256R1())
    peer_key = ec.generate_private_key(ec.SECP256R1())
    authority_name = _name("chipline local authority")

    def builder(subject: x509.Name, key: ec.EllipticCurvePublicKey) -> x509.CertificateBuilder:
        return (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(authority_name)
            .public_key(key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(days=1))
            .not_valid_after(now + datetime.timedelta(days=365 * _YEARS))
        )

    authority = (
        builder(authority_name, authority_key.public_key())
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(authority_key, hashes.SHA256())
    )
    names = [x509.DNSName("localhost"), x509.IPAddress(ipaddress.ip_address(HOST))]
    usages = [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]
    peer = (
        builder(_name("chipline store"), peer_key.public_key())
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .add_extension(x509.ExtendedKeyUsage(usages), critical=False)
        .sign(authority_key, hashes.SHA256())
    )
    # The authority's key is dropped here: nobody can make another peer.
    pem = serialization.Encoding.PEM
    write_private(folder / "ca.crt", authority.public_bytes(pem).decode())
    write_private(folder / "peer.crt", peer.public_bytes(pem).decode())
    private = peer_key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    write_private(folder / "peer.key", private.decode())


def _name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])
