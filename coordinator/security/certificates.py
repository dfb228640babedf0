"""The X.509 side of a private authority: its own certificate, those it issues, and the list of revoked ones.

Keys are NIST P-256, which every TLS library on a board supports. Extensions follow RFC 5280 as far as OpenSSL's strict
checking requires.
"""

from __future__ import annotations

import datetime
import ipaddress
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

from fleetnas.fleet_protocol.errors import MissingDependencyError
from fleetnas.fleet_protocol.installing import install_extra

try:
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
except ImportError as missing:
    raise MissingDependencyError(
        f"certificates need the cryptography package ({missing}); run: {install_extra('secure')}"
    ) from missing

AUTHORITY_DAYS, CERTIFICATE_DAYS = 20 * 365, 5 * 365
#: A board's clock may be a little behind.
_EARLIER = datetime.timedelta(days=1)


@dataclass(frozen=True)
class Issued:
    """A certificate and its key, as PEM."""

    certificate: str
    key: str

    @property
    def serial(self) -> int:
        """The number by which it is revoked."""
        return _certificate(self.certificate).serial_number

    @property
    def expires(self) -> datetime.datetime:
        """End of its validity."""
        return _certificate(self.certificate).not_valid_after_utc


def new_authority(name: str, now: datetime.datetime) -> Issued:
    """Make a self-signed authority that may sign certificates and nothing else."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = _name(f"fleetnas authority {name}"[:64])
    public = key.public_key()
    builder = (
        _builder(subject, subject, public, now, AUTHORITY_DAYS)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_key_usage(signs_certificates=True), critical=True)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(public), critical=False)
    )
    return _issued(builder.sign(key, hashes.SHA256()), key)


def issue(
    authority: Issued,
    name: str,
    purpose: Literal["server", "client"],
    now: datetime.datetime,
    days: int = CERTIFICATE_DAYS,
    hosts: Iterable[str] = (),
) -> Issued:
    """Issue a certificate for a broker that is reached under `hosts`, or for a client called `name`."""
    ca, ca_key = _certificate(authority.certificate), _key(authority.key)
    key = ec.generate_private_key(ec.SECP256R1())
    usage = ExtendedKeyUsageOID.SERVER_AUTH if purpose == "server" else ExtendedKeyUsageOID.CLIENT_AUTH
    builder = (
        _builder(_name(name[:64]), ca.subject, key.public_key(), now, days)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_key_usage(signs_certificates=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage([usage]), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(ca_key.public_key()), critical=False)
    )
    names = [_host(host) for host in hosts]
    if names:
        builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
    return _issued(builder.sign(ca_key, hashes.SHA256()), key)


def revocation_list(authority: Issued, serials: Iterable[int], now: datetime.datetime) -> str:
    """The list of revoked certificates, as PEM. It expires with the authority: an expired one would lock all out."""
    ca = _certificate(authority.certificate)
    builder = (
        x509.CertificateRevocationListBuilder()
        .issuer_name(ca.subject)
        .last_update(now - _EARLIER)
        .next_update(ca.not_valid_after_utc)
        .add_extension(x509.CRLNumber(int(now.timestamp())), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(_key(authority.key).public_key()), critical=False
        )
    )
    for serial in serials:
        revoked = x509.RevokedCertificateBuilder().serial_number(serial).revocation_date(now - _EARLIER).build()
        builder = builder.add_revoked_certificate(revoked)
    return builder.sign(_key(authority.key), hashes.SHA256()).public_bytes(serialization.Encoding.PEM).decode()


def _builder(
    subject: x509.Name, issuer: x509.Name, public_key: Any, now: datetime.datetime, days: int
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(public_key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _EARLIER)
        .not_valid_after(now + datetime.timedelta(days=days))
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public_key), critical=False)
    )


def _key_usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _name(common_name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])


def _host(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)


def _issued(certificate: x509.Certificate, key: ec.EllipticCurvePrivateKey) -> Issued:
    pem = serialization.Encoding.PEM
    secret = key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    return Issued(certificate.public_bytes(pem).decode(), secret.decode())


def _certificate(pem: str) -> x509.Certificate:
    return x509.load_pem_x509_certificate(pem.encode())


def _key(pem: str) -> ec.EllipticCurvePrivateKey:
    key = serialization.load_pem_private_key(pem.encode(), password=None)
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    return key
