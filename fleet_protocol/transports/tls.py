"""Make TLS contexts for connections to a broker: version 1.2 or newer, the broker's name always checked."""

from __future__ import annotations

import codecs
import os
import ssl
import tempfile
from pathlib import Path

from fleetnas.device_profiles.text_files import read_text
from fleetnas.fleet_protocol.errors import UsageError
from fleetnas.fleet_protocol.transports.base import BrokerAddress


class TlsContext(ssl.SSLContext):
    """Remembers why a handshake failed, which the MQTT library does not report."""

    _refusal: str | None = None

    @classmethod
    def of(cls, address: BrokerAddress) -> TlsContext:
        """Return the context for `address`; `UsageError` if its files cannot be used."""
        context = cls(ssl.PROTOCOL_TLS_CLIENT)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        try:
            if address.ca_file is not None or address.ca_pem is not None:
                trust(context, address.ca_file, address.ca_pem)
            else:
                context.load_default_certs()
            if address.certificate_file is not None:
                files = [file for file in (address.certificate_file, address.key_file) if file is not None]
                if any(map(_is_marked, files)):
                    context._load_pem("\n".join(read_text(Path(file)) for file in files))
                else:
                    context.load_cert_chain(*files)
            elif address.certificate_pem is not None:
                context._load_pem(address.certificate_pem + (address.key_pem or ""))
        except (OSError, ValueError, ssl.SSLError) as error:
            raise UsageError(
                f"the TLS files cannot be used ({error}); check the CA, certificate and key paths and that they match"
            ) from error
        context.sslsocket_class = _socket_class(context)
        return context

    def note_refusal(self, reason: str) -> None:
        """Remember why a handshake failed."""
        self._refusal = reason

    def take_refusal(self) -> str | None:
        """Return why the last handshake failed, and forget it; None if none failed."""
        refusal, self._refusal = self._refusal, None
        return refusal

    def _load_pem(self, text: str) -> None:
        # OpenSSL reads a certificate's key from a file only. A file in memory never reaches a disk, even if this
        # process is killed now.
        if hasattr(os, "memfd_create") and os.path.isdir("/proc/self/fd"):
            with os.fdopen(os.memfd_create("fleetnas-key"), "w") as file:
                file.write(text)
                file.flush()
                self.load_cert_chain(f"/proc/self/fd/{file.fileno()}")
            return
        with tempfile.TemporaryDirectory(prefix="fleetnas-") as folder:  # readable by its owner only
            path = os.path.join(folder, "key.pem")
            with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
                file.write(text)
            self.load_cert_chain(path)


def trust(context: ssl.SSLContext, file: str | None, pem: str | None) -> None:
    """Trust the authorities in a PEM file and in a text; `OSError` or `ValueError` if either has none."""
    if file is not None and _is_marked(file):
        pem = "\n".join((pem or "", read_text(Path(file))))
        file = None
    context.load_verify_locations(cafile=file, cadata=pem)


def _is_marked(file: str) -> bool:
    """Whether a file begins with a byte-order mark, past which OpenSSL does not look."""
    with open(file, "rb") as opened:
        return opened.read(3).startswith((codecs.BOM_UTF8, codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))


def _socket_class(context: TlsContext) -> type[ssl.SSLSocket]:
    class Socket(ssl.SSLSocket):
        def do_handshake(self, block: bool = False) -> None:
            try:
                super().do_handshake(block)
            except ssl.SSLCertVerificationError as error:
                context.note_refusal(
                    f"the broker's certificate is refused: {error.verify_message}; check the broker's name, the CA, "
                    "and this device's clock"
                )
                raise
            except OSError as error:
                context.note_refusal(f"TLS failed: {error}; check that this port speaks TLS, and the certificates")
                raise

    return Socket
